//! What a virtual machine is to be. `VmSpec` is written by the caller; `CheckedSpec` is the same
//! after every bound was checked, and the only form that the rest of the crate accepts.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::growth::{self, Growth, GrowthError};
use crate::nic::{self, Nic, NicError};
use crate::tee::{self, Confidential, Unfit};

/// The most virtual processors of one VM.
pub const MAX_VCPUS: u32 = 64;
/// The least guest memory: below it a stock kernel and its initrd do not fit.
pub const MIN_MEMORY_MIB: u32 = 64;
/// The most guest memory, 1 TiB.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// The most disks. A microvm has 24 virtio-mmio slots, of which the other devices need a few.
pub const MAX_DISKS: usize = 16;
/// Longest serial of a virtio-blk device (virtio 1.3 §5.2.6.1, `VIRTIO_BLK_ID_BYTES`).
pub const MAX_SERIAL: usize = 20;
/// The largest scratch disk, 16 TiB: no file of ext4 is larger.
pub const MAX_SCRATCH_MIB: u32 = 16 << 20;
/// Longest virtio-fs tag (virtio 1.3 §5.11.4).
pub const MAX_TAG: usize = 36;
/// The longest kernel command line that x86 accepts (`COMMAND_LINE_SIZE`), without its NUL.
pub const MAX_KERNEL_CMDLINE: usize = 2047;
/// The longest name of a VM.
pub const MAX_NAME: usize = 64;
/// The port on which the host waits for the guest unless the spec says otherwise.
pub const DEFAULT_HOST_PORT: u32 = 1030;

/// The machine type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// PCI Express, every device there is. The choice for confidential guests.
    #[default]
    Q35,
    /// Virtio-mmio only: boots faster and takes less memory.
    Microvm,
}

/// Which accelerator to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM where it can run a stock kernel, else emulation.
    #[default]
    Auto,
    /// KVM or an error.
    Kvm,
    /// Emulation, also where KVM works.
    Tcg,
}

/// A disk, always read-only: what a guest writes goes to its [`Scratch`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image file or block device.
    pub path: PathBuf,
    /// How the image is laid out.
    #[serde(default)]
    pub format: DiskFormat,
    /// The serial by which the guest finds the disk, at most [`MAX_SERIAL`] bytes.
    pub serial: String,
}

/// How a disk image is laid out. Only byte for byte: in the other formats an image can name files of
/// the host, and images come from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte.
    #[default]
    Raw,
}

/// A disk that is empty when the VM starts and gone when it has ended, however it ended. It has no name
/// in the file system, and takes only the room of what the guest wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scratch {
    /// The directory on whose file system it is.
    pub directory: PathBuf,
    /// Its size in MiB, 1 to [`MAX_SCRATCH_MIB`].
    pub mib: u32,
    /// The serial by which the guest finds the disk, at most [`MAX_SERIAL`] bytes.
    pub serial: String,
}

/// A directory of the host that a virtio-fs daemon serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedFs {
    /// The vhost-user socket on which the daemon listens already.
    pub socket: PathBuf,
    /// The tag by which the guest mounts it, at most [`MAX_TAG`] bytes.
    pub tag: String,
}

/// How host and guest are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Vsock {
    /// The kernel's vhost-vsock where the host has it, else the device in this process.
    #[default]
    Auto,
    /// The kernel's vhost-vsock, or an error.
    Kernel,
    /// The vhost-user device in this process.
    User,
}

/// What a VM is to be. Paths are those of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Shown in the process list and in log lines: ASCII letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The machine type.
    pub machine: Machine,
    /// The accelerator.
    pub accel: Accel,
    /// Virtual processors, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// How far it may grow while it runs.
    pub growth: Option<Growth>,
    /// Whether the guest can give memory back that it does not use.
    pub reclaims: bool,
    /// The kernel: an ELF `vmlinux` with the PVH note (fastest), or a bzImage.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: Option<PathBuf>,
    /// Words to add to the kernel command line, in this order, after those that the machine needs.
    pub kernel_params: Vec<String>,
    /// Disks, in this order.
    pub disks: Vec<Disk>,
    /// A disk for the guest to write to.
    pub scratch: Option<Scratch>,
    /// Whether disks may come and go while it runs.
    pub hot_disks: bool,
    /// Whether network interfaces may come while it runs; a microvm never has them.
    pub hot_nics: bool,
    /// Whether the kernel serves the network cards, where it can (`/dev/vhost-net`).
    pub vhost_net: bool,
    /// A shared directory.
    pub shared_fs: Option<SharedFs>,
    /// Network interfaces, in this order.
    pub nics: Vec<Nic>,
    /// How host and guest are connected.
    pub vsock: Vsock,
    /// The port on which the host accepts connections of the guest. The kernel's vhost-vsock has
    /// one port space for the whole host: where the port is taken, another is used and the guest
    /// is told with the word `cloister.host_port=`.
    pub host_port: u32,
    /// Where to write the guest's console besides the tail kept in memory. The guest chooses its
    /// content; the file stops growing at 8 MiB.
    pub console_log: Option<PathBuf>,
    /// An existing directory, QEMU's working directory.
    pub state_dir: PathBuf,
    /// Firmware in place of the machine's own (SeaBIOS, or qboot on a microvm).
    pub firmware: Option<PathBuf>,
    /// What keeps the host out of it.
    pub confidential: Option<Confidential>,
    /// The QEMU program: a path, or a name to be looked up in `PATH`.
    pub qemu: PathBuf,
}

