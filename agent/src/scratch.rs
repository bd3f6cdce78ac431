//! The scratch disk: room for images on a disk of the host's, which the guest does not trust.
//!
//! It is encrypted as [`crypt`] does it for what lives as long as the guest. The key is made at every boot, and is
//! nowhere else: what is left on the host's disk when the guest has ended is noise, also to the next guest. Nothing
//! that the host wrote is parsed: the guest formats what it maps, and reads nothing before it has written it.
//!
//! Whether the disk is used is the owner's decision. In a plain VM, whose host is trusted anyway, a disk
//! that is there is used unless init-data says otherwise; in a TEE only where init-data asks for it.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use evidence::Tee;
use evidence::init_data::content::Store;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use tokio::sync::watch;

use crate::crypt::{self, Mapped};
use crate::fault::OrFail;
use crate::module::Ability;
use crate::{boot, path};

/// The image's name for the modules that a scratch disk needs.
pub const ABILITY: &str = "scratch";
/// The disk's serial, by which it is found.
const SERIAL: &str = "cloister-scratch";
/// How long the disk may take to appear.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
const DISK_POLL: Duration = Duration::from_millis(20);
const PHASE: &str = "scratch";
/// What it is mapped as.
const NAME: &str = "scratch";

/// A disk that is to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    node: PathBuf,
    /// Bytes of it that are used.
    bytes: u64,
    /// Whether the memory for tags ends before the disk does.
    is_cut: bool,
}

/// Where images are kept, and what to change when there is no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// In memory; whether there is a disk that could be used.
    Memory {
        /// It could.
        has_disk: bool,
    },
    /// On the disk.
    Disk(Disk),
}

impl Choice {
    /// Decides, and waits for a disk that must come.
    ///
    /// # Errors
    ///
    /// [`ErrorCode::FailedPrecondition`]: init-data asks for a disk that is not there.
    pub async fn make(asked: Option<Store>, tee: Option<Tee>) -> Result<Self, GuestError> {
        let found = match asked {
            Some(Store::Scratch) => wait_for_disk().await?,
            Some(Store::Memory) | None => find_disk()?,
        };
        let is_wanted = match (asked, tee) {
            (Some(Store::Scratch), _) | (None, None) => true,
            (Some(Store::Memory), _) | (None, Some(_)) => false,
        };
        match found {
            Some(node) if is_wanted => Disk::measure(node).map(Self::Disk),
            None if asked == Some(Store::Scratch) => Err(GuestError::new(
                ErrorCode::FailedPrecondition,
                PHASE,
                "init-data says store = \"scratch\" and the VM has no scratch disk: set \
                 scratch_disk in [cloister] of the runtime's configuration",
            )),
            found => Ok(Self::Memory {
                has_disk: found.is_some(),
            }),
        }
    }

    /// What to raise when an image finds no room.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        match self {
            Self::Memory { has_disk: false } => {
                "the memory of the VM (default_memory), or give it a scratch disk (scratch_disk)"
            }
            Self::Memory { has_disk: true } => {
                "the memory of the VM (default_memory), or have images on its scratch disk \
                 (store = \"scratch\" in [image] of cdh.toml)"
            }
            Self::Disk(disk) if disk.is_cut => {
                "the memory of the VM (default_memory), which holds the tags of its scratch disk"
            }
            Self::Disk(_) => "the scratch disk of the VM (scratch_disk)",
        }
    }
}

impl Disk {
    fn measure(node: PathBuf) -> Result<Self, GuestError> {
        let size = crypt::size_of(&node).or_internal(PHASE, node.display())?;
        let (bytes, is_cut) = crypt::usable(size, crypt::memory_size());
        if is_cut {
            tracing::warn!(size, bytes, "memory for tags ends before the scratch disk");
        }
        Ok(Self {
            node,
            bytes,
            is_cut,
        })
    }

    fn tags(&self) -> u64 {
        crypt::tags(self.bytes)
    }

