//! The disks of the host that a pod's VM has, each once, and how many containers use it.
//!
//! The table is locked while QEMU works: who wants a disk that is going waits until it is gone, and gets it
//! anew. What is attached is noted with its container before the lock is let go, so that a creation that is
//! given up in the middle leaves nothing. A disk that does not go stays in the table, with its last user; so does one
//! that is the pod's, without any.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use hypervisor::{Address, Disks, HotDisk};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{FileSystem, Host, HostError, Id, Wanted, empty};
use crate::container::Container;

/// How long a device of the host may take to be opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// The table.
#[derive(Debug, Default)]
pub struct Table(Mutex<BTreeMap<Id, Attached>>);

#[derive(Debug)]
struct Attached {
    address: Address,
    read_only: bool,
    /// What the guest mounts; nothing of a device as it is.
    system: Option<FileSystem>,
    users: usize,
    /// Whether it stays until the VM ends.
    is_of_pod: bool,
    /// Whether the guest may have kept what it had there, because one of the users did not end as it should.
    is_doubtful: bool,
    /// It was to go, and did not.
    is_stuck: bool,
}

/// A disk that does not go.
#[derive(Debug)]
pub struct Stuck {
    /// As it is answered.
    pub error: GuestError,
    /// Whether one of them did not go before, either.
    pub again: bool,
}

impl Attached {
    /// Why one more cannot use it.
    fn refuses(&self, wanted: &Wanted) -> Option<&'static str> {
        if self.is_stuck {
            return Some("it is to go from the VM, and does not: remove the pod");
        }
        if self.read_only && !wanted.read_only {
            return Some("a container of the pod has it read-only: mount it so in all of them");
        }
        match (&self.system, wanted.purpose.system()) {
            (None, None) => None,
            (Some(known), Some(other)) => (known != other).then_some(
                "a container of the pod has it with another file system, other options or another group",
            ),
            _ => Some(
                "a container of the pod has it in another way: as a device, or as a file system",
            ),
        }
    }
}

async fn open(wanted: &Wanted, alone: bool) -> Result<File, GuestError> {
    on_host(wanted, move |host| host.open(alone)).await
}

