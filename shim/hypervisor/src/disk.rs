//! Disks that come and go while a VM runs: block devices and files of the host.
//!
//! They are SCSI disks of one controller that is there from the start. A disk on PCI Express would need a
//! port for each, which costs every start, and goes only when the guest lets it go; one on the controller is
//! taken away when we say so, on every machine, and nobody's volume waits for a guest that does not answer.
//!
//! | | QEMU |
//! |---|---|
//! | comes | `blockdev-add` (raw over the device or the file), `device_add scsi-hd` |
//! | goes | `device_del`, then `blockdev-del`, which has written everything when it answers |

use std::collections::BTreeSet;
use std::fmt;
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
/// What the controller is on the command line. One queue, as Kata has it.
pub(crate) const CONTROLLER: &str = "id=scsi,num_queues=1";
/// How long QEMU may use a disk's file after the disk is gone.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_POLL: Duration = Duration::from_millis(10);

/// A disk that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotDisk {
    /// The block device or the file, whose bytes are the disk's.
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
    /// The path is no text.
    #[error("the path {0:?} is not valid UTF-8: rename it")]
    Path(PathBuf),
    /// QEMU's refusal.
    #[error("disk {path:?}: {source}")]
    Qmp {
        /// Of the disk.
        path: PathBuf,
        /// What QEMU said.
        source: QmpError,
    },
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
    used: Arc<Mutex<BTreeSet<Address>>>,
}

impl Disks {
    pub(crate) fn new(qmp: &Qmp, spec: &VmSpec) -> Option<Self> {
        spec.hot_disks.then(|| Self {
            qmp: qmp.clone(),
            used: Arc::default(),
        })
    }

    /// Adds a disk.
    ///
    /// # Errors
    /// [`DiskError`]; nothing of the disk is left then.
    pub async fn attach(&self, disk: &HotDisk) -> Result<Address, DiskError> {
        let mut used = self.used.lock().await;
        let address = free(&used).ok_or(DiskError::TooMany)?;
        let path = disk.path.to_str();
        let path = path.ok_or_else(|| DiskError::Path(disk.path.clone()))?;
        let failed = |source| DiskError::Qmp {
            path: disk.path.clone(),
            source,
        };
        let name = node(address);
        let read_only = disk.read_only;
        let driver = match disk.is_device {
            true => "host_device",
            false => "file",
        };
        let discard = if read_only { "ignore" } else { "unmap" };
        let node = json!({
            "driver": "raw", "node-name": name, "read-only": read_only, "discard": discard,
            "file": {
                "driver": driver, "filename": path, "read-only": read_only, "auto-read-only": false,
                "discard": discard,
            },
        });
        self.qmp.ask("blockdev-add", node).await.map_err(failed)?;
        // A host without room is the guest's I/O error; QEMU's default is a VM that stands still.
        let device = json!({
            "driver": "scsi-hd", "id": name, "drive": name, "bus": "scsi.0", "channel": 0,
            "scsi-id": address.0, "lun": 0, "share-rw": disk.is_shared,
            "rerror": "report", "werror": "report",
        });
        if let Err(error) = self.qmp.ask("device_add", device).await {
            let _ = self
                .qmp
                .ask("blockdev-del", json!({ "node-name": name }))
                .await;
            return Err(failed(error));
        }
        used.insert(address);
        Ok(address)
    }

    /// Takes a disk away. What the guest wrote to it is on the host's device afterwards; what the guest still
    /// kept back is lost, so it is asked first to let go of it.
    ///
    /// # Errors
    /// [`DiskError::Held`]; the address stays taken.
    pub async fn detach(&self, address: Address) -> Result<(), DiskError> {
        let mut used = self.used.lock().await;
        if !used.contains(&address) {
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
        used.remove(&address);
        Ok(())
    }
}

fn free(used: &BTreeSet<Address>) -> Option<Address> {
    (0..=u8::MAX)
        .take(MAX_HOT_DISKS)
        .map(Address)
        .find(|address| !used.contains(address))
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
        let mut used = BTreeSet::from([Address(0), Address(2)]);
        assert_eq!(free(&used), Some(Address(1)));
        let most = u8::try_from(MAX_HOT_DISKS).unwrap();
        used.extend((0..most).map(Address));
        assert_eq!(free(&used), None);
    }
}
