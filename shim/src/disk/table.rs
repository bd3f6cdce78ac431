//! The disks of the host that a pod's VM has, each once, and how many containers use it.
//!
//! The table is locked while QEMU works: who wants a disk that is going waits until it is gone, and gets it
//! anew. What is attached is noted with its container before the lock is let go, so that a creation that is
//! given up in the middle leaves nothing.

use std::collections::BTreeMap;

use agent_api::{ErrorCode, GuestError};
use hypervisor::{Address, Disks, HotDisk};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{Id, Purpose, Wanted};
use crate::container::Container;

/// The table.
#[derive(Debug, Default)]
pub struct Table(Mutex<BTreeMap<Id, Attached>>);

#[derive(Debug)]
struct Attached {
    address: Address,
    read_only: bool,
    is_node: bool,
    users: usize,
}

impl Attached {
    /// Why one more cannot use it.
    fn refuses(&self, wanted: &Wanted) -> Option<&'static str> {
        if self.read_only && !wanted.read_only {
            return Some("a container of the pod has it read-only: mount it so in all of them");
        }
        let is_node = matches!(wanted.purpose, Purpose::Node(_));
        (self.is_node != is_node).then_some(
            "a container of the pod has it in another way: as a device, or as a file system",
        )
    }
}

impl Table {
    /// Gives a container a disk; answers where the guest has it.
    ///
    /// # Errors
    /// The pod uses it in a way that does not go with this one, the creation was given up, or QEMU refuses.
    pub async fn attach(
        &self,
        disks: &Disks,
        container: &Container,
        wanted: &Wanted,
    ) -> Result<Address, GuestError> {
        let mut table = self.0.lock().await;
        if container.cancel.is_cancelled() {
            return Err(container.cancelled());
        }
        let id = wanted.host.id;
        let path = &wanted.host.path;
        if let Some(known) = table.get_mut(&id) {
            if let Some(why) = known.refuses(wanted) {
                let text = format!("{}: {why}", path.display());
                return Err(GuestError::new(ErrorCode::FailedPrecondition, "disk", text));
            }
            known.users += 1;
            container.hold_disk(id);
            return Ok(known.address);
        }
        let is_node = matches!(wanted.purpose, Purpose::Node(_));
        let disk = HotDisk {
            path: path.clone(),
            is_device: wanted.host.is_device(),
            read_only: wanted.read_only,
            // Who shares a device as it is knows how; a file system has one kernel.
            is_shared: is_node,
        };
        let attached = disks.attach(&disk).await;
        let address = attached
            .map_err(|error| GuestError::new(ErrorCode::FailedPrecondition, "disk", error))?;
        info!(path = %path.display(), %address, read_only = wanted.read_only, "a disk came");
        let first = Attached {
            address,
            read_only: wanted.read_only,
            is_node,
            users: 1,
        };
        table.insert(id, first);
        container.hold_disk(id);
        Ok(address)
    }

    /// Takes from a container what it has, and from the VM what nobody has any more; without a VM all is gone.
    pub async fn release(&self, disks: Option<&Disks>, container: &Container) {
        let mut table = self.0.lock().await;
        for id in container.take_disks() {
            let Some(known) = table.get_mut(&id) else {
                continue;
            };
            known.users = known.users.saturating_sub(1);
            if known.users > 0 {
                continue;
            }
            let address = known.address;
            table.remove(&id);
            if let Some(disks) = disks
                && let Err(error) = disks.detach(address).await
            {
                warn!(%error, %address, "a disk does not go");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{FileSystem, Host};

    #[test]
    fn a_disk_is_used_in_one_way_by_all_of_a_pod() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        let wanted = |read_only, purpose| Wanted {
            host: Host::by_path(&path).unwrap(),
            read_only,
            purpose,
        };
        let node = || Purpose::Node("/dev/x".into());
        let volume = || Purpose::Volume(0, FileSystem::default());
        let known = |read_only, is_node| Attached {
            address: Address::from(0),
            read_only,
            is_node,
            users: 1,
        };
        assert_eq!(known(false, true).refuses(&wanted(false, node())), None);
        assert_eq!(known(false, false).refuses(&wanted(true, volume())), None);
        let why = known(true, true).refuses(&wanted(false, node()));
        assert!(why.unwrap().contains("read-only"));
        let why = known(false, true).refuses(&wanted(false, volume()));
        assert!(why.unwrap().contains("another way"));
    }
}