/// What a call does to the host's device may wait for it.
async fn on_host<T: Send + 'static>(
    wanted: &Wanted,
    call: impl FnOnce(&Host) -> Result<T, HostError> + Send + 'static,
) -> Result<T, GuestError> {
    let host = wanted.host.clone();
    let failed = |text: String| {
        let text = format!("{}: {text}", wanted.what);
        GuestError::new(ErrorCode::FailedPrecondition, "disk", text)
    };
    let done = tokio::task::spawn_blocking(move || call(&host));
    match timeout(OPEN_TIMEOUT, done).await {
        Ok(Ok(done)) => done.map_err(|error| failed(error.to_string())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => {
            let (path, seconds) = (wanted.host.path.display(), OPEN_TIMEOUT.as_secs());
            Err(failed(format!("{path} did not open in {seconds} s")))
        }
    }
}

impl Table {
    /// Checks that nobody on the host uses what a container asks for, beside the pod itself.
    ///
    /// # Errors
    /// Names what asks for it, and who has it.
    pub async fn check_free(&self, all: &[Wanted]) -> Result<(), GuestError> {
        for wanted in all {
            // Held over the opening, which would find a neighbour's disk that is on its way in use.
            let table = self.0.lock().await;
            if !table.contains_key(&wanted.host.id) {
                open(wanted, wanted.is_alone()).await?;
            }
        }
        Ok(())
    }

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
        let system = wanted.purpose.system();
        let file = match wanted.is_of_pod() {
            true => on_host(wanted, empty::renew).await?,
            // A file system has one kernel: nobody mounts it for as long as the VM has it.
            false => open(wanted, system.is_some() && wanted.is_alone()).await?,
        };
        let disk = HotDisk {
            file,
            path: path.clone(),
            is_device: wanted.host.is_device(),
            read_only: wanted.read_only,
            // Who shares a device as it is knows how.
            is_shared: system.is_none(),
        };
        let attached = disks.attach(disk).await;
        let address = attached
            .map_err(|error| GuestError::new(ErrorCode::FailedPrecondition, "disk", error))?;
        info!(path = %path.display(), %address, read_only = wanted.read_only, "a disk came");
        let first = Attached {
            address,
            read_only: wanted.read_only,
            system: system.cloned(),
            users: 1,
            is_of_pod: wanted.is_of_pod(),
            is_doubtful: false,
            is_stuck: false,
        };
        table.insert(id, first);
        container.hold_disk(id);
        Ok(address)
    }

    /// Where the guest has the file system on a disk of this path.
    ///
    /// # Errors
    /// The VM has no such file system, or none that grows where it is to.
    pub async fn mounted(&self, path: &str, to_grow: bool) -> Result<Address, GuestError> {
        let none = || {
            let text = format!("the VM has no file system of {path:?}");
            GuestError::new(ErrorCode::NotFound, "disk", text)
        };
        let looked = path.to_owned();
        let id = tokio::task::spawn_blocking(move || Host::by_path(looked.as_ref()));
        let id = timeout(OPEN_TIMEOUT, id).await;
        let id = id.ok().and_then(Result::ok).and_then(Result::ok);
        let id = id.ok_or_else(none)?.id;
        let table = self.0.lock().await;
        let known = table.get(&id).ok_or_else(none)?;
        let system = known.system.as_ref().ok_or_else(none)?;
        let why = match (known.read_only, system.encryption.is_empty()) {
            _ if !to_grow => return Ok(known.address),
            (true, _) => "it is read-only",
            (false, false) => {
                "it is encrypted, and keeps its size until the container is made again"
            }
            (false, true) => return Ok(known.address),
        };
        let text = format!("{path}: {why}");
        Err(GuestError::new(ErrorCode::FailedPrecondition, "disk", text))
    }

    /// Takes from a container what it has, and from the VM what nobody has any more; without a VM all is gone.
    ///
    /// # Errors
    /// A disk does not go. The container has it still, so this can be called again.
    pub async fn release(&self, disks: Option<&Disks>, container: &Container) -> Result<(), Stuck> {
        let mut table = self.0.lock().await;
        let mut outcome = Ok(());
        for id in container.take_disks() {
            let Some(known) = table.get_mut(&id) else {
                continue;
            };
            known.is_doubtful |= container.is_doubtful();
            if known.users > 1 || known.is_of_pod {
                known.users = known.users.saturating_sub(1);
                continue;
            }
            let address = known.address;
            let gone = match disks {
                Some(disks) => disks.detach(address, !known.is_doubtful).await,
                None => Ok(()),
            };
            let Err(error) = gone else {
                table.remove(&id);
                continue;
            };
            warn!(%error, %address, "a disk does not go");
            let again = std::mem::replace(&mut known.is_stuck, true);
            container.hold_disk(id);
            let error = GuestError::new(ErrorCode::FailedPrecondition, "disk", error);
            let again = again || matches!(&outcome, Err(Stuck { again: true, .. }));
            outcome = Err(Stuck { error, again });
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Purpose;

    #[test]
    fn a_disk_is_used_in_one_way_by_all_of_a_pod() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("disk");
        std::fs::write(&path, "x").unwrap();
        let wanted = |read_only, purpose| Wanted {
            host: Host::by_path(&path).unwrap(),
            read_only,
            purpose,
            what: String::new(),
        };
        let node = || Purpose::Node("/dev/x".into());
        let volume = |kind: &str| {
            let kind = kind.to_owned();
            Purpose::Volume(
                0,
                FileSystem {
                    kind,
                    ..FileSystem::default()
                },
            )
        };
        let known = |read_only, purpose: Purpose| Attached {
            address: Address::from(0),
            read_only,
            system: purpose.system().cloned(),
            users: 1,
            is_of_pod: false,
            is_doubtful: false,
            is_stuck: false,
        };
        let why = |known: Attached, other| known.refuses(&other).unwrap_or_default();
        let of = |read_only| wanted(read_only, node());
        assert_eq!(why(known(false, node()), of(false)), "");
        assert_eq!(why(known(false, node()), of(true)), "");
        let ext4 = wanted(true, volume("ext4"));
        assert_eq!(why(known(false, volume("ext4")), ext4.clone()), "");
        assert!(why(known(false, volume("xfs")), ext4.clone()).contains("another file system"));
        assert!(why(known(true, node()), of(false)).contains("read-only"));
        assert!(why(known(false, node()), ext4).contains("another way"));
        let stuck = Attached {
            is_stuck: true,
            ..known(false, node())
        };
        assert!(why(stuck, of(true)).contains("does not"));
    }
}
