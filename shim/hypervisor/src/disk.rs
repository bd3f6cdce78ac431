//! Disks that come and go while a VM runs: block devices and files of the host.
//!
//! They are SCSI disks of one controller that is there from the start. A disk on PCI Express would need a
//! port for each, which costs every start, and goes only when the guest lets it go; one on the controller is
//! taken away when we say so, on every machine, and nobody's volume waits for a guest that does not answer.
//!
//! | | QEMU |
//! |---|---|
//! | comes | `blockdev-add` (raw over what the shim has open), `device_add scsi-hd` |
//! | goes | `device_del`, then `blockdev-del`, which has written everything when it answers |
//!
//! What a path leads to may change between a look and the next. So whoever adds a disk has it open, QEMU opens
//! that very thing (`/proc/<shim>/fd/<n>` leads to it, whatever its path does), and it stays open until the disk
//! is gone: where it was opened alone (`O_EXCL`), nobody on the host mounts it meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::qmp::{Qmp, QmpError};
use crate::spec::VmSpec;

/// The most of them at a time: each is a target of the controller, which has 256.
pub const MAX_HOT_DISKS: usize = 128;
/// What the controller is on the command line. One queue, as Kata has it. The agent has its kernel look for each disk:
/// the controller's own word of one that went may come late, and take away what came after.
pub(crate) const CONTROLLER: &str = "id=scsi,num_queues=1,hotplug=off";
/// Bytes of a disk come in these.
const SECTOR: u64 = 512;
/// How long QEMU may use a disk's file after the disk is gone.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_POLL: Duration = Duration::from_millis(10);

/// A disk that is to come.
#[derive(Debug)]
pub struct HotDisk {
    /// The block device or the file, whose bytes are the disk's.
    pub file: File,
    /// Its path, for those who read of it.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub is_device: bool,
    /// Whether QEMU refuses what the guest writes.
    pub read_only: bool,
    /// Whether another VM may write to it at the same time, and this one too then.
    pub is_shared: bool,
}

/// Where a guest finds a disk: its target on the controller, and unit 0 of it. Written as Kata writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(u8);

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:0", self.0)
    }
}

impl From<u8> for Address {
    fn from(target: u8) -> Self {
        Self(target)
    }
}

/// Why a disk did not come or go.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Too many.
    #[error("{MAX_HOT_DISKS} disks were added to the VM already: use fewer volumes")]
    TooMany,
    /// QEMU's refusal.
    #[error("disk {path:?}: {source}")]
    Qmp {
        /// Of the disk.
        path: PathBuf,
        /// What QEMU said.
        source: QmpError,
    },
    /// What is behind it is smaller than it is to be.
    #[error(
        "disk {address} is to have {wanted} bytes and the host's has {there}: make that larger first"
    )]
    Small {
        /// Of the disk.
        address: Address,
        /// What was asked for.
        wanted: u64,
        /// What there is.
        there: u64,
    },
    /// Nothing is there.
    #[error("there is no disk {0}")]
    None(Address),
    /// It would not go.
    #[error("disk {address} does not go: {source}")]
    Held {
        /// Of the disk.
        address: Address,
        /// What QEMU said last.
        source: QmpError,
    },
}

/// Lets disks come and go. Cheap to clone; changes of all clones take turns.
#[derive(Debug, Clone)]
pub struct Disks {
    qmp: Qmp,
    places: Arc<Mutex<Places>>,
}

/// The controller's targets.
#[derive(Debug, Default)]
struct Places {
    /// Those with a disk, and what QEMU has opened for it.
    taken: BTreeMap<Address, File>,
    /// Those of which nobody knows whether the guest has let go: what it has there may be an earlier disk. Where nobody
    /// knows either what QEMU will open yet, the file stays what it is told to open.
    lost: BTreeMap<Address, Option<File>>,
}

impl Places {
    fn free(&self) -> Option<Address> {
        let mut all = (0..=u8::MAX).map(Address);
        let is_free = |one: &Address| !self.taken.contains_key(one) && !self.lost.contains_key(one);
        all.find(is_free)
            .filter(|_| self.taken.len() < MAX_HOT_DISKS)
    }

    /// What QEMU refused it has not done; of all else nobody knows.
    fn lose_unless_refused(&mut self, address: Address, error: &QmpError, file: File) {
        if !matches!(error, QmpError::Refused { .. }) {
            self.lost.insert(address, Some(file));
        }
    }
}

impl Disks {
    pub(crate) fn new(qmp: &Qmp, spec: &VmSpec) -> Option<Self> {
        spec.hot_disks.then(|| Self {
            qmp: qmp.clone(),
            places: Arc::default(),
        })
    }

    /// Whether there is one.
    pub async fn has_any(&self) -> bool {
        !self.places.lock().await.taken.is_empty()
    }

