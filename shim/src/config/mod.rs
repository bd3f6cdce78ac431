//! What the operator decided: the file's keys, then a pod's annotations, as one checked value.
//!
//! ```text
//!   configuration.toml ┐                            the rows of `key`
//!   config.d/*.toml ───┴─source─► settings ──file──► Config ──annotation──► Config of this pod
//! ```
//!
//! The keys are Kata Containers', so that an existing file can be carried over as it is; the tables
//! `[cloister]`, `[relay]` and `[mirror]` are Cloister's own. What becomes of each key is in `key`. A
//! key is never ignored in silence: what is taken and means nothing is a note, and all that is wrong is
//! told at once, with file and line.

mod allow;
pub mod annotation;
pub mod confidential;
pub mod file;
mod key;
mod observe;
mod path;
pub mod problem;
mod source;
mod tee;

#[cfg(test)]
mod shipped;

use std::path::PathBuf;
use std::time::Duration;

use agent_api::Target;
use hypervisor::spec::MAX_SCRATCH_MIB;
use hypervisor::{Accel, Machine};

pub use confidential::Confidential;
pub use file::{Inspection, inspect, load};
pub use observe::{LogTo, Observe};
pub use path::{DEFAULT_PATHS, KATA_PATH_VARIABLE, PATH_VARIABLE, choose, from_environment};
pub use problem::{ConfigError, Note, Place, Problem};
pub use tee::Tee;

use crate::{dev_tee, mirror};

/// The smallest scratch disk, in MiB: no image that needs one fits into less.
const MIN_SCRATCH_MIB: u32 = 64;

/// How host directories reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SharedFs {
    /// They do not.
    None,
    /// Through a virtio-fs daemon.
    #[default]
    VirtioFs,
}

/// Where an emptyDir on disk is: Kata's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EmptyDirs {
    /// In the kubelet's directory where files are shared; the guest's own where they are not.
    #[default]
    Shared,
    /// On a disk of the VM, which is a file in the kubelet's directory.
    Plain,
    /// On such a disk, which the guest encrypts.
    Encrypted,
}

impl EmptyDirs {
    const ALL: [Self; 3] = [Self::Shared, Self::Plain, Self::Encrypted];

    fn parse(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|one| one.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(|one| format!("{:?}", one.name()));
            format!("{name:?} is not one of {}", names.join(", "))
        })
    }

    /// The word in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared-fs",
            Self::Plain => "block-plain",
            Self::Encrypted => "block-encrypted",
        }
    }
}

/// What a virtio-fs daemon lets the guest keep of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VirtioFsCache {
    /// For a second, as long as a file is not open.
    #[default]
    Auto,
    /// As long as the guest likes.
    Always,
    /// Nothing.
    Never,
}

impl VirtioFsCache {
    fn parse(name: &str) -> Result<Self, String> {
        match name {
            "" | "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" | "none" => Ok(Self::Never),
            other => Err(format!(
                "{other:?} is not one of \"auto\", \"always\", \"never\""
            )),
        }
    }

    /// The word in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// Everything that the shim was told, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The virtual machine.
    pub vm: Vm,
    /// Regular expressions for the names of `io.katacontainers.config.*` annotations that a pod may
    /// use.
    pub enable_annotations: Vec<String>,
    /// Patterns for the QEMU programs that a pod may name.
    pub valid_hypervisor_paths: Vec<String>,
    /// Patterns for the virtio-fs daemons that a pod may name.
    pub valid_virtio_fs_daemon_paths: Vec<String>,
    /// How long the agent may take from the start of the VM to its `READY`.
    pub boot_timeout: Duration,
    /// How long the creation of one container may take, with the pull of its image.
    pub create_timeout: Duration,
    /// How long a guest that runs may not answer before it is ended; zero is for ever.
    pub health_timeout: Duration,
    /// Whether the guest pulls every image, whatever the snapshotter prepared.
    pub force_guest_pull: bool,
    /// Whether seccomp profiles are dropped before the guest sees them.
    pub disable_guest_seccomp: bool,
    /// Whether shim and VMM go into the pod's cgroup.
    pub sandbox_cgroup: bool,
    /// Whether a VM keeps the size that it has at the start.
    pub static_size: bool,
    /// Where the kubelet has the files of pods.
    pub kubelet_root: PathBuf,
    /// Where an emptyDir on disk is.
    pub empty_dirs: EmptyDirs,
    /// The kind of guest.
    pub tee: Tee,
    /// The development root of a simulated kind.
    pub dev_tee: PathBuf,
    /// An init-data document (TOML) for every pod that brings none.
    pub init_data: Option<PathBuf>,
    /// MiB of scratch disk for the guest; none at zero.
    pub scratch_mib: u32,
    /// The directory on whose file system scratch disks are.
    pub scratch_dir: PathBuf,
    /// The only places that the relay dials.
    pub relay_allow: Vec<Target>,
    /// The blobs that the node keeps for its guests.
    pub mirror: Mirror,
    /// What is told of the pod.
    pub observe: Observe,
}

/// The mirror's part of [`Config`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Where the blobs are, for all pods of the node.
    pub directory: PathBuf,
    /// The most that they may take, in MiB; none where it is 0.
    pub size_mib: u64,
}

impl Mirror {
    /// The mirror for one guest.
    #[must_use]
    pub fn open(&self) -> Option<mirror::Mirror> {
        let cap = self.size_mib.saturating_mul(1024 * 1024);
        (cap > 0).then(|| mirror::Mirror::new(self.directory.clone(), cap))
    }
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/cache/cloister/mirror"),
            size_mib: 8192,
        }
    }
}