    /// Makes the image store on the disk.
    ///
    /// # Errors
    ///
    /// Names the step.
    pub fn set_up(&self, modules: Ability) -> Result<(), GuestError> {
        modules.load().or_internal(PHASE, "load")?;
        let mapped = Mapped::authenticated(NAME, &self.node, self.bytes)?;
        mapped.format(crypt::FILES)?;
        fs::create_dir_all(path::IMAGE).or_internal(PHASE, path::IMAGE)?;
        // Nothing has to survive a crash, so nothing waits for the host's disk.
        let options = c"errors=remount-ro,barrier=0";
        let flags = MountFlags::NODEV | MountFlags::NOATIME;
        mount(mapped.node(), path::IMAGE, "ext4", flags, options).or_internal(PHASE, "mount")
    }
}

/// The image store, which may still be in the making: a guest does not wait for its disk before it says
/// that it is ready.
#[derive(Debug)]
pub struct ImageStore {
    setting: &'static str,
    made: watch::Receiver<Option<Result<(), GuestError>>>,
}

impl ImageStore {
    /// Begins to make it, and gives `/run` what memory it leaves.
    ///
    /// # Errors
    ///
    /// A mount fails.
    pub fn begin(choice: Choice, modules: Ability) -> Result<Self, GuestError> {
        let setting = choice.setting();
        let (sender, made) = watch::channel(None);
        match choice {
            Choice::Memory { .. } => {
                drop(modules);
                boot::limit_run(0).or_internal(PHASE, "limit /run")?;
                in_memory()?;
                sender.send_replace(Some(Ok(())));
            }
            Choice::Disk(disk) => {
                boot::limit_run(disk.tags()).or_internal(PHASE, "limit /run")?;
                tokio::task::spawn_blocking(move || {
                    let began = Instant::now();
                    let result = disk.set_up(modules);
                    let milliseconds = began.elapsed().as_millis();
                    tracing::info!(milliseconds, bytes = disk.bytes, "scratch disk");
                    sender.send_replace(Some(result));
                });
            }
        }
        Ok(Self { setting, made })
    }

    /// Waits until images can be put there.
    ///
    /// # Errors
    ///
    /// Why they never can.
    pub async fn ready(&self) -> Result<(), GuestError> {
        let mut made = self.made.clone();
        let result = made
            .wait_for(Option::is_some)
            .await
            .map(|made| made.clone());
        result.ok().flatten().unwrap_or_else(|| {
            let message = "the scratch disk was given up";
            Err(GuestError::new(ErrorCode::Internal, PHASE, message))
        })
    }

    /// What to raise when an image finds no room.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

/// Programs of an image may be setuid, as they may anywhere else; what else is in `/run` may not.
fn in_memory() -> Result<(), GuestError> {
    fs::create_dir_all(path::IMAGE).or_internal(PHASE, path::IMAGE)?;
    mount_bind(path::IMAGE, path::IMAGE).or_internal(PHASE, path::IMAGE)?;
    let flags = MountFlags::BIND | MountFlags::NODEV;
    mount_remount(path::IMAGE, flags, c"").or_internal(PHASE, path::IMAGE)
}

async fn wait_for_disk() -> Result<Option<PathBuf>, GuestError> {
    let deadline = tokio::time::Instant::now() + DISK_TIMEOUT;
    loop {
        let disk = find_disk()?;
        if disk.is_some() || tokio::time::Instant::now() > deadline {
            return Ok(disk);
        }
        tokio::time::sleep(DISK_POLL).await;
    }
}

/// The virtio disk with the serial.
fn find_disk() -> Result<Option<PathBuf>, GuestError> {
    let entries = fs::read_dir("/sys/block").or_internal(PHASE, "/sys/block")?;
    for entry in entries.flatten() {
        let mut serial = String::new();
        // A device of another kind has none.
        let read = File::open(entry.path().join("serial")).and_then(|file| {
            file.take(SERIAL.len() as u64 + 2)
                .read_to_string(&mut serial)
        });
        if read.is_ok() && serial.trim_end() == SERIAL {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_raise_depends_on_where_images_are() {
        let disk = |is_cut| {
            Choice::Disk(Disk {
                node: PathBuf::from("/dev/vdb"),
                bytes: 1 << 30,
                is_cut,
            })
        };
        assert!(disk(false).setting().contains("scratch_disk"));
        assert!(disk(true).setting().contains("default_memory"));
        let memory = |has_disk| Choice::Memory { has_disk };
        assert!(memory(false).setting().contains("scratch_disk"));
        assert!(memory(true).setting().contains("store = \"scratch\""));
    }
}
