//! What a virtual machine is to be. `VmSpec` is written by the caller; `CheckedSpec` is the same
//! after every bound was checked, and the only form that the rest of the crate accepts.

mod check;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::growth::{Growth, GrowthError};
use crate::nic::{Nic, NicError};
use crate::tee::{Confidential, Unfit};

pub use check::CheckedSpec;
pub(crate) use check::{check_kernel_params, is_plain_word};

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
    /// An IGVM file in place of firmware: what an SEV-SNP guest begins with, and how.
    pub igvm: Option<PathBuf>,
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
            igvm: None,
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
