//! A pod as `ctr` starts it, and the runtime's configuration for it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::init_data::{self, InitData};
use crate::product;
use crate::state::State;

/// The runtime as containerd is told it.
pub const RUNTIME: &str = "io.containerd.cloister.v2";

/// The node's mirror, below the state directory.
pub const MIRROR: &str = "mirror";

/// The runtime's configuration file, with a default for each key.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `none`, `sample`, `sim-snp` or `sim-tdx`.
    pub tee: &'static str,
    /// The development root of a simulated kind.
    pub dev_tee: Option<PathBuf>,
    /// Whether the guest pulls images whatever the host has.
    pub guest_pull: bool,
    /// `none` or `virtio-fs`.
    pub shared_fs: &'static str,
    /// The guest's kernel.
    pub kernel: Option<PathBuf>,
    /// The guest's first file system.
    pub initrd: Option<PathBuf>,
    /// Words for the kernel's command line.
    pub kernel_params: String,
    /// `host:port` that the relay dials.
    pub allow: Vec<String>,
    /// Memory in MiB.
    pub memory: u32,
    /// MiB of scratch disk; none at zero.
    pub scratch: u32,
    /// Milliseconds until the agent must have answered.
    pub boot_ms: u64,
    /// The kubelet's directory, where a test plays one.
    pub kubelet: Option<PathBuf>,
    /// Where emptyDirs on disk are: `shared-fs`, `block-plain` or `block-encrypted`.
    pub empty_dirs: &'static str,
    /// The collector that gets traces, where there is one.
    pub otlp: Option<String>,
}

impl Settings {
    /// A confidential pod in a plain VM, whose relay reaches `allow`.
    #[must_use]
    pub fn confidential(allow: &[&str]) -> Self {
        Self {
            tee: "sample",
            dev_tee: None,
            guest_pull: true,
            shared_fs: "none",
            kernel: None,
            initrd: None,
            kernel_params: String::new(),
            allow: allow.iter().map(|a| (*a).to_owned()).collect(),
            memory: 512,
            scratch: 0,
            boot_ms: 60_000,
            kubelet: None,
            empty_dirs: "shared-fs",
            otlp: None,
        }
    }

    /// A plain VM whose images come from the host.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            tee: "none",
            guest_pull: false,
            shared_fs: "virtio-fs",
            ..Self::confidential(&[])
        }
    }

    /// Writes the file into `state`.
    ///
    /// # Errors
    /// When the guest has not been built or the file cannot be written.
    pub fn write(&self, state: &State, name: &str) -> Result<PathBuf> {
        let given = |file: &Option<PathBuf>, built: &str| match file {
            Some(file) => Ok(file.clone()),
            None => product::guest(built),
        };
        let mut text = format!(
            "[hypervisor.qemu]\nkernel = {kernel:?}\ninitrd = {initrd:?}\n\
             default_memory = {memory}\nshared_fs = {fs:?}\nkernel_params = {params:?}\n\
             enable_annotations = [\"cc_init_data\"]\n\n\
             [agent.kata]\nreconnect_timeout_ms = {boot}\n\n\
             [cloister]\ntee = {tee:?}\nscratch_disk = {scratch}\nscratch_dir = {dir:?}\n\n\
             [relay]\nallow = {allow:?}\n\n\
             [mirror]\ndirectory = {mirror:?}\n",
            kernel = given(&self.kernel, "vmlinux")?,
            initrd = given(&self.initrd, "initramfs.cpio")?,
            memory = self.memory,
            fs = self.shared_fs,
            params = self.kernel_params,
            boot = self.boot_ms,
            tee = self.tee,
            scratch = self.scratch,
            dir = state.path().join("scratch"),
            allow = self.allow,
            mirror = state.path().join(MIRROR),
        );
        text.push_str("\n[runtime]\n");
        if self.guest_pull {
            text.push_str("experimental = [\"force_guest_pull\"]\n");
        }
        if let Some(kubelet) = &self.kubelet {
            let _ = writeln!(text, "kubelet_root_dir = {kubelet:?}");
            let _ = writeln!(text, "emptydir_mode = {:?}", self.empty_dirs);
        }
        if let Some(dir) = &self.dev_tee {
            let keyed = format!("[cloister]\ndev_tee = {dir:?}\n");
            text = text.replacen("[cloister]\n", &keyed, 1);
        }
        if let Some(otlp) = &self.otlp {
            text.push_str("enable_tracing = true\n");
            let keyed = format!("[cloister]\notlp_endpoint = {otlp:?}\n");
            text = text.replacen("[cloister]\n", &keyed, 1);
        }
        state.file(name, text)
    }
}

/// One container of a pod, as `ctr run` takes it.
#[derive(Debug, Clone)]
pub struct Pod<'a> {
    /// Its name.
    pub id: &'a str,
    /// The runtime's configuration file.
    pub config: &'a Path,
    /// Its root on the host: empty where the guest pulls.
    pub rootfs: &'a Path,
    /// What the guest pulls.
    pub image: Option<&'a str>,
    /// The owner's init-data.
    pub init_data: Option<&'a InitData>,
    /// Further flags of `ctr run`.
    pub flags: Vec<String>,
    /// The program and its arguments; empty is the image's own.
    pub args: Vec<String>,
}

impl<'a> Pod<'a> {
    /// A container with only what every one needs.
    #[must_use]
    pub fn new(id: &'a str, config: &'a Path, rootfs: &'a Path, args: &[&str]) -> Self {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Self {
            id,
            config,
            rootfs,
            image: None,
            init_data: None,
            flags: Vec::new(),
            args,
        }
    }

    /// The same from an image that the guest pulls.
    #[must_use]
    pub fn from_image(mut self, image: &'a str) -> Self {
        self.image = Some(image);
        self
    }

    /// The same with init-data.
    #[must_use]
    pub fn with_init_data(mut self, init_data: &'a InitData) -> Self {
        self.init_data = Some(init_data);
        self
    }

    /// The same with further flags of `ctr run`.
    #[must_use]
    pub fn flag(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|f| (*f).to_owned()));
        self
    }

    /// The arguments of `ctr`.
    ///
    /// # Errors
    /// When init-data cannot be packed.
    pub fn ctr(&self) -> Result<Vec<String>> {
        let mut words: Vec<String> = ["run", "--runtime", RUNTIME, "--runtime-config-path"]
            .map(str::to_owned)
            .to_vec();
        words.push(self.config.display().to_string());
        words.extend(self.flags.iter().cloned());
        if let Some(image) = self.image {
            words.push("--annotation".to_owned());
            words.push(format!("io.kubernetes.cri.image-name={image}"));
        }
        if let Some(init_data) = self.init_data {
            words.push("--annotation".to_owned());
            words.push(format!(
                "{}={}",
                init_data::ANNOTATION,
                init_data.annotation()?
            ));
        }
        words.push("--rootfs".to_owned());
        words.push(self.rootfs.display().to_string());
        words.push(self.id.to_owned());
        words.extend(self.args.iter().cloned());
        Ok(words)
    }
}
