//! Disks of the host that come and go while the guest runs, for volumes and root file systems.
//!
//! They are units of one SCSI controller (`hypervisor::disk` says why), named by target and unit as Kata
//! names them: `3:0`. A disk is looked for when a container needs it, and taken out of the kernel, with all
//! that it had not written yet, when the last one lets go of it; then the host takes it away.
//!
//! A confidential guest takes those alone that it encrypts itself: what is on such a disk is the host's to read and
//! to change.

mod kernel;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use agent_api::{ErrorCode, GuestError, agent, oci};
use oci_spec::runtime::LinuxDevice;
use serde_json::json;
use tokio::sync::Mutex;

use crate::cgroup::Access;
use crate::crypt;
use crate::fault::{OrFail, invalid, unimplemented};
use crate::module::{self, Ability};
use crate::places::Places;
use crate::storage::Held;
use kernel::{DISKS, HOSTS, arrived, find, let_go, scan};

/// Their driver, as storages and devices name it.
pub const DRIVER: &str = "scsi";
/// The option of a device that a container may not write to, whoever else may.
const READ_ONLY: &str = "ro";
/// The image's name for the controller's modules.
const ABILITY: &str = "scsi";
/// The file system of layers, and the image's name for its module.
const LAYER: &str = "erofs";
/// The controller's number (virtio 1.3 §5).
const CONTROLLER: &str = "0x0008";
const PHASE: &str = "disk";
/// Disks in use at once.
const MAX_DISKS: usize = 256;
/// What a node of a device is made with where nothing is said.
const NODE_MODE: u32 = 0o660;

/// The controller's modules, where `sys` shows a controller.
///
/// # Errors
///
/// Names the module.
pub fn ability(sys: &Path) -> Result<Ability, module::Error> {
    Ability::of_device(sys, CONTROLLER, ABILITY)
}

/// What reads layers of images on its disks, where `sys` shows a controller.
///
/// # Errors
///
/// Names the module.
pub fn layers(sys: &Path) -> Result<Ability, module::Error> {
    Ability::of_device(sys, CONTROLLER, LAYER)
}

/// What encrypts its disks, where `sys` shows a controller.
///
/// # Errors
///
/// Names the module.
pub fn encryption(sys: &Path) -> Result<Ability, module::Error> {
    Ability::of_device(sys, CONTROLLER, crypt::ABILITY)
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    name: String,
    major: u32,
    minor: u32,
}

impl Disk {
    /// Its node in the guest.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// Target and unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Address {
    target: u8,
    unit: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}:{}", self.target, self.unit)
    }
}

impl Address {
    fn parse(text: &str) -> Result<Self, GuestError> {
        let parsed = text.split_once(':').and_then(|(target, unit)| {
            Some(Self {
                target: target.parse().ok()?,
                unit: unit.parse().ok()?,
            })
        });
        // By one spelling alone: what is named twice would be taken for two disks.
        let parsed = parsed.filter(|parsed| parsed.to_string() == text);
        let shown: String = text.chars().take(32).collect();
        parsed.ok_or_else(|| invalid(PHASE, format!("{shown:?} is no disk: use target:unit")))
    }

    /// Whether a name of the kernel's (host:channel:target:unit) is this one's.
    fn is(self, name: &str) -> bool {
        let Self { target, unit } = self;
        name.ends_with(&format!(":0:{target}:{unit}"))
    }
}

/// The disks in use.
#[derive(Debug)]
pub struct Disks {
    is_confidential: bool,
    modules: Mutex<Option<Ability>>,
    /// What layers of images need besides.
    layers: Mutex<Option<Ability>>,
    used: Places<Address, Use>,
}

#[derive(Debug)]
struct Use {
    /// None of a disk that nobody uses and that the kernel did not let go of.
    count: usize,
    disk: Disk,
}

impl Disks {
    /// Those of a guest that has just started, with what its controller needs.
    #[must_use]
    pub fn new(is_confidential: bool, modules: Ability, layers: Ability) -> Self {
        Self {
            is_confidential,
            modules: Mutex::new(Some(modules)),
            layers: Mutex::new(Some(layers)),
            used: Places::new(MAX_DISKS),
        }
    }

