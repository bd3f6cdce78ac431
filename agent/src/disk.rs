//! Disks of the host that come and go while the guest runs, for volumes and root file systems.
//!
//! They are units of one SCSI controller (`hypervisor::disk` says why), named by target and unit as Kata
//! names them: `3:0`. A disk is looked for when a container needs it, and taken out of the kernel, with all
//! that it had not written yet, when the last one lets go of it; then the host takes it away.
//!
//! A confidential guest takes none: what is on such a disk is the host's to read and to change.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::{ErrorCode, GuestError, agent, oci};
use oci_spec::runtime::LinuxDevice;
use rustix::fs::OFlags;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::cgroup::Access;
use crate::fault::{OrFail, invalid, unimplemented};
use crate::module::{self, Ability};
use crate::places::Places;
use crate::storage::Held;

/// Their driver, as storages and devices name it.
pub const DRIVER: &str = "scsi";
/// The option of a device that a container may not write to, whoever else may.
const READ_ONLY: &str = "ro";
/// The image's name for the controller's modules.
const ABILITY: &str = "scsi";
/// The controller's number (virtio 1.3 §5).
const CONTROLLER: &str = "0x0008";
const PHASE: &str = "disk";
const HOSTS: &str = "/sys/class/scsi_host";
const DISKS: &str = "/sys/class/scsi_disk";
const BLOCKS: &str = "/sys/class/block";
/// Disks in use at once.
const MAX_DISKS: usize = 256;
/// How long the kernel may take to see a disk that the host has added.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a file system that was unmounted may take to let go of its disk.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
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
        let shown: String = text.chars().take(32).collect();
        parsed.ok_or_else(|| invalid(PHASE, format!("{shown:?} is no disk: use target:unit")))
    }

    /// Whether a name of the kernel's (host:channel:target:unit) is this one's.
    fn is(self, name: &str) -> bool {
        let Self { target, unit } = self;
        name.ends_with(&format!(":0:{target}:{unit}"))
    }
}

/// The disks in use; none in a guest that takes none.
#[derive(Debug)]
pub struct Disks(Option<Known>);

#[derive(Debug)]
struct Known {
    modules: Mutex<Option<Ability>>,
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
    pub fn new(is_confidential: bool, modules: Ability) -> Self {
        Self((!is_confidential).then(|| Known {
            modules: Mutex::new(Some(modules)),
            used: Places::new(MAX_DISKS),
        }))
    }

    fn known(&self) -> Result<&Known, GuestError> {
        self.0.as_ref().ok_or_else(|| {
            let text = "a confidential guest takes no disk of the host: what is on it is the host's to \
                        read and to change";
            GuestError::new(ErrorCode::FailedPrecondition, PHASE, text)
        })
    }

    /// Finds a disk, and counts one use more.
    ///
    /// # Errors
    ///
    /// The guest is confidential, the address is none, no disk comes there in time, or the one that is in use
    /// there has gone.
    pub async fn acquire(&self, address: &str) -> Result<Disk, GuestError> {
        let known = self.known()?;
        let address = Address::parse(address)?;
        let place = known.used.place(&address).ok_or_else(|| {
            let text = format!("more than {MAX_DISKS} disks");
            GuestError::new(ErrorCode::ResourceExhausted, PHASE, text)
        })?;
        let acquired = known.acquire(&mut *place.lock().await, address).await;
        drop(place);
        known.used.sweep(&address);
        acquired
    }

