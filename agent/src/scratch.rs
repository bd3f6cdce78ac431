//! The scratch disk: room for images on a disk of the host's, which the guest does not trust.
//!
//! ```text
//!   ext4 ─► dm-crypt, AES-256-GCM ─► dm-integrity ─┬─ ciphertext ─► the host's disk
//!                                                  └─ nonces, tags ─► a device in the guest's memory
//! ```
//!
//! The key is made here, at every boot, and is nowhere else: what is left on the host's disk when the
//! guest has ended is noise, also to the next guest. The tags do not go with the ciphertext, as they
//! do on a disk that must survive: they stay in the guest's memory, 28 bytes for each 4 KiB that was
//! written. So a host that changes a block, moves it or brings back what stood there before gets an
//! I/O error in the guest, and no block that was never written can be read. Nothing that the host
//! wrote is parsed: the guest formats what it maps, and reads nothing before it has written it.
//!
//! Whether the disk is used is the owner's decision. In a plain VM, whose host is trusted anyway, a disk
//! that is there is used unless init-data says otherwise; in a TEE only where init-data asks for it.

mod device;
mod ext4;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use evidence::Tee;
use evidence::init_data::content::Store;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};
use tokio::sync::watch;
use zeroize::Zeroizing;

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

/// Bytes of a sector of the encryption, and of the file system's blocks.
const SECTOR: u64 = ext4::BLOCK;
/// Bytes that each sector has in memory: a nonce of 12 and a tag of 16.
const TAG: u64 = 28;
/// Of the memory at most this part goes to tags; a disk that would need more is used as far as it goes.
const MEMORY_PART: u64 = 8;
/// What dm-integrity keeps before the tags: its superblock, and a journal that is not used.
const TAG_HEAD: u64 = 1 << 20;
/// Metadata in flight before it must have gone to the device.
const FORMAT_WINDOW: u64 = 32 << 20;

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
        let size = File::open(&node)
            .and_then(|mut file| file.seek(SeekFrom::End(0)))
            .or_internal(PHASE, node.display())?;
        let info = rustix::system::sysinfo();
        let memory = info.totalram.saturating_mul(u64::from(info.mem_unit));
        let (bytes, is_cut) = usable(size, memory);
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
        TAG_HEAD + self.bytes / SECTOR * TAG
    }

    /// Makes the image store on the disk.
    ///
    /// # Errors
    ///
    /// Names the step.
    pub fn set_up(&self, modules: Ability) -> Result<(), GuestError> {
        modules.load().or_internal(PHASE, "load")?;
        let tags = device::in_memory(self.tags()).or_internal(PHASE, "a device for tags")?;
        let integrity = device::Target {
            kind: "integrity",
            sectors: self.bytes / 512,
            parameters: Zeroizing::new(integrity_table(&self.node, &tags)),
        };
        let integrity =
            device::map("scratch-tags", &integrity).or_internal(PHASE, "dm-integrity")?;
        let crypt = device::Target {
            kind: "crypt",
            sectors: self.bytes / 512,
            parameters: crypt_table(&integrity)?,
        };
        let crypt = device::map("scratch", &crypt).or_internal(PHASE, "dm-crypt")?;
        format(&crypt, self.bytes).or_internal(PHASE, "make a file system")?;
        fs::create_dir_all(path::IMAGE).or_internal(PHASE, path::IMAGE)?;
        // Nothing has to survive a crash, so nothing waits for the host's disk.
        let options = c"errors=remount-ro,barrier=0";
        let flags = MountFlags::NODEV | MountFlags::NOATIME;
        mount(&crypt, path::IMAGE, "ext4", flags, options).or_internal(PHASE, "mount")
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

/// How much of a disk of `size` bytes is used in a guest of `memory` bytes, and whether it is the memory
/// that ends it.
fn usable(size: u64, memory: u64) -> (u64, bool) {
    let most = (memory / MEMORY_PART / TAG).saturating_mul(SECTOR);
    let whole = size / SECTOR * SECTOR;
    (whole.min(most).min(ext4::LARGEST), whole > most)
}

/// Data goes straight to its place (`D`): a write that a crash tears is lost with all the others.
fn integrity_table(data: &Path, tags: &Path) -> String {
    format!(
        "{} 0 {TAG} D 3 meta_device:{} block_size:{SECTOR} journal_sectors:1",
        data.display(),
        tags.display()
    )
}

/// With a random nonce for every write, of which 2^32 are safe under one key.
fn crypt_table(below: &Path) -> Result<Zeroizing<String>, GuestError> {
    let key: Zeroizing<[u8; 32]> = random()?;
    // With its final size from the start, so that no copy of the key is left where it grew.
    let mut table = Zeroizing::new(String::with_capacity(256));
    table.push_str("capi:gcm(aes)-random ");
    for byte in key.iter() {
        // Writing to a string does not fail.
        let _ = write!(table, "{byte:02x}");
    }
    let _ = write!(
        table,
        " 0 {} 0 2 integrity:{TAG}:aead sector_size:{SECTOR}",
        below.display()
    );
    Ok(table)
}

/// From the kernel, once its generator is seeded.
fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, GuestError> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new().fill(&mut *bytes).map_err(|_| {
        GuestError::new(
            ErrorCode::Internal,
            PHASE,
            "the kernel gives no random bytes",
        )
    })?;
    Ok(bytes)
}

fn format(device: &Path, bytes: u64) -> io::Result<()> {
    let uuid = random().map_err(io::Error::other)?;
    let device = File::options().write(true).open(device)?;
    let mut waiting = 0;
    ext4::format(bytes, *uuid, |at, data| {
        device.write_all_at(data, at)?;
        waiting += data.len() as u64;
        // A small guest has no memory for the metadata of a large disk.
        if waiting >= FORMAT_WINDOW {
            waiting = 0;
            device.sync_data()?;
        }
        Ok(())
    })?;
    device.sync_data()
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
    fn memory_for_tags_ends_a_disk_that_is_too_large_for_the_guest() {
        let (gib, mib) = (1 << 30, 1 << 20);
        assert_eq!(usable(gib + 512, 512 * mib), (gib, false));
        let (bytes, is_cut) = usable(1024 * gib, 512 * mib);
        assert!(is_cut && bytes > 8 * gib && bytes / SECTOR * TAG <= 64 * mib);
        assert_eq!(usable(u64::MAX, u64::MAX).0, ext4::LARGEST);
    }

    #[test]
    fn the_key_is_32_bytes_and_new_each_time() {
        let tables: Vec<_> = (0..2)
            .map(|_| crypt_table(Path::new("/dev/dm-0")).unwrap())
            .collect();
        let keys: Vec<_> = tables
            .iter()
            .map(|table| table.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!((keys[0].len(), keys[1].len()), (64, 64));
        assert_ne!(keys[0], keys[1]);
        assert!(tables[0].ends_with(" 0 /dev/dm-0 0 2 integrity:28:aead sector_size:4096"));
    }

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