/// The virtual machine's part of [`Config`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The QEMU program.
    pub qemu: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest's initial file system.
    pub initrd: Option<PathBuf>,
    /// Firmware in place of the machine's own.
    pub firmware: Option<PathBuf>,
    /// An IGVM file in place of firmware.
    pub igvm: Option<PathBuf>,
    /// What is said of confidential guests.
    pub confidential: Confidential,
    /// The machine type.
    pub machine: Machine,
    /// The accelerator.
    pub accel: Accel,
    /// Virtual processors of a pod without limits, and the least of one with.
    pub vcpus: u32,
    /// Thousandths of a processor to add to a pod's limits; `None` where [`Self::vcpus`] counts.
    pub overhead_millicpus: Option<u32>,
    /// The most virtual processors of any pod.
    pub max_vcpus: Option<u32>,
    /// Memory in MiB of a pod without limits, and what is added to those of one with.
    pub memory_mib: u32,
    /// MiB to add to a pod's limits in place of [`Self::memory_mib`].
    pub overhead_mib: Option<u32>,
    /// The most memory of any pod, in MiB.
    pub max_memory_mib: Option<u32>,
    /// How often memory may be added to a running VM.
    pub memory_slots: u32,
    /// Whether a plain guest gives memory back that it does not use.
    pub reclaims: bool,
    /// Words for the kernel command line.
    pub kernel_params: Vec<String>,
    /// Whether no block device of the host is given to guests.
    pub disable_block_devices: bool,
    /// Whether the host's kernel serves the network cards, where it can.
    pub vhost_net: bool,
    /// How host directories reach the guest.
    pub shared_fs: SharedFs,
    /// The virtio-fs daemon; `None` where the usual places are to be searched.
    pub virtio_fs_daemon: Option<PathBuf>,
    /// What the guest may keep of shared files.
    pub virtio_fs_cache: VirtioFsCache,
    /// Further arguments for the virtio-fs daemon.
    pub virtio_fs_extra_args: Vec<String>,
}

impl Config {
    /// Whether guests have files of the host.
    #[must_use]
    pub fn shares_files(&self) -> bool {
        !self.tee.is_confidential() && self.vm.shared_fs == SharedFs::VirtioFs
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vm: Vm::default(),
            enable_annotations: Vec::new(),
            valid_hypervisor_paths: Vec::new(),
            valid_virtio_fs_daemon_paths: Vec::new(),
            boot_timeout: Duration::from_secs(60),
            create_timeout: Duration::from_secs(600),
            health_timeout: Duration::from_secs(300),
            force_guest_pull: false,
            disable_guest_seccomp: false,
            sandbox_cgroup: true,
            static_size: false,
            kubelet_root: PathBuf::from("/var/lib/kubelet"),
            empty_dirs: EmptyDirs::Shared,
            tee: Tee::None,
            dev_tee: PathBuf::from(dev_tee::DIRECTORY),
            init_data: None,
            scratch_mib: 0,
            scratch_dir: PathBuf::from("/var/lib/cloister/scratch"),
            relay_allow: Vec::new(),
            mirror: Mirror::default(),
            observe: Observe::default(),
        }
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            qemu: PathBuf::from("qemu-system-x86_64"),
            kernel: PathBuf::from("/usr/share/cloister/guest/vmlinux"),
            initrd: Some(PathBuf::from("/usr/share/cloister/guest/initramfs.cpio")),
            firmware: None,
            igvm: None,
            confidential: Confidential::default(),
            machine: Machine::Q35,
            accel: Accel::Auto,
            vcpus: 1,
            overhead_millicpus: None,
            max_vcpus: None,
            memory_mib: 512,
            overhead_mib: None,
            max_memory_mib: None,
            memory_slots: 10,
            reclaims: true,
            kernel_params: Vec::new(),
            disable_block_devices: false,
            vhost_net: true,
            shared_fs: SharedFs::VirtioFs,
            virtio_fs_daemon: None,
            virtio_fs_cache: VirtioFsCache::Auto,
            virtio_fs_extra_args: Vec::new(),
        }
    }
}

/// The words of a kernel command line. The guest's contract words belong to the shim alone.
fn kernel_words(text: &str) -> Result<Vec<String>, String> {
    let words: Vec<String> = text.split_ascii_whitespace().map(str::to_owned).collect();
    for word in &words {
        for reserved in [
            "cloister.tee=",
            "cloister.init_data=",
            "cloister.host_port=",
        ] {
            if word.starts_with(reserved) {
                return Err(format!("{reserved} is set by the runtime alone"));
            }
        }
    }
    Ok(words)
}

/// A deadline that something can meet.
fn timeout(duration: Duration) -> Result<Duration, String> {
    match duration.is_zero() {
        true => Err("a timeout of zero lets nothing succeed".to_owned()),
        false => Ok(duration),
    }
}

/// Whether a scratch disk may have this size in MiB; zero is none.
fn scratch_size(mib: u32) -> Result<(), String> {
    if mib == 0 || (MIN_SCRATCH_MIB..=MAX_SCRATCH_MIB).contains(&mib) {
        return Ok(());
    }
    Err(format!(
        "{mib} MiB: use {MIN_SCRATCH_MIB} to {MAX_SCRATCH_MIB}, or 0 for none"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_contract_are_refused() {
        assert_eq!(kernel_words(" quiet  x=1 ").unwrap(), ["quiet", "x=1"]);
        assert!(kernel_words("cloister.log=debug").is_ok());
        assert!(kernel_words("a cloister.tee=none").is_err());
    }
}
