//! Everything that the main job needs, set up once: containerd, registry, broker, an encrypted image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::broker::Broker;
use crate::containerd::{Containerd, NAMESPACE};
use crate::dev_tee;
use crate::host::{self, Leftovers};
use crate::image::{BUSYBOX, Recipe};
use crate::init_data::{ALLOW_ALL, InitData};
use crate::pod::{MIRROR, Pod, Settings};
use crate::product;
use crate::registry::Registry;
use crate::run::{Finished, within};
use crate::state::{State, VmTurn};
use crate::timeline::Timeline;

/// A start with its pull, under TCG on a busy machine.
pub const START: Duration = Duration::from_secs(120);
const CLI: Duration = Duration::from_secs(60);
/// Where the broker keeps the image's key.
pub const KEY_ID: &str = "default/image-key/demo";

/// What a stage and an image on it need of the machine, for [`crate::need`].
pub const TOOLS: [&str; 6] = [
    "containerd",
    "ctr",
    "docker-registry",
    "skopeo",
    "qemu-system-x86_64",
    BUSYBOX,
];

/// The set-up. Fields are in the order in which they must end: containers before what they talk to.
#[derive(Debug)]
pub struct Stage {
    /// containerd.
    pub containerd: Containerd,
    /// The broker, where one was asked for.
    pub broker: Option<Broker>,
    /// The registry.
    pub registry: Registry,
    /// The development root of this stage's pods, where they are simulated.
    pub dev_tee: Option<PathBuf>,
    /// The directory of it all.
    pub state: State,
    _turn: VmTurn,
}

