//! A real `cloister-snapshotter`, and what containerd must be told of it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::product;
use crate::run::Service;
use crate::state::State;

/// Its name in containerd.
pub const NAME: &str = "cloister";
/// What the table of a runtime handler has more.
pub const FOR_HANDLER: &str = "  snapshotter = \"cloister\"\n";
const READY: Duration = Duration::from_secs(10);

/// The running snapshotter.
#[derive(Debug)]
pub struct Snapshotter {
    service: Option<Service>,
    config: PathBuf,
    socket: PathBuf,
    root: PathBuf,
    log: PathBuf,
}

impl Snapshotter {
    /// Starts it below `state`; images that match `unpack` are unpacked on the host.
    ///
    /// # Errors
    /// When it is not built, or does not listen in time.
    pub fn start(state: &State, unpack: &[&str]) -> Result<Self> {
        let (root, socket) = (state.path().join("snap"), state.path().join("snap.sock"));
        let containerd = state.path().join("c.sock");
        let config = state.file(
            "snapshotter.toml",
            format!(
                "root = {root:?}\nsocket = {socket:?}\ncontainerd = {containerd:?}\nunpack = {unpack:?}\n"
            ),
        )?;
        let mut snapshotter = Self {
            service: None,
            config,
            socket,
            root,
            log: state.path().join("snapshotter.log"),
        };
        snapshotter.revive()?;
        Ok(snapshotter)
    }

    /// Starts it again on the same directory.
    ///
    /// # Errors
    /// When it does not listen in time.
    pub fn revive(&mut self) -> Result<()> {
        let mut command = Command::new(product::bin("cloister-snapshotter")?);
        let mut service = Service::start(command.arg("--config").arg(&self.config), &self.log)?;
        let socket = self.socket.clone();
        service.wait_until(READY, || UnixStream::connect(&socket).is_ok())?;
        self.service = Some(service);
        Ok(())
    }

    /// SIGKILL, as a crash.
    ///
    /// # Errors
    /// When it is not running.
    pub fn crash(&mut self) -> Result<()> {
        let service = self.service.take();
        service.context("the snapshotter is not running")?.crash()
    }

    /// Where it keeps snapshots.
    #[must_use]
    pub fn trees(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What containerd 1.6 must be told, from its CRI plugin's table `containerd` on: this snapshotter for all pods,
    /// and whom to trust as a registry.
    #[must_use]
    pub fn for_all_pods(&self, hosts: &Path) -> String {
        format!("  snapshotter = \"{NAME}\"\n{}", self.known(hosts))
    }

    /// The same for later ones, of which each runtime handler has a snapshotter ([`FOR_HANDLER`]).
    #[must_use]
    pub fn known(&self, hosts: &Path) -> String {
        format!(
            "  disable_snapshot_annotations = false\n\
             [proxy_plugins.{NAME}]\n  type = \"snapshot\"\n  address = {socket:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = {hosts:?}\n",
            socket = self.socket,
        )
    }
}

/// What containerd 2 must be told besides of such a handler: its part that pulls is another one than that which runs.
#[must_use]
pub fn for_handler_of_2(handler: &str) -> String {
    format!("[plugins.\"io.containerd.cri.v1.images\".runtime_platforms.{handler}]\n{FOR_HANDLER}")
}
