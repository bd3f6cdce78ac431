//! Disks of the host that a container gets as disks of the VM: what asks for one, and who uses it.
//!
//! ```text
//!   linux.devices, type b ──────► node ───┐
//!   mountInfo.json of a volume ─► volume ─┼─► table: one disk for all containers of the pod ─► hypervisor::Disks
//!   rootfs mount of a device ───► root ───┤            the last user's end takes it away
//!   rootfs mounts of EROFS ─────► layers ─┤
//!   emptyDir of its own ────────► empty ──┘
//! ```
//!
//! Who asks is looked at before the VM boots, and what cannot be is refused by name then. A disk that the
//! host itself uses (mounted, or a part of a volume group) is refused: two kernels that write to one file
//! system destroy it.

pub mod described;
mod direct;
pub(crate) mod empty;
mod host;
mod node;
mod table;

use agent_api::agent::{Device, FSGroup, Storage};
use agent_api::types::FSGroupChangePolicy;
use agent_api::{ErrorCode, GuestError};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use hypervisor::Address;
use thiserror::Error;

pub use host::{Host, HostError, Id};
pub use table::Table;

use crate::config::Config;
use crate::rootfs::{GUEST_BUNDLES, Layers, Source};
use crate::spec::Spec;
use crate::spec::amend::HostBind;
use crate::spec::group::Role;

/// The driver of the agent: a unit of the VM's SCSI controller.
const DRIVER: &str = "scsi";
/// Where the guest mounts volumes that are disks: the place that Kata's agent knows.
const GUEST_VOLUMES: &str = "/run/kata-containers/sandbox/storage";

/// A disk that a container is to have.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// What it is on the host.
    pub host: Host,
    /// Whether this container may not write to it.
    pub read_only: bool,
    /// What it is for.
    pub purpose: Purpose,
    /// What asks for it, for those who read why it cannot be had.
    pub what: String,
}

/// What a device that a container may not write to is told to the guest with.
const READ_ONLY: &str = "ro";

/// What a disk is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Purpose {
    /// The container's device of this path.
    Node(String),
    /// The file system that the mount of this index has.
    Volume(usize, FileSystem),
    /// The same of an emptyDir, which is the pod's until its end; where it is there, a part of it is mounted.
    EmptyDir(usize, FileSystem, Option<Storage>),
    /// The container's root.
    Root(FileSystem),
    /// One of the layers of it, the highest first; other VMs may read it, too.
    Lower(FileSystem),
    /// Where what is written to it goes.
    Upper(FileSystem),
}

/// A file system on a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Its type.
    pub kind: String,
    /// Its options.
    pub options: Vec<String>,
    /// The group of the pod to which it is given.
    pub group: Option<Group>,
    /// How the guest decrypts it, as the agent is told it; nothing where it is in the clear.
    pub encryption: Vec<String>,
}

/// A group, and whether the top's being the group's is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    id: u32,
    on_mismatch: bool,
}

/// Why a container cannot have a disk.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Nobody covers it in a TEE.
    #[error(
        "{0}: a block device of the host cannot go into a confidential guest as it is, for what is on it is the host's to read and to change: use a direct volume with encryptionKey in its metadata, or remove it"
    )]
    Confidential(String),
    /// The operator gives none.
    #[error(
        "{0}: disable_block_device_use is set in [hypervisor.qemu]: unset it, or remove the device"
    )]
    Disabled(String),
    /// Of the host's device.
    #[error("{what}: {source}")]
    Host {
        /// What asks for it.
        what: String,
        /// Why not.
        source: HostError,
    },
    /// A device's place.
    #[error("device {0}: a node can only be made below /dev: give the device another path")]
    Place(String),
    /// The description of a direct volume.
    #[error("direct volume at {destination} ({file}): {why}")]
    Direct {
        /// Where it is mounted.
        destination: String,
        /// The file that describes it.
        file: String,
        /// Why not.
        why: String,
    },
}

impl DiskError {
    /// As it is answered.
    #[must_use]
    pub fn told(self) -> GuestError {
        let code = match self {
            Self::Place(_) | Self::Direct { .. } => ErrorCode::InvalidArgument,
            _ => ErrorCode::FailedPrecondition,
        };
        GuestError::new(code, "disk", self)
    }
}

/// The disks that a container asks for: as devices, as volumes, as its root. Mounts of such volumes are the
/// guest's afterwards.
///
/// # Errors
/// [`DiskError`] names the device or the mount.
pub fn plan(
    config: &Config,
    role: &Role,
    source: &Source,
    spec: &mut Spec,
) -> Result<Vec<Wanted>, GuestError> {
    // It runs nothing.
    if *role == Role::Sandbox {
        return Ok(Vec::new());
    }
    find(config, source, spec).map_err(DiskError::told)
}