impl Stage {
    /// With a broker.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn confidential() -> Result<Self> {
        let mut stage = Self::plain()?;
        stage.broker = Some(Broker::start(&stage.state)?);
        Ok(stage)
    }

    /// With a broker that believes simulated evidence, and pods that have some.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn simulated() -> Result<Self> {
        let mut stage = Self::plain()?;
        stage.broker = Some(Broker::simulated(&stage.state)?);
        stage.dev_tee = Some(dev_tee::directory()?);
        Ok(stage)
    }

    /// Without one.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn plain() -> Result<Self> {
        // Found out here, and not by containerd in other words.
        product::bin("containerd-shim-cloister-v2")?;
        let turn = VmTurn::wait()?;
        let state = State::new()?;
        state.dir("empty")?;
        let registry = Registry::start(&state)?;
        let containerd = Containerd::start(&state)?;
        Ok(Self {
            containerd,
            broker: None,
            dev_tee: None,
            registry,
            state,
            _turn: turn,
        })
    }

    /// The broker.
    ///
    /// # Errors
    /// On a stage without one.
    pub fn broker(&self) -> Result<&Broker> {
        self.broker.as_ref().context("this stage has no broker")
    }

    /// Init-data that points at this stage's broker and registry and allows every request.
    #[must_use]
    pub fn init_data(&self) -> InitData {
        InitData::new(self.broker.as_ref(), Some(&self.registry), ALLOW_ALL)
    }

    /// A confidential pod's settings: its relay reaches this stage's broker and registry.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let mut allow = vec![self.registry.address()];
        allow.extend(self.broker.as_ref().map(Broker::address));
        let settings = Settings::confidential(&allow);
        match &self.dev_tee {
            None => settings,
            dir => Settings {
                tee: "sim-snp",
                dev_tee: dir.clone(),
                ..settings
            },
        }
    }

    /// The empty directory that stands for the root of a container whose image the guest pulls.
    #[must_use]
    pub fn empty(&self) -> PathBuf {
        self.state.path().join("empty")
    }

    /// Writes an image below `name` and pushes it unencrypted; answers its reference.
    ///
    /// # Errors
    /// When it cannot be written or pushed.
    pub fn push(&self, recipe: &Recipe, name: &str) -> Result<String> {
        let layout = recipe.write(&self.state.path().join(format!("layout-{name}")))?;
        self.registry.push(&layout, &format!("{name}:latest"), &[])
    }

    /// Makes a key of 32 random bytes.
    ///
    /// # Errors
    /// When the kernel has no random bytes for us.
    pub fn key(&self, name: &str) -> Result<PathBuf> {
        let mut bytes = [0_u8; 32];
        let mut random = std::fs::File::open("/dev/urandom")?;
        std::io::Read::read_exact(&mut random, &mut bytes)?;
        self.state.file(name, bytes)
    }

    /// Encrypts an image with `key` for key id `kbs:///<id>` by the product's own command and pushes
    /// it; answers its reference.
    ///
    /// # Errors
    /// When the command fails.
    pub fn push_encrypted(
        &self,
        recipe: &Recipe,
        name: &str,
        key: &Path,
        id: &str,
    ) -> Result<String> {
        encrypted_into(&self.registry, &self.state, recipe, name, key, id)
    }

    /// Runs a pod to its end.
    ///
    /// # Errors
    /// When `ctr` does not end in time; its exit code is for the caller to judge.
    pub fn run(&self, pod: &Pod<'_>) -> Result<Finished> {
        let words = pod.ctr()?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.containerd.ctr_within(START, &words)
    }

    /// Runs a pod that must fail: the error that `ctr` prints has `code`, it comes within `limit`,
    /// and nothing of the pod stays on the host. Answers the error, with the last lines of the console
    /// where it has them.
    ///
    /// # Errors
    /// When one of that does not hold; the text says which.
    pub fn refuse(&self, pod: &Pod<'_>, code: &str, limit: Duration) -> Result<String> {
        let before = self.containerd.leftovers();
        let words = pod.ctr()?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let run = self.containerd.ctr_within(limit, &words)?;
        ensure!(run.code != 0, "the pod was not refused: {}", run.report());
        let error = error_of(&run.stderr, code)
            .with_context(|| format!("no [{code}] in: {}\n{}", run.report(), self.log_tail()))?
            .to_owned();
        self.containerd.remove(pod.id);
        self.settled(&before)?;
        Ok(error)
    }

    /// Waits until the host is as `before`: a deletion may end a moment after `ctr`.
    ///
    /// # Errors
    /// With what is still there after a while.
    pub fn settled(&self, before: &Leftovers) -> Result<()> {
        self.containerd.settled(before)
    }

    /// Files of the host that contain one of `needles`: containerd's stores, what shims keep of their
    /// pods and of images, the registry's blobs, every log. The broker's own directory is the owner's, not the host's.
    ///
    /// # Errors
    /// When a directory cannot be read, or the search does not even find what must be there: the
    /// shim's own words in the log.
    pub fn search_host(&self, needles: &[&[u8]]) -> Result<Vec<PathBuf>> {
        let mut places = self.containerd.directories();
        places.extend([self.registry.storage().to_owned(), self.empty()]);
        let mirror = self.state.path().join(MIRROR);
        places.extend(mirror.exists().then_some(mirror));
        for log in ["containerd.log", "registry.log", "kbs.log"] {
            places.push(self.state.path().join(log));
        }
        let control = host::files_with(&places, &[b"the shim serves".as_slice()])?;
        ensure!(!control.is_empty(), "the search finds nothing at all");
        host::files_with(&places, needles)
    }

    /// What the guest of a running pod counts, as the product's own command prints it.
    ///
    /// # Errors
    /// When the command fails.
    pub fn metrics(&self, sandbox: &str) -> Result<String> {
        let mut command = Command::new(product::bin("cloister")?);
        command
            .args(["metrics", "--namespace", NAMESPACE, sandbox])
            .env("CLOISTER_STATE_ROOT", self.containerd.shim_state());
        Ok(within(CLI, &mut command)?.ok()?.stdout)
    }

    /// How far the containers of a pod are that are being created, as the product's own command prints it.
    ///
    /// # Errors
    /// When the command fails.
    pub fn progress(&self, sandbox: &str) -> Result<String> {
        let mut command = Command::new(product::bin("cloister")?);
        command
            .args(["progress", "--namespace", NAMESPACE, sandbox])
            .env("CLOISTER_STATE_ROOT", self.containerd.shim_state());
        Ok(within(CLI, &mut command)?.ok()?.stdout)
    }

    /// The phases of a container's last start.
    ///
    /// # Errors
    /// When the shim's log has none.
    pub fn timeline(&self, container: &str) -> Result<Timeline> {
        Timeline::in_log(&self.containerd.log(), container)
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

/// Encrypts an image as [`Stage::push_encrypted`] and pushes it into a registry.
///
/// # Errors
/// When the command fails.
pub fn encrypted_into(
    registry: &Registry,
    state: &State,
    recipe: &Recipe,
    name: &str,
    key: &Path,
    id: &str,
) -> Result<String> {
    let plain = recipe.write(&state.path().join(format!("layout-{name}")))?;
    let reference = format!("{}/{name}:latest", registry.address());
    within(
        CLI,
        Command::new(product::bin("cloister")?)
            .args([
                "image",
                "encrypt",
                "--key-id",
                &format!("kbs:///{id}"),
                "--key-file",
            ])
            .arg(key)
            .arg("--registry-cert")
            .arg(registry.cert())
            .arg(&plain)
            .arg(format!("docker://{reference}")),
    )?
    .ok()?;
    Ok(reference)
}

/// The error that `ctr` printed, from its first word to the code that ends it.
fn error_of<'a>(stderr: &'a str, code: &str) -> Option<&'a str> {
    let code = format!("[{code}]");
    let end = stderr.find(&code)? + code.len();
    let start = stderr[..end].rfind("ctr: ")?;
    let rest = stderr[end..].lines().next().unwrap_or_default();
    Some(&stderr[start..end + rest.len()])
}
