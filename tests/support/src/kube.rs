//! A Kubernetes node without its kubelet: a real containerd with its CRI plugin, Cloister as a runtime handler,
//! the distribution's CNI plugins, all in a network namespace of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use protobuf::MessageField;
use serde_json::json;

use crate::containerd::Containerd;
use crate::cri::{
    ContainerConfig, ContainerMetadata, Cri, DNSConfig, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, spec_of,
};
use crate::host::Leftovers;
use crate::image::{BUSYBOX, Recipe};
use crate::node::Node;
use crate::pod::{RUNTIME, Settings};
use crate::product;
use crate::run::within;
use crate::state::{State, VmTurn};

/// The runtime handler, as a `RuntimeClass` names it.
pub const HANDLER: &str = "cloister";
/// What a node needs of the machine, for [`crate::need`].
pub const TOOLS: [&str; 9] = [
    "containerd",
    "ctr",
    "qemu-system-x86_64",
    "virtiofsd",
    "nsenter",
    "tar",
    "ip",
    "/usr/lib/cni/bridge",
    BUSYBOX,
];
/// Where containerd keeps what the CRI plugin makes.
const NAMESPACE: &str = "k8s.io";
/// The image of the container that stands for a pod; nothing of it runs.
const PAUSE: &str = "localhost/pause:latest";
const PLUGINS: &str = "/usr/lib/cni";
/// The CRI plugin's tables in containerd's configuration.
const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";
const V4: &str = "10.88.0.0/24";
const V6: &str = "fd88::/64";
const LIMIT: Duration = Duration::from_secs(60);
/// What a deletion may take after the runtime has answered.
const SETTLE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// The environment variable by which somebody who runs a test by hand has a containerd of version 2 ask the shim
/// for pods (`shim`), and make no sandbox containers.
const SANDBOXER: &str = "CLOISTER_TEST_SANDBOXER";

/// The node. Fields are in the order in which they must end.
#[derive(Debug)]
pub struct Kube {
    /// The client.
    pub cri: Cri,
    /// containerd.
    pub containerd: Containerd,
    /// Its network.
    pub node: Node,
    /// The directory of it all.
    pub state: State,
    _turn: VmTurn,
}

/// Where a node is to stand: its directory, its network, the right to run VMs.
#[derive(Debug)]
pub struct Ground {
    /// Its network.
    pub node: Node,
    /// The directory of it all.
    pub state: State,
    /// Where its containerd is; empty for the machine's.
    pub programs: PathBuf,
    turn: VmTurn,
}

impl Ground {
    /// Waits for the turn and makes the rest.
    ///
    /// # Errors
    /// When the shim is not built, or the machine gives no namespace.
    pub fn new() -> Result<Self> {
        product::bin("containerd-shim-cloister-v2")?;
        let turn = VmTurn::wait()?;
        let state = State::short()?;
        let node = Node::new(state.path())?;
        Ok(Self {
            node,
            state,
            programs: PathBuf::new(),
            turn,
        })
    }
}