fn find(config: &Config, source: &Source, spec: &mut Spec) -> Result<Vec<Wanted>, DiskError> {
    let blocks = spec.linux.iter().flat_map(|linux| &linux.devices);
    let mut blocks = blocks.filter(|device| device.kind == node::BLOCK);
    if let Some(first) = blocks.next() {
        check(config, format!("device {}", first.path), false)?;
    }
    let mut wanted = Vec::new();
    if let Source::Disk(path, system) = source {
        wanted.push(root(path, system.clone())?);
    }
    if let Source::Layers(layers) = source {
        wanted.extend(stack_disks(layers)?);
    }
    wanted.extend(node::plan(spec)?);
    wanted.extend(direct::plan(config, spec)?);
    Ok(wanted)
}

/// The host's mounts without those that a disk takes the place of.
#[must_use]
pub fn without_volumes(binds: Vec<HostBind>, disks: &[Wanted]) -> Vec<HostBind> {
    let is_disk = |bind: &HostBind| {
        let mut volumes = disks.iter().map(|disk| &disk.purpose);
        volumes.any(|purpose| matches!(purpose, Purpose::Volume(index, _) if *index == bind.index))
    };
    binds.into_iter().filter(|bind| !is_disk(bind)).collect()
}

/// The disk of a root file system.
fn root(path: &str, system: FileSystem) -> Result<Wanted, DiskError> {
    let what = || format!("root file system on {path}");
    let host = Host::by_path(path.as_ref()).map_err(|source| DiskError::Host {
        what: what(),
        source,
    })?;
    let read_only = system.is_read_only() || host.is_read_only;
    Ok(Wanted {
        host,
        read_only,
        purpose: Purpose::Root(system),
        what: what(),
    })
}

/// The disks of a root file system of layers.
fn stack_disks(layers: &Layers) -> Result<Vec<Wanted>, DiskError> {
    let one = |path: &String, kind: &str, is_lower: bool| {
        let what = || format!("root file system of {path}");
        let host = Host::by_path(path.as_ref()).map_err(|source| DiskError::Host {
            what: what(),
            source,
        })?;
        let system = FileSystem {
            kind: kind.to_owned(),
            options: is_lower.then(|| "ro".to_owned()).into_iter().collect(),
            ..FileSystem::default()
        };
        Ok(Wanted {
            host,
            read_only: is_lower,
            what: what(),
            purpose: match is_lower {
                true => Purpose::Lower(system),
                false => Purpose::Upper(system),
            },
        })
    };
    let lowers = layers.lowers.iter().map(|path| one(path, "erofs", true));
    let upper = layers.writable.iter().map(|path| one(path, "ext4", false));
    lowers.chain(upper).collect()
}

/// What the guest makes of layers that it has mounted: Kata's driver, and our options.
#[must_use]
pub fn stack(container: &str, lowers: &[String], upper: Option<&str>) -> Storage {
    let mut options = vec![format!("lowerdir={}", lowers.join(":"))];
    if let Some(upper) = upper {
        options.push(format!("upperdir={upper}/upper"));
        options.push(format!("workdir={upper}/work"));
    }
    Storage {
        driver: "overlayfs".to_owned(),
        source: "overlay".to_owned(),
        fstype: "overlay".to_owned(),
        options,
        mount_point: format!("{GUEST_BUNDLES}/{container}/rootfs"),
        ..Default::default()
    }
}

/// Whether guests may have disks of the host, which the guest decrypts or not.
fn check(config: &Config, what: String, is_encrypted: bool) -> Result<(), DiskError> {
    if config.tee.is_confidential() && !is_encrypted {
        return Err(DiskError::Confidential(what));
    }
    match config.vm.disable_block_devices {
        true => Err(DiskError::Disabled(what)),
        false => Ok(()),
    }
}

impl FileSystem {
    /// Whether nobody may write to it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    fn storage(&self, address: Address, point: String) -> Storage {
        let group = self.group.map(|group| FSGroup {
            group_id: group.id,
            group_change_policy: match group.on_mismatch {
                true => FSGroupChangePolicy::OnRootMismatch.into(),
                false => FSGroupChangePolicy::Always.into(),
            },
            ..Default::default()
        });
        Storage {
            driver: DRIVER.to_owned(),
            source: address.to_string(),
            fstype: self.kind.clone(),
            options: self.options.clone(),
            driver_options: self.encryption.clone(),
            mount_point: point,
            fs_group: group.into(),
            ..Default::default()
        }
    }
}

impl Purpose {
    /// The file system, of what is none as a device.
    fn system(&self) -> Option<&FileSystem> {
        match self {
            Self::Node(_) => None,
            Self::Volume(_, system)
            | Self::EmptyDir(_, system, _)
            | Self::Root(system)
            | Self::Lower(system)
            | Self::Upper(system) => Some(system),
        }
    }
}

impl Wanted {
    /// Whether nobody else on the host may use it meanwhile: what is only read is anybody's.
    fn is_alone(&self) -> bool {
        !matches!(self.purpose, Purpose::Lower(_))
    }

    /// Whether it is the pod's, whose containers come and go.
    fn is_of_pod(&self) -> bool {
        matches!(self.purpose, Purpose::EmptyDir(..))
    }