    /// Finds a disk, and counts one use more.
    ///
    /// # Errors
    ///
    /// The guest is confidential and the disk is not to be `encrypted`, the address is none, no disk comes there in
    /// time, or the one that is in use there has gone.
    pub async fn acquire(&self, address: &str, encrypted: bool) -> Result<Disk, GuestError> {
        if self.is_confidential && !encrypted {
            let text = "a confidential guest takes a disk of the host alone where it encrypts it \
                        (encryption_key): what is on it is the host's to read and to change";
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        }
        let address = Address::parse(address)?;
        let place = self.used.place(&address).ok_or_else(|| {
            let text = format!("more than {MAX_DISKS} disks");
            GuestError::new(ErrorCode::ResourceExhausted, PHASE, text)
        })?;
        let acquired = self.acquire_at(&mut *place.lock().await, address).await;
        drop(place);
        self.used.sweep(&address);
        acquired
    }

    /// Loads what a file system of a disk needs, the first time.
    ///
    /// # Errors
    ///
    /// Names the module.
    pub async fn prepare(&self, file_system: &str) -> Result<(), GuestError> {
        match file_system {
            LAYER => load(&self.layers).await,
            _ => Ok(()),
        }
    }

    /// Ends one use; after the last the kernel forgets the disk.
    ///
    /// # Errors
    ///
    /// The disk is in use still, or what was not written cannot be. It is tried again with the next call.
    pub async fn release(&self, address: &str) -> Result<(), GuestError> {
        let parsed = Address::parse(address)?;
        let Some(place) = self.used.find(&parsed) else {
            return Ok(());
        };
        let released = release(&mut *place.lock().await).await;
        drop(place);
        self.used.sweep(&parsed);
        released.or_internal(PHASE, format!("disk {address} is not let go"))
    }

    /// Looks how large a disk has become, and waits until it has `bytes`.
    ///
    /// # Errors
    ///
    /// The address is none, there is no such disk, or it stays smaller.
    pub async fn rescan(&self, address: &str, bytes: u64) -> Result<(), GuestError> {
        kernel::grown(Address::parse(address)?, bytes).await
    }

    /// The nodes that a container is to have: those of its specification, with the numbers that the request's
    /// devices have in this guest.
    ///
    /// # Errors
    ///
    /// A device is of another kind, or one of the two lists has what the other lacks.
    pub async fn nodes(
        &self,
        devices: &[agent::Device],
        wanted: &mut Vec<oci::LinuxDevice>,
        held: &mut Held,
    ) -> Result<Vec<Node>, GuestError> {
        let mut nodes = Vec::new();
        for device in devices {
            let path = &device.container_path;
            if device.type_ != DRIVER {
                let text = format!("device {path}: type {:?}: use {DRIVER}", device.type_);
                return Err(unimplemented(PHASE, text));
            }
            let is_read_only = is_read_only(device)?;
            let at = wanted.iter().position(|node| node.Path == *path);
            let at = at.ok_or_else(|| {
                invalid(PHASE, format!("device {path} is not in OCI.Linux.Devices"))
            })?;
            let node = wanted.remove(at);
            let disk = self.acquire(&device.id, false).await?;
            held.disks.push(device.id.clone());
            nodes.push(Node {
                device: to_node(&node, &disk)?,
                access: Access {
                    major: disk.major,
                    minor: disk.minor,
                    writes: !is_read_only,
                },
            });
        }
        Ok(nodes)
    }

    async fn acquire_at(
        &self,
        place: &mut Option<Use>,
        address: Address,
    ) -> Result<Disk, GuestError> {
        let there = find(Path::new(DISKS), address);
        match place {
            Some(used) if used.count > 0 => {
                // The host may have taken it away, and put another in its place.
                if there.as_ref() != Some(&used.disk) {
                    let text = format!(
                        "disk {address} went away while a container has it: remove that container first"
                    );
                    return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
                }
                used.count += 1;
                return Ok(used.disk.clone());
            }
            Some(_) => release(place)
                .await
                .or_internal(PHASE, "an earlier disk is not let go")?,
            // What is there before it is looked for is an earlier one, under whose name the next would be taken.
            None => {
                if let Some(earlier) = there {
                    let_go(earlier)
                        .await
                        .or_internal(PHASE, "an earlier disk is not let go")?;
                }
            }
        }
        load(&self.modules).await?;
        // The kernel asks the device, and waits for the answer.
        tokio::task::spawn_blocking(move || scan(Path::new(HOSTS), address))
            .await
            .or_internal(PHASE, "look for disks")?
            .or_internal(PHASE, "look for disks")?;
        let disk = arrived(Path::new(DISKS), address).await?;
        *place = Some(Use {
            count: 1,
            disk: disk.clone(),
        });
        Ok(disk)
    }
}