    /// Ends one use; after the last the kernel forgets the disk.
    ///
    /// # Errors
    ///
    /// The disk is in use still, or what was not written cannot be. It is tried again with the next call.
    pub async fn release(&self, address: &str) -> Result<(), GuestError> {
        let (known, parsed) = (self.known()?, Address::parse(address)?);
        let Some(place) = known.used.find(&parsed) else {
            return Ok(());
        };
        let released = release(&mut *place.lock().await).await;
        drop(place);
        known.used.sweep(&parsed);
        released.or_internal(PHASE, format!("disk {address} is not let go"))
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
            let disk = self.acquire(&device.id).await?;
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
}

impl Known {
    async fn acquire(&self, place: &mut Option<Use>, address: Address) -> Result<Disk, GuestError> {
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
        if let Some(modules) = self.modules.lock().await.take() {
            modules.load().or_internal(PHASE, "load")?;
        }
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

/// Has the kernel look at one address of every controller.
fn scan(hosts: &Path, address: Address) -> io::Result<()> {
    let Address { target, unit } = address;
    for host in fs::read_dir(hosts)? {
        fs::write(host?.path().join("scan"), format!("0 {target} {unit}"))?;
    }
    Ok(())
}

async fn arrived(disks: &Path, address: Address) -> Result<Disk, GuestError> {
    let until = Instant::now() + ARRIVAL_TIMEOUT;
    loop {
        if let Some(disk) = find(disks, address) {
            return Ok(disk);
        }
        if Instant::now() >= until {
            let Address { target, unit } = address;
            let text = format!("no disk came at {target}:{unit}: the shim's log has QEMU's words");
            return Err(GuestError::new(ErrorCode::DeadlineExceeded, PHASE, text));
        }
        sleep(POLL).await;
    }
}

/// The disk of an address, once it has a node.
fn find(disks: &Path, address: Address) -> Option<Disk> {
    let entries = fs::read_dir(disks).ok()?.flatten();
    let is_it = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|n| address.is(n));
    let unit = entries.into_iter().find(is_it)?.path();
    let block = fs::read_dir(unit.join("device/block"))
        .ok()?
        .flatten()
        .next()?;
    let number = fs::read_to_string(block.path().join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some(Disk {
        name: block.file_name().into_string().ok()?,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// Waits until nothing is mounted from the disk, writes what is not written, and has the kernel forget it.
async fn let_go(disk: Disk) -> io::Result<()> {
    let until = Instant::now() + RELEASE_TIMEOUT;
    let flags = i32::try_from(OFlags::EXCL.bits()).map_err(io::Error::other)?;
    let alone = loop {
        // A mount is gone a moment after the last process that saw it.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(disk.node());
        match opened {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                sleep(POLL).await;
            }
            // The host took it away, with the node.
            Err(error) if is_gone(&error) => return Ok(()),
            other => break other?,
        }
    };
    // A disk may be slow.
    let forget = move || {
        let written = alone.sync_all();
        drop(alone);
        let delete = Path::new(BLOCKS).join(&disk.name).join("device/delete");
        match fs::write(delete, "1") {
            Err(error) if !is_gone(&error) => Err(error),
            _ => written,
        }
    };
    tokio::task::spawn_blocking(forget)
        .await
        .map_err(io::Error::other)?
}

fn is_gone(error: &io::Error) -> bool {
    const NO_DEVICE: i32 = rustix::io::Errno::NXIO.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_DEVICE)
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
        for bad in ["", "3", "3:", "256:0", "1:65536", "1:0:0", "02/00", "-1:0"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_confidential_guest_takes_no_disk() {
        let disks = Disks::new(true, Ability::default());
        let error = disks.acquire("0:0").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        assert!(error.message.contains("confidential"), "{error}");
    }

    #[test]
    fn a_disk_is_found_by_its_address_once_it_has_a_node() {
        let root = tempfile::tempdir().unwrap();
        let address = Address::parse("3:0").unwrap();
        for name in ["0:0:13:0", "0:0:3:0"] {
            fs::create_dir_all(root.path().join(name).join("device")).unwrap();
        }
        assert_eq!(find(root.path(), address), None);
        let block = root.path().join("0:0:3:0/device/block/sdb");
        fs::create_dir_all(&block).unwrap();
        assert_eq!(find(root.path(), address), None);
        fs::write(block.join("dev"), "8:16\n").unwrap();
        let disk = find(root.path(), address).unwrap();
        assert_eq!((disk.major, disk.minor), (8, 16));
        assert_eq!(disk.node(), Path::new("/dev/sdb"));
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
        let disks = Disks::new(false, Ability::default());
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