impl Kube {
    /// Starts it; pods are as `settings` say.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(settings: &Settings) -> Result<Self> {
        Self::on(Ground::new()?, settings, "")
    }

    /// Starts it on ground where other parts stand already; `images` is more of the CRI plugin's configuration, which
    /// begins in its table `containerd`.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn on(ground: Ground, settings: &Settings, images: &str) -> Result<Self> {
        let Ground {
            node,
            state,
            programs,
            turn,
        } = ground;
        let network = json!({
            "cniVersion": "0.4.0", "name": "pods", "plugins": [node.bridge(&[V4, V6])],
        });
        let plugins = state.dir("cni")?;
        state.file("cni/10-pods.conflist", network.to_string())?;
        let config = settings.write(&state, "c.toml")?;
        let containerd =
            Containerd::launch(&state, NAMESPACE, Some(node.path()), &programs, |_| {
                cri_plugin(&plugins, &config, images)
            })?;
        let kube = Self {
            cri: Cri::new(containerd.socket())?,
            containerd,
            node,
            state,
            _turn: turn,
        };
        // A file that no kernel runs: that pods start with it shows that nobody tries.
        let mut pause = Recipe::busybox("pause")?;
        pause.layers.truncate(1);
        pause.layers[0].clear();
        pause.layers[0].push(crate::image::Entry::File(
            "pause".into(),
            0o755,
            b"not a program".to_vec(),
        ));
        pause.cmd = vec!["/pause".to_owned()];
        kube.import(&pause, "pause")?;
        Ok(kube)
    }

    /// Puts an image into containerd's store and answers its reference.
    ///
    /// # Errors
    /// When `ctr` fails, or the CRI plugin does not notice it.
    pub fn import(&self, recipe: &Recipe, name: &str) -> Result<String> {
        let layout = self.state.dir(&format!("layout-{name}"))?;
        recipe.write(&layout)?;
        let archive = self.state.path().join(format!("{name}.tar"));
        let mut tar = Command::new("tar");
        within(
            LIMIT,
            tar.arg("-C").arg(&layout).arg("-cf").arg(&archive).arg("."),
        )?
        .ok()?;
        let archive = archive.display().to_string();
        let base = format!("localhost/{name}");
        self.containerd
            .ctr_within(LIMIT, &["image", "import", "--base-name", &base, &archive])?
            .ok()?;
        let reference = format!("{base}:latest");
        self.noticed(&reference)?;
        Ok(reference)
    }

    /// The same under the reference by which a guest pulls it.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_as(&self, recipe: &Recipe, name: &str, reference: &str) -> Result<()> {
        let here = self.import(recipe, name)?;
        self.containerd
            .ctr_within(LIMIT, &["image", "tag", &here, reference])?
            .ok()?;
        self.noticed(reference)
    }

    fn noticed(&self, reference: &str) -> Result<()> {
        let since = Instant::now();
        while !self.cri.has_image(reference)? {
            ensure!(
                since.elapsed() < SETTLE,
                "the CRI plugin has no {reference}"
            );
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// A pod of this name, as a kubelet asks for it.
    #[must_use]
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                ..Default::default()
            })
            .into(),
            hostname: name.to_owned(),
            log_directory: self.log_directory().display().to_string(),
            dns_config: Some(DNSConfig {
                servers: vec!["10.96.0.10".to_owned()],
                searches: vec!["default.svc.test".to_owned(), "svc.test".to_owned()],
                options: vec!["ndots:5".to_owned()],
                ..Default::default()
            })
            .into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: own_processes(),
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    /// Starts a pod and answers its id.
    ///
    /// # Errors
    /// What the runtime says, with the end of its log.
    pub fn run_pod(&self, config: &PodSandboxConfig) -> Result<String> {
        self.run_pod_by(HANDLER, config)
    }

    /// The same by another runtime handler ([`handler`]).
    ///
    /// # Errors
    /// As [`Self::run_pod`].
    pub fn run_pod_by(&self, handler: &str, config: &PodSandboxConfig) -> Result<String> {
        let pod = self
            .cri
            .run_pod(config, handler)
            .map_err(|error| error.context(self.log_tail()))?;
        self.containerd.note_pod(&pod);
        Ok(pod)
    }

    /// Creates and starts a container and answers its id.
    ///
    /// # Errors
    /// As [`Self::run_pod`].
    pub fn start_in(
        &self,
        pod: &str,
        of: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> Result<String> {
        let told = |error: anyhow::Error| error.context(self.log_tail());
        let container = self.cri.create(pod, of, config).map_err(told)?;
        self.cri
            .of_container("StartContainer", &container)
            .map_err(told)?;
        Ok(container)
    }

    /// Ends a pod and removes it.
    ///
    /// # Errors
    /// As [`Self::run_pod`].
    pub fn remove_pod(&self, pod: &str) -> Result<()> {
        let told = |error: anyhow::Error| error.context(self.log_tail());
        self.cri.of_pod("StopPodSandbox", pod).map_err(told)?;
        self.cri.of_pod("RemovePodSandbox", pod).map_err(told)
    }

    /// Where containers' logs are.
    #[must_use]
    pub fn log_directory(&self) -> PathBuf {
        self.state.path().join("logs")
    }

    /// The log of a container whose `log_path` is `name`.
    #[must_use]
    pub fn log_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_directory().join(name)).unwrap_or_default()
    }

    /// Waits until the host is as `before`.
    ///
    /// # Errors
    /// With what is still there.
    pub fn settled(&self, before: &Leftovers) -> Result<()> {
        self.containerd.settled(before)
    }

    /// The end of containerd's log, where a shim's own lines stand.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.containerd.log();
        let lines: Vec<_> = log
            .lines()
            .filter(|line| !line.contains("loading plugin"))
            .collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// A container of this name with a log, as a kubelet asks for it.
#[must_use]
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.to_owned(),
            ..Default::default()
        })
        .into(),
        image: spec_of(image),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: own_processes(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// What a kubelet says where the pod does not share its processes.
fn own_processes() -> MessageField<NamespaceOption> {
    MessageField::some(NamespaceOption {
        pid: NamespaceMode::CONTAINER.into(),
        ..Default::default()
    })
}

/// What containerd must be told of a runtime handler, whose pods are as `config` says, with `more` in its table.
#[must_use]
pub fn handler(name: &str, config: &Path, more: &str) -> String {
    let sandboxer = match std::env::var(SANDBOXER) {
        Ok(sandboxer) => format!("  sandboxer = {sandboxer:?}\n"),
        Err(_) => String::new(),
    };
    format!(
        "[{CRI}.containerd.runtimes.{name}]\n  runtime_type = \"{RUNTIME}\"\n  \
         privileged_without_host_devices = true\n  pod_annotations = [\"io.katacontainers.*\"]\n{sandboxer}{more}\
         [{CRI}.containerd.runtimes.{name}.options]\n  ConfigPath = \"{}\"\n",
        config.display(),
    )
}

/// The CRI plugin's part of containerd's configuration.
fn cri_plugin(networks: &Path, config: &Path, images: &str) -> String {
    format!(
        "disabled_plugins = [\"io.containerd.internal.v1.opt\", \
         \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.aufs\", \
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
         [{CRI}]\n  sandbox_image = \"{PAUSE}\"\n  disable_apparmor = true\n  \
         restrict_oom_score_adj = true\n  netns_mounts_under_state_dir = true\n  \
         stats_collect_period = 1\n  enable_unprivileged_ports = true\n  \
         enable_unprivileged_icmp = true\n\
         [{CRI}.cni]\n  bin_dir = \"{PLUGINS}\"\n  conf_dir = \"{networks}\"\n\
         [{CRI}.containerd]\n  default_runtime_name = \"{HANDLER}\"\n{images}{own}",
        networks = networks.display(),
        own = handler(HANDLER, config, ""),
    )
}