    /// Adds a disk.
    ///
    /// # Errors
    /// [`DiskError`]; nothing of the disk is left then.
    pub async fn attach(&self, disk: HotDisk) -> Result<Address, DiskError> {
        let mut places = self.places.lock().await;
        let address = places.free().ok_or(DiskError::TooMany)?;
        let path = disk.path;
        let failed = |source| DiskError::Qmp { path, source };
        let name = node(address);
        let opened = format!("/proc/{}/fd/{}", std::process::id(), disk.file.as_raw_fd());
        let read_only = disk.read_only;
        let driver = match disk.is_device {
            true => "host_device",
            false => "file",
        };
        let discard = if read_only { "ignore" } else { "unmap" };
        let node = json!({
            "driver": "raw", "node-name": name, "read-only": read_only, "discard": discard,
            "file": {
                "driver": driver, "filename": opened, "read-only": read_only, "auto-read-only": false,
                "discard": discard,
            },
        });
        if let Err(error) = self.qmp.ask("blockdev-add", node).await {
            places.lose_unless_refused(address, &error, disk.file);
            return Err(failed(error));
        }
        // A host without room is the guest's I/O error; QEMU's default is a VM that stands still.
        let device = json!({
            "driver": "scsi-hd", "id": name, "drive": name, "bus": "scsi.0", "channel": 0,
            "scsi-id": address.0, "lun": 0, "share-rw": disk.is_shared,
            "rerror": "report", "werror": "report",
        });
        if let Err(error) = self.qmp.ask("device_add", device).await {
            places.lose_unless_refused(address, &error, disk.file);
            let _ = self
                .qmp
                .ask("blockdev-del", json!({ "node-name": name }))
                .await;
            return Err(failed(error));
        }
        places.taken.insert(address, disk.file);
        Ok(address)
    }

    /// Lets the guest see how large the device or the file of a disk has become, which is at least `wanted` bytes.
    /// Nothing of the host's is made larger or smaller by this.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn grow(&self, address: Address, wanted: u64) -> Result<(), DiskError> {
        let places = self.places.lock().await;
        let file = places.taken.get(&address).ok_or(DiskError::None(address))?;
        // Seeking asks the kernel alone.
        let there = (&*file).seek(SeekFrom::End(0)).unwrap_or_default() / SECTOR * SECTOR;
        if there < wanted {
            return Err(DiskError::Small {
                address,
                wanted,
                there,
            });
        }
        let name = node(address);
        let arguments = json!({ "node-name": name, "size": there });
        let grown = self.qmp.ask("block_resize", arguments).await;
        grown.map(drop).map_err(|source| DiskError::Qmp {
            path: name.into(),
            source,
        })
    }

    /// Takes a disk away. What the guest wrote to it is on the host's device afterwards; what the guest still
    /// kept back is lost, so it is asked first to let go of it. `is_let_go` says that it has answered that it did:
    /// without, no other disk comes to the same place.
    ///
    /// # Errors
    /// [`DiskError::Held`]; the address stays taken.
    pub async fn detach(&self, address: Address, is_let_go: bool) -> Result<(), DiskError> {
        let mut places = self.places.lock().await;
        if !places.taken.contains_key(&address) {
            return Ok(());
        }
        let name = node(address);
        let held = |source| DiskError::Held { address, source };
        match self.qmp.ask("device_del", json!({ "id": name })).await {
            Ok(_) => {}
            // It went with an earlier call that did not get further.
            Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => {}
            Err(error) => return Err(held(error)),
        }
        let until = Instant::now() + RELEASE_TIMEOUT;
        loop {
            let gone = self
                .qmp
                .ask("blockdev-del", json!({ "node-name": name }))
                .await;
            match gone {
                Ok(_) => break,
                Err(error @ QmpError::Refused { .. }) if Instant::now() >= until => {
                    return Err(held(error));
                }
                Err(QmpError::Refused { .. }) => sleep(RELEASE_POLL).await,
                Err(error) => return Err(held(error)),
            }
        }
        places.taken.remove(&address);
        if !is_let_go {
            places.lost.insert(address, None);
        }
        Ok(())
    }
}

/// The name of the disk and of what is behind it.
fn node(address: Address) -> String {
    format!("hot{}", address.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_place_is_taken_and_there_is_a_last_one() {
        let file = || tempfile::tempfile().unwrap();
        let taken = |list: &[u8]| list.iter().map(|one| (Address(*one), file())).collect();
        let mut places = Places {
            taken: taken(&[0, 2]),
            lost: BTreeMap::from([(Address(1), None)]),
        };
        assert_eq!(places.free(), Some(Address(3)), "what is lost is not free");
        places.lost.clear();
        assert_eq!(places.free(), Some(Address(1)));
        let most = u8::try_from(MAX_HOT_DISKS).unwrap();
        places.taken = taken(&(100..100 + most).collect::<Vec<_>>());
        assert_eq!(places.free(), None);
    }
}