impl VmSpec {
    /// A VM of one processor and 256 MiB with nothing but a kernel.
    #[must_use]
    pub fn new(name: &str, kernel: &Path, state_dir: &Path) -> Self {
        Self {
            name: name.to_owned(),
            machine: Machine::default(),
            accel: Accel::default(),
            vcpus: 1,
            memory_mib: 256,
            growth: None,
            reclaims: false,
            kernel: kernel.to_owned(),
            initrd: None,
            kernel_params: Vec::new(),
            disks: Vec::new(),
            scratch: None,
            hot_disks: false,
            hot_nics: false,
            vhost_net: true,
            shared_fs: None,
            nics: Vec::new(),
            vsock: Vsock::default(),
            host_port: DEFAULT_HOST_PORT,
            console_log: None,
            state_dir: state_dir.to_owned(),
            firmware: None,
            confidential: None,
            qemu: PathBuf::from("qemu-system-x86_64"),
        }
    }
}

/// Why a spec was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// The name has a character that does not belong, is empty or too long.
    #[error("VM name {name:?}: use 1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -")]
    Name {
        /// The name.
        name: String,
    },
    /// Too few or too many processors.
    #[error("{vcpus} virtual processors: use 1 to {MAX_VCPUS}")]
    Vcpus {
        /// As asked for.
        vcpus: u32,
    },
    /// Too little or too much memory.
    #[error("{memory_mib} MiB of guest memory: use {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")]
    Memory {
        /// As asked for.
        memory_mib: u32,
    },
    /// It may grow in a way in which it cannot.
    #[error(transparent)]
    Growth(#[from] GrowthError),
    /// It cannot be a confidential guest.
    #[error(transparent)]
    Confidential(#[from] Unfit),
    /// A file that the VM needs is not there.
    #[error("the {what} {path:?} is not {expected}")]
    Missing {
        /// What the file is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What should be at the path.
        expected: &'static str,
    },
    /// A path cannot be put on QEMU's command line.
    #[error("the {what} {path:?} is not valid UTF-8 or has a control character: rename it")]
    Path {
        /// What the file is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// Too many disks.
    #[error("{count} disks: at most {MAX_DISKS} are supported")]
    Disks {
        /// As asked for.
        count: usize,
    },
    /// A disk's serial is empty, too long, has an odd character or is not unique.
    #[error(
        "disk serial {serial:?}: use 1 to {MAX_SERIAL} of the characters A-Z a-z 0-9 . _ -, each serial once"
    )]
    Serial {
        /// The serial.
        serial: String,
    },
    /// A scratch disk of no size, or of more than a file can have.
    #[error("a scratch disk of {mib} MiB: use 1 to {MAX_SCRATCH_MIB}")]
    Scratch {
        /// As asked for.
        mib: u32,
    },
    /// The virtio-fs tag is empty, too long or has an odd character.
    #[error("virtio-fs tag {tag:?}: use 1 to {MAX_TAG} of the characters A-Z a-z 0-9 . _ -")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A kernel parameter is not one printable word.
    #[error("kernel parameter {param:?} is not one printable ASCII word")]
    KernelParam {
        /// The parameter.
        param: String,
    },
    /// The kernel command line would be cut short by the kernel.
    #[error(
        "the kernel parameters have {len} bytes, of which the kernel keeps {MAX_KERNEL_CMDLINE}: remove some"
    )]
    KernelCmdline {
        /// Bytes of all parameters.
        len: usize,
    },
    /// The network interfaces are too many or not to be told apart.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The host port is a reserved number.
    #[error("vsock host port {port} is reserved: use one below 4294967295 and above 0")]
    HostPort {
        /// The port.
        port: u32,
    },
}