    /// What the guest is asked for, in this order, and what of the specification is the guest's then.
    pub fn order(&self, address: Address, spec: &mut Spec) -> Vec<Order> {
        let first = match &self.purpose {
            Purpose::Node(path) => Order::Device(Device {
                id: address.to_string(),
                type_: DRIVER.to_owned(),
                container_path: path.clone(),
                // Another container of the pod may write to it.
                options: self
                    .read_only
                    .then(|| READ_ONLY.to_owned())
                    .into_iter()
                    .collect(),
                ..Default::default()
            }),
            Purpose::Volume(index, system) => {
                let point = point(address);
                if let Some(mount) = spec.mounts.get_mut(*index) {
                    mount.source.clone_from(&point);
                }
                Order::Storage(system.storage(address, point))
            }
            Purpose::EmptyDir(index, system, part) => {
                let whole = Storage {
                    shared: true,
                    ..system.storage(address, point(address))
                };
                let part = part.clone().map(|part| Storage {
                    source: whole.mount_point.clone(),
                    ..part
                });
                if let Some(mount) = spec.mounts.get_mut(*index) {
                    let mounted = part.as_ref().unwrap_or(&whole);
                    mount.source.clone_from(&mounted.mount_point);
                }
                let all = [Some(whole), part].into_iter().flatten();
                return all.map(Order::Storage).collect();
            }
            Purpose::Root(system) => {
                let point = point(address);
                spec.root.get_or_insert_default().path.clone_from(&point);
                Order::Storage(system.storage(address, point))
            }
            Purpose::Lower(system) | Purpose::Upper(system) => {
                Order::Storage(system.storage(address, point(address)))
            }
        };
        vec![first]
    }
}

/// Where the guest mounts a disk: not in the container's own directory, which is emptied when it goes.
#[must_use]
pub fn point(address: Address) -> String {
    format!("{GUEST_VOLUMES}/{}", URL_SAFE.encode(address.to_string()))
}

/// What the guest is asked for.
#[derive(Debug)]
pub enum Order {
    /// A device of the container.
    Device(Device),
    /// Something that is mounted first.
    Storage(Storage),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tee;

    #[test]
    fn a_volume_and_a_root_are_mounted_where_nothing_is_emptied() {
        let mut spec = Spec {
            mounts: vec![crate::spec::oci::Mount::default()],
            ..Spec::default()
        };
        let system = FileSystem {
            kind: "ext4".into(),
            options: vec!["ro".into()],
            group: Some(Group {
                id: 7,
                on_mismatch: true,
            }),
            encryption: vec!["encryption_key=ephemeral".into()],
        };
        let at = "/run/kata-containers/sandbox/storage/Mzow";
        let disk = tempfile::NamedTempFile::new().unwrap();
        let wanted = |purpose| Wanted {
            host: Host::by_path(disk.path()).unwrap(),
            read_only: true,
            purpose,
            what: String::new(),
        };
        let only = |orders: Vec<Order>| <[Order; 1]>::try_from(orders).unwrap();
        let [volume] =
            only(wanted(Purpose::Volume(0, system.clone())).order(Address::from(3), &mut spec));
        let Order::Storage(volume) = volume else {
            panic!("{volume:?}")
        };
        assert_eq!(
            (volume.driver.as_str(), volume.source.as_str()),
            ("scsi", "3:0")
        );
        assert_eq!(
            (volume.mount_point.as_str(), spec.mounts[0].source.as_str()),
            (at, at)
        );
        assert_eq!(volume.fs_group.group_id, 7);
        assert_eq!(volume.driver_options, ["encryption_key=ephemeral"]);
        let [root] = only(wanted(Purpose::Root(system)).order(Address::from(3), &mut spec));
        assert!(matches!(root, Order::Storage(root) if root.mount_point == at));
        assert_eq!(spec.root.as_ref().unwrap().path, at);
        let [node] =
            only(wanted(Purpose::Node("/dev/x".into())).order(Address::from(3), &mut spec));
        let Order::Device(node) = node else {
            panic!("{node:?}")
        };
        assert_eq!(
            (node.id.as_str(), node.container_path.as_str()),
            ("3:0", "/dev/x")
        );
        assert_eq!(node.options, ["ro"]);
    }

    #[test]
    fn the_first_that_asks_is_named_where_no_disk_may_be() {
        let mut config = Config::default();
        check(&config, "device /dev/x".into(), false).unwrap();
        config.vm.disable_block_devices = true;
        let error = check(&config, "device /dev/x".into(), true).unwrap_err();
        assert!(error.to_string().contains("disable_block_device_use"));
        config.tee = Tee::Sample;
        config.vm.disable_block_devices = false;
        check(&config, "device /dev/x".into(), true).unwrap();
        let error = check(&config, "device /dev/x".into(), false).unwrap_err();
        assert!(error.to_string().starts_with("device /dev/x: "), "{error}");
        assert_eq!(error.told().code, ErrorCode::FailedPrecondition);
    }
}