/// Loads modules that are not loaded yet. Who comes meanwhile waits.
async fn load(modules: &Mutex<Option<Ability>>) -> Result<(), GuestError> {
    let mut modules = modules.lock().await;
    let Some(modules) = modules.take() else {
        return Ok(());
    };
    tokio::task::spawn_blocking(|| modules.load())
        .await
        .or_internal(PHASE, "load")?
        .or_internal(PHASE, "load")
}

async fn release(place: &mut Option<Use>) -> io::Result<()> {
    let Some(used) = place else { return Ok(()) };
    used.count = used.count.saturating_sub(1);
    if used.count > 0 {
        return Ok(());
    }
    let_go(used.disk.clone()).await?;
    *place = None;
    Ok(())
}

/// A node of a container, and what its processes may do with the disk.
#[derive(Debug)]
pub struct Node {
    /// As libcontainer makes it.
    pub device: LinuxDevice,
    /// What the device filter lets through.
    pub access: Access,
}

/// What a request's device says of writing: nothing, or [`READ_ONLY`].
fn is_read_only(device: &agent::Device) -> Result<bool, GuestError> {
    match device.options.as_slice() {
        [] => Ok(false),
        [option] if option == READ_ONLY => Ok(true),
        _ => {
            let path = &device.container_path;
            let text = format!("device {path}: the one option is {READ_ONLY}");
            Err(unimplemented(PHASE, text))
        }
    }
}

/// The specification's node for a disk of this guest.
fn to_node(asked: &oci::LinuxDevice, disk: &Disk) -> Result<LinuxDevice, GuestError> {
    if asked.Type != "b" || !Path::new(&asked.Path).starts_with("/dev") {
        let text = format!("device {} is no block device below /dev", asked.Path);
        return Err(invalid(PHASE, text));
    }
    let mode = match asked.FileMode & 0o7777 {
        0 => NODE_MODE,
        mode => mode,
    };
    let node = json!({
        "path": asked.Path, "type": "b", "major": disk.major, "minor": disk.minor,
        "fileMode": mode, "uid": asked.UID, "gid": asked.GID,
    });
    serde_json::from_value(node).map_err(|error| invalid(PHASE, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_target_and_unit() {
        let address = Address::parse("3:0").unwrap();
        assert_eq!((address.target, address.unit), (3, 0));
        assert!(address.is("0:0:3:0") && address.is("12:0:3:0"));
        assert!(!address.is("0:0:13:0") && !address.is("0:1:3:0") && !address.is("3:0"));
        for bad in [
            "03:0", "+3:0", "3:00", "", "3", "3:", "256:0", "1:65536", "1:0:0", "02/00", "-1:0",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_confidential_guest_takes_no_disk_that_it_does_not_encrypt() {
        let disks = Disks::new(true, Ability::default(), Ability::default());
        let error = disks.acquire("0:0", false).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        // What is encrypted is looked for.
        let error = disks.acquire("x", true).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        let error = disks.acquire("0:0", false).await.unwrap_err();
        assert!(error.message.contains("confidential"), "{error}");
    }

    #[test]
    fn a_node_has_the_guests_numbers_and_the_pods_owner() {
        let disk = Disk {
            name: "sdb".into(),
            major: 8,
            minor: 16,
        };
        let mut asked = oci::LinuxDevice {
            Path: "/dev/xvda".into(),
            Type: "b".into(),
            Major: 7,
            Minor: 1,
            GID: 6,
            ..Default::default()
        };
        let node = to_node(&asked, &disk).unwrap();
        assert_eq!((node.major(), node.minor()), (8, 16));
        assert_eq!((node.file_mode(), node.gid()), (Some(NODE_MODE), Some(6)));
        asked.Path = "/data".into();
        assert!(to_node(&asked, &disk).is_err());
        asked.Path = "/dev/xvda".into();
        asked.Type = "c".into();
        assert!(to_node(&asked, &disk).is_err());
    }

    #[tokio::test]
    async fn a_device_that_the_specification_lacks_is_refused() {
        let disks = Disks::new(false, Ability::default(), Ability::default());
        let device = |kind: &str| agent::Device {
            id: "0:0".into(),
            type_: kind.into(),
            container_path: "/dev/x".into(),
            ..Default::default()
        };
        for (kind, told) in [("scsi", "not in OCI"), ("blk", "use scsi")] {
            let mut held = Held::default();
            let refused = disks
                .nodes(&[device(kind)], &mut Vec::new(), &mut held)
                .await;
            let error = refused.unwrap_err();
            assert!(error.message.contains(told), "{error}");
        }
    }
}