/// A spec whose every bound was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedSpec(VmSpec);

impl CheckedSpec {
    /// The spec.
    #[must_use]
    pub fn spec(&self) -> &VmSpec {
        &self.0
    }

    /// Whether another process must see the guest's memory, besides the vsock device.
    #[must_use]
    pub fn has_vhost_user_fs(&self) -> bool {
        self.0.shared_fs.is_some()
    }
}

impl TryFrom<VmSpec> for CheckedSpec {
    type Error = SpecError;

    fn try_from(spec: VmSpec) -> Result<Self, SpecError> {
        check_shape(&spec)?;
        growth::check(&spec)?;
        tee::check(&spec)?;
        check_kernel_params(&spec)?;
        check_disks(&spec)?;
        nic::check(&spec.nics)?;
        check_paths(&spec)?;
        Ok(Self(spec))
    }
}

fn check_shape(spec: &VmSpec) -> Result<(), SpecError> {
    if !is_plain_word(&spec.name, MAX_NAME) {
        return Err(SpecError::Name {
            name: spec.name.clone(),
        });
    }
    if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
        return Err(SpecError::Vcpus { vcpus: spec.vcpus });
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&spec.memory_mib) {
        return Err(SpecError::Memory {
            memory_mib: spec.memory_mib,
        });
    }
    if spec.host_port == 0 || spec.host_port == u32::MAX {
        return Err(SpecError::HostPort {
            port: spec.host_port,
        });
    }
    match &spec.shared_fs {
        Some(fs) if !is_plain_word(&fs.tag, MAX_TAG) => Err(SpecError::Tag {
            tag: fs.tag.clone(),
        }),
        _ => Ok(()),
    }
}

fn check_kernel_params(spec: &VmSpec) -> Result<(), SpecError> {
    for param in &spec.kernel_params {
        if param.is_empty() || !param.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SpecError::KernelParam {
                param: param.clone(),
            });
        }
    }
    let own = crate::qemu::kernel::LONGEST_OWN_PARAMS;
    let len = own
        + spec
            .kernel_params
            .iter()
            .map(|param| param.len() + 1)
            .sum::<usize>();
    if len > MAX_KERNEL_CMDLINE {
        return Err(SpecError::KernelCmdline { len });
    }
    Ok(())
}

fn check_disks(spec: &VmSpec) -> Result<(), SpecError> {
    let scratch = spec.scratch.iter().map(|scratch| scratch.serial.as_str());
    let disks = spec.disks.iter().map(|disk| disk.serial.as_str());
    let serials: Vec<&str> = disks.chain(scratch).collect();
    if serials.len() > MAX_DISKS {
        return Err(SpecError::Disks {
            count: serials.len(),
        });
    }
    for (index, serial) in serials.iter().enumerate() {
        if serials[..index].contains(serial) || !is_plain_word(serial, MAX_SERIAL) {
            return Err(SpecError::Serial {
                serial: (*serial).to_owned(),
            });
        }
    }
    match &spec.scratch {
        Some(Scratch { mib, .. }) if !(1..=MAX_SCRATCH_MIB).contains(mib) => {
            Err(SpecError::Scratch { mib: *mib })
        }
        _ => Ok(()),
    }
}

fn check_paths(spec: &VmSpec) -> Result<(), SpecError> {
    let file = |what, path: &Path| check_path(what, path, "a file that exists", Path::is_file);
    file("kernel", &spec.kernel)?;
    if let Some(initrd) = &spec.initrd {
        file("initrd", initrd)?;
    }
    if let Some(firmware) = &spec.firmware {
        file("firmware", firmware)?;
    }
    for disk in &spec.disks {
        check_path("disk", &disk.path, "a file or device that exists", |path| {
            path.exists() && !path.is_dir()
        })?;
    }
    if let Some(scratch) = &spec.scratch {
        check_path(
            "directory of the scratch disk",
            &scratch.directory,
            "a directory that exists",
            Path::is_dir,
        )?;
    }
    if let Some(fs) = &spec.shared_fs {
        check_path(
            "virtio-fs socket",
            &fs.socket,
            "a socket that exists",
            Path::exists,
        )?;
    }
    check_path(
        "state directory",
        &spec.state_dir,
        "a directory that exists",
        Path::is_dir,
    )?;
    if spec.qemu.components().count() > 1 {
        file("QEMU program", &spec.qemu)?;
    }
    Ok(())
}

