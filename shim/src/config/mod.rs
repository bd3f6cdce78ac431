//! What the operator decided: the file's keys, then a pod's annotations, as one checked value.
//!
//! ```text
//!   configuration.toml + config.d/*.toml ──file──► Config ──annotation──► Config of this pod
//! ```
//!
//! The keys are Kata Containers' where Kata has one, so that an existing file can be carried over;
//! the tables `[cloister]`, `[relay]` and `[mirror]` are Cloister's own. Which keys there are and what becomes
//! of the others is in `key`.

pub mod annotation;
pub mod file;
mod key;

use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_api::Target;
use hypervisor::spec::MAX_SCRATCH_MIB;
use hypervisor::{Accel, Machine};
use serde::Deserialize;
use thiserror::Error;

pub use file::load;

use crate::mirror;

/// The environment variable that names the configuration file.
pub const PATH_VARIABLE: &str = "CLOISTER_CONFIG";
/// The file that is read where nothing names another, if it exists.
pub const DEFAULT_PATH: &str = "/etc/cloister/configuration.toml";
/// The smallest scratch disk, in MiB: no image that needs one fits into less.
const MIN_SCRATCH_MIB: u32 = 64;

/// The kind of trusted execution environment the guest runs in, as the guest is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// A plain virtual machine.
    #[default]
    None,
    /// A plain virtual machine that attests with CoCo's unsigned sample evidence.
    Sample,
}

impl Tee {
    /// The word for the kernel command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sample => "sample",
        }
    }

    /// Whether the host counts as untrusted: it may then share no files with the guest.
    #[must_use]
    pub fn is_confidential(self) -> bool {
        match self {
            Self::None => false,
            Self::Sample => true,
        }
    }
}

/// How host directories reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SharedFs {
    /// They do not.
    None,
    /// Through a virtio-fs daemon.
    #[default]
    VirtioFs,
}

/// Everything that the shim was told, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The virtual machine.
    pub vm: Vm,
    /// Names of `io.katacontainers.config.*` annotations that a pod may use; `.*` is all of them.
    pub enable_annotations: Vec<String>,
    /// How long the agent may take from the start of the VM to its `READY`.
    pub boot_timeout: Duration,
    /// How long the creation of one container may take, with the pull of its image.
    pub create_timeout: Duration,
    /// Whether the guest pulls every image, whatever the snapshotter prepared.
    pub force_guest_pull: bool,
    /// Whether seccomp profiles are dropped before the guest sees them.
    pub disable_guest_seccomp: bool,
    /// The kind of guest.
    pub tee: Tee,
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
    /// The machine type.
    pub machine: Machine,
    /// The accelerator.
    pub accel: Accel,
    /// Virtual processors before a pod's limits are added.
    pub vcpus: u32,
    /// Memory in MiB before a pod's limits are added.
    pub memory_mib: u32,
    /// Words for the kernel command line.
    pub kernel_params: Vec<String>,
    /// How host directories reach the guest.
    pub shared_fs: SharedFs,
    /// The virtio-fs daemon; `None` where the usual places are to be searched.
    pub virtio_fs_daemon: Option<PathBuf>,
    /// Further arguments for the virtio-fs daemon.
    pub virtio_fs_extra_args: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vm: Vm::default(),
            enable_annotations: Vec::new(),
            boot_timeout: Duration::from_secs(60),
            create_timeout: Duration::from_secs(600),
            force_guest_pull: false,
            disable_guest_seccomp: true,
            tee: Tee::None,
            init_data: None,
            scratch_mib: 0,
            scratch_dir: PathBuf::from("/var/lib/cloister/scratch"),
            relay_allow: Vec::new(),
            mirror: Mirror::default(),
        }
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            qemu: PathBuf::from("qemu-system-x86_64"),
            kernel: PathBuf::from("/usr/share/cloister/vmlinux"),
            initrd: Some(PathBuf::from("/usr/share/cloister/initrd.cpio")),
            firmware: None,
            machine: Machine::Q35,
            accel: Accel::Auto,
            vcpus: 1,
            memory_mib: 512,
            kernel_params: Vec::new(),
            shared_fs: SharedFs::VirtioFs,
            virtio_fs_daemon: None,
            virtio_fs_extra_args: Vec::new(),
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is larger than any configuration is.
    #[error("{path:?} has more than {cap} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The cap in bytes.
        cap: u64,
    },
    /// The file is not TOML.
    #[error("{path:?} is not TOML: {cause}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        cause: String,
    },
    /// A key that no one knows.
    #[error("{path:?}: unknown key {key}{}", suggestion.as_ref().map_or_else(String::new, |s| format!(": did you mean {s}?")))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key with its table.
        key: String,
        /// The nearest key there is.
        suggestion: Option<String>,
    },
    /// A key of Kata's that asks for something this runtime does not do.
    #[error(
        "{path:?}: {key} is a key of Kata Containers that Cloister does not support: remove it"
    )]
    UnsupportedKey {
        /// The file.
        path: PathBuf,
        /// The key with its table.
        key: String,
    },
    /// A key's value is not one it can have.
    #[error("{path:?}: {key}: {cause}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key with its table.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A pod uses an annotation that is not allowed.
    #[error(
        "annotation {key} is not allowed: add {name:?} to enable_annotations in [hypervisor.qemu]"
    )]
    AnnotationDenied {
        /// The annotation.
        key: String,
        /// What to add.
        name: String,
    },
    /// A pod uses an annotation that no one knows, or that is not supported.
    #[error("annotation {key} is not supported{}", suggestion.as_ref().map_or_else(String::new, |s| format!(": did you mean {s}?")))]
    AnnotationUnknown {
        /// The annotation.
        key: String,
        /// The nearest one there is.
        suggestion: Option<String>,
    },
    /// An annotation's value is not one it can have.
    #[error("annotation {key}: {cause}")]
    AnnotationValue {
        /// The annotation.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// Which file to read: `named` by the runtime's options, else by the environment, else the default
/// where it exists. `None` means the built-in defaults.
#[must_use]
pub fn choose(named: Option<&Path>, variable: Option<&Path>) -> Option<PathBuf> {
    let default = || Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists());
    named.or(variable).map(Path::to_owned).or_else(default)
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
    fn the_named_file_comes_before_the_variable() {
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        assert_eq!(choose(Some(a), Some(b)), Some(a.to_owned()));
        assert_eq!(choose(None, Some(b)), Some(b.to_owned()));
    }

    #[test]
    fn words_of_the_contract_are_refused() {
        assert_eq!(kernel_words(" quiet  x=1 ").unwrap(), ["quiet", "x=1"]);
        assert!(kernel_words("cloister.log=debug").is_ok());
        assert!(kernel_words("a cloister.tee=none").is_err());
    }
}
