//! A real containerd with root, state and socket of its own, and `ctr` to drive it.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::host::{self, Leftovers};
use crate::run::{Finished, Running, Service, within};
use crate::state::State;

const READY: Duration = Duration::from_secs(20);
/// For `ctr` calls that only ask or clean.
const SHORT: Duration = Duration::from_secs(20);
/// What a deletion may take after its client has ended.
const SETTLE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// The namespace of all test containers.
pub const NAMESPACE: &str = "cloister-test";

/// Where shims listen, of all containerds of a host: the shim protocol's library fixes it.
const SHIM_SOCKETS: &str = "/run/containerd/s";
/// No container's name is longer.
const MAX_ID: usize = 77;
/// Below the state directory: what shims keep of their pods. Short, for the sockets in it.
const SHIM_STATE: &str = "s";

/// The running containerd. Dropping it deletes its containers and ends every process of its own.
#[derive(Debug)]
pub struct Containerd {
    service: Option<Service>,
    namespace: &'static str,
    config: PathBuf,
    /// The network namespace that it runs in, where that is not the machine's.
    network: Option<PathBuf>,
    programs: PathBuf,
    socket: PathBuf,
    base: PathBuf,
    /// Words of every `run`, among which is the container's name.
    ran: Mutex<BTreeSet<String>>,
}