fn check_path(
    what: &'static str,
    path: &Path,
    expected: &'static str,
    holds: impl Fn(&Path) -> bool,
) -> Result<(), SpecError> {
    let printable = path
        .to_str()
        .is_some_and(|text| !text.chars().any(char::is_control));
    if !printable {
        return Err(SpecError::Path {
            what,
            path: path.to_owned(),
        });
    }
    if !holds(path) {
        return Err(SpecError::Missing {
            what,
            path: path.to_owned(),
            expected,
        });
    }
    Ok(())
}

pub(crate) fn is_plain_word(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.len() <= longest
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> (tempfile::TempDir, VmSpec) {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinux");
        std::fs::write(&kernel, b"k").unwrap();
        let spec = VmSpec::new("vm-1", &kernel, dir.path());
        (dir, spec)
    }

    fn refusal(change: impl FnOnce(&mut VmSpec)) -> SpecError {
        let (_dir, mut spec) = spec();
        change(&mut spec);
        CheckedSpec::try_from(spec).unwrap_err()
    }

    #[test]
    fn a_plain_spec_is_accepted() {
        let (_dir, spec) = spec();
        CheckedSpec::try_from(spec).unwrap();
    }

    #[test]
    fn every_bound_is_a_named_error() {
        assert!(matches!(
            refusal(|s| s.name = "a b".into()),
            SpecError::Name { .. }
        ));
        assert!(matches!(refusal(|s| s.vcpus = 0), SpecError::Vcpus { .. }));
        assert!(matches!(refusal(|s| s.vcpus = 65), SpecError::Vcpus { .. }));
        assert!(matches!(
            refusal(|s| s.memory_mib = 63),
            SpecError::Memory { .. }
        ));
        assert!(matches!(
            refusal(|s| s.memory_mib = (1 << 20) + 1),
            SpecError::Memory { .. }
        ));
        assert!(matches!(
            refusal(|s| s.host_port = u32::MAX),
            SpecError::HostPort { .. }
        ));
        assert!(matches!(
            refusal(|s| s.kernel_params = vec!["a b".into()]),
            SpecError::KernelParam { .. }
        ));
        assert!(matches!(
            refusal(|s| s.kernel_params = vec!["a".repeat(2047)]),
            SpecError::KernelCmdline { .. }
        ));
    }

    #[test]
    fn a_missing_file_is_named_with_its_purpose() {
        let error = refusal(|s| s.initrd = Some("/nonexistent/initrd".into()));
        assert_eq!(
            error.to_string(),
            "the initrd \"/nonexistent/initrd\" is not a file that exists"
        );
        let error = refusal(|s| s.qemu = "/nonexistent/qemu".into());
        assert!(matches!(
            error,
            SpecError::Missing {
                what: "QEMU program",
                ..
            }
        ));
    }

    #[test]
    fn two_disks_cannot_share_a_serial() {
        let error = refusal(|s| {
            let disk = Disk {
                path: s.kernel.clone(),
                format: DiskFormat::Raw,
                serial: "d".into(),
            };
            s.disks = vec![disk.clone(), disk];
        });
        assert_eq!(error, SpecError::Serial { serial: "d".into() });
    }

    #[test]
    fn a_scratch_disk_has_a_size_and_a_serial_of_its_own() {
        let scratch = |mib, serial: &str| {
            let serial = serial.to_owned();
            move |s: &mut VmSpec| {
                s.disks = vec![Disk {
                    path: s.kernel.clone(),
                    format: DiskFormat::Raw,
                    serial: "d".into(),
                }];
                s.scratch = Some(Scratch {
                    directory: s.state_dir.clone(),
                    mib,
                    serial,
                });
            }
        };
        for mib in [0, MAX_SCRATCH_MIB + 1] {
            assert_eq!(refusal(scratch(mib, "s")), SpecError::Scratch { mib });
        }
        assert_eq!(
            refusal(scratch(1, "d")),
            SpecError::Serial { serial: "d".into() }
        );
        let error = refusal(|s| {
            scratch(1, "s")(s);
            s.scratch.as_mut().unwrap().directory = "/nonexistent".into();
        });
        assert!(error.to_string().contains("directory of the scratch disk"));
    }

    #[test]
    fn a_path_with_a_control_character_is_refused() {
        let error = refusal(|s| s.kernel = "/tmp/a\nb".into());
        assert!(matches!(error, SpecError::Path { what: "kernel", .. }));
    }
}