impl Containerd {
    /// Starts it with everything below `state`, for `ctr` alone.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn start(state: &State) -> Result<Self> {
        Self::launch(state, NAMESPACE, None, Path::new(""), |_| {
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.zfs\", \
             \"io.containerd.snapshotter.v1.devmapper\"]\n"
                .to_owned()
        })
    }

    /// Starts it for a namespace of its own, in a network namespace, from a directory of programs (an empty path is
    /// the machine's), with `more` in its configuration: given its base directory, the text that follows `version`,
    /// `root` and `state`.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn launch(
        state: &State,
        namespace: &'static str,
        network: Option<PathBuf>,
        programs: &Path,
        more: impl FnOnce(&Path) -> String,
    ) -> Result<Self> {
        let socket = state.path().join("c.sock");
        let config = state.file(
            "containerd.toml",
            format!(
                "version = 2\nroot = \"{root}\"\nstate = \"{run}\"\n{more}\
                 [grpc]\n  address = \"{socket}\"\n[debug]\n  level = \"info\"\n",
                root = state.dir("root")?.display(),
                run = state.dir("run")?.display(),
                more = more(state.path()),
                socket = socket.display(),
            ),
        )?;
        state.dir(SHIM_STATE)?;
        let mut containerd = Self {
            service: None,
            namespace,
            config,
            network,
            programs: programs.to_owned(),
            socket,
            base: state.path().to_owned(),
            ran: Mutex::default(),
        };
        containerd.revive()?;
        Ok(containerd)
    }

    /// Starts the daemon again on the same directories.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn revive(&mut self) -> Result<()> {
        let mut command = match &self.network {
            None => Command::new(self.programs.join("containerd")),
            // Its mounts stay the machine's: `ip netns exec` would hide the cgroups.
            Some(path) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path.display()));
                command.arg(self.programs.join("containerd"));
                command
            }
        };
        let mut service = Service::start(
            command
                .arg("--config")
                .arg(&self.config)
                .env("CLOISTER_STATE_ROOT", self.shim_state()),
            &self.base.join("containerd.log"),
        )?;
        let socket = self.socket.clone();
        service.wait_until(READY, || UnixStream::connect(&socket).is_ok())?;
        self.service = Some(service);
        Ok(())
    }

    /// SIGKILL to the daemon, as a crash; shims and VMs run on.
    ///
    /// # Errors
    /// When it is not running.
    pub fn crash(&mut self) -> Result<()> {
        self.service
            .take()
            .context("containerd is not running")?
            .crash()
    }

    /// Its log, in which a shim's own lines stand too.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.base.join("containerd.log")).unwrap_or_default()
    }

    /// Its directories: what the host keeps of images and containers.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        vec![
            self.base.join("root"),
            self.base.join("run"),
            self.shim_state(),
        ]
    }

    /// Where shims keep what belongs to a running pod.
    #[must_use]
    pub fn shim_state(&self) -> PathBuf {
        self.base.join(SHIM_STATE)
    }

    /// Waits until nothing is left of what was started since.
    ///
    /// # Errors
    /// With what is still there after `SETTLE`.
    pub fn settled(&self, before: &Leftovers) -> Result<()> {
        let since = Instant::now();
        loop {
            let left = self.leftovers().since(before);
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                since.elapsed() < SETTLE,
                "left behind:\n{}",
                left.join("\n")
            );
            std::thread::sleep(POLL);
        }
    }

    /// Everything that a pod could leave behind on this host.
    #[must_use]
    pub fn leftovers(&self) -> Leftovers {
        let bundles = self
            .base
            .join("run/io.containerd.runtime.v2.task")
            .join(self.namespace);
        let ran = self.ran.lock().unwrap_or_else(PoisonError::into_inner);
        let sockets: Vec<_> = ran.iter().map(|id| self.shim_socket(id)).collect();
        host::leftovers(
            &self.base,
            &[self.shim_state().join(self.namespace), bundles],
            &sockets,
        )
    }

    /// Where the shim of a pod listens for us. Others' shims on this host are none of our business.
    #[must_use]
    pub fn shim_socket(&self, id: &str) -> PathBuf {
        let name = format!("{}/{}/{id}", self.socket.display(), self.namespace);
        Path::new(SHIM_SOCKETS).join(hex::encode(Sha256::digest(name)))
    }

    /// Notes a pod that something else than `ctr` started, for [`Self::leftovers`].
    pub fn note_pod(&self, id: &str) {
        self.ran
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.to_owned());
    }

    fn note(&self, args: &[&str]) {
        if args.first() == Some(&"run") {
            let words = args
                .iter()
                .filter(|word| word.len() < MAX_ID)
                .map(|word| (*word).to_owned());
            self.ran
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(words);
        }
    }

    /// A `ctr` command on this containerd, to be given its arguments.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut ctr = Command::new(self.programs.join("ctr"));
        ctr.arg("--address")
            .arg(&self.socket)
            .args(["--namespace", self.namespace]);
        ctr
    }

    /// Runs `ctr` with `args`, at most `SHORT`.
    ///
    /// # Errors
    /// When it cannot run or hangs; a non-zero exit is for the caller to judge.
    pub fn ctr(&self, args: &[&str]) -> Result<Finished> {
        self.ctr_within(SHORT, args)
    }

    /// Runs `ctr` with a time limit of its own.
    ///
    /// # Errors
    /// As [`Self::ctr`].
    pub fn ctr_within(&self, limit: Duration, args: &[&str]) -> Result<Finished> {
        self.note(args);
        within(limit, self.command().args(args))
    }

    /// Runs `ctr` with `args` and its own `--timeout`, which it hands to the shim with every call; waits
    /// for it three times as long.
    ///
    /// # Errors
    /// As [`Self::ctr`].
    pub fn ctr_hurried(&self, timeout: Duration, args: &[&str]) -> Result<Finished> {
        self.note(args);
        let seconds = format!("{}s", timeout.as_secs());
        let mut ctr = self.command();
        within(timeout * 3, ctr.args(["--timeout", &seconds]).args(args))
    }

    /// Starts `ctr` and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn ctr_running(&self, args: &[&str]) -> Result<Running> {
        self.note(args);
        Running::start(self.command().args(args))
    }

    /// Deletes a container with its task, whatever state it is in.
    pub fn remove(&self, id: &str) {
        let _ = self.ctr(&["task", "kill", "--all", "--signal", "SIGKILL", id]);
        let _ = self.ctr(&["task", "delete", "--force", id]);
        let _ = self.ctr(&["container", "delete", id]);
    }

    /// Names of all containers.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        self.ctr(&["container", "list", "--quiet"])
            .map(|said| said.stdout.lines().map(str::to_owned).collect())
            .unwrap_or_default()
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.service.is_some() {
            for id in self.containers() {
                self.remove(&id);
            }
        }
        self.service = None;
        host::end_processes_of(&self.base);
        host::unmount_below(&self.base);
    }
}
