//! The virtio-fs daemon of one VM: it serves the sandbox's shared directory to a plain guest.
//!
//! What it serves is read-only where names of mounts are, see [`rootfs::serve`]. It runs in the shim's mount
//! namespace (`sandbox=chroot`), so that a root file system mounted later by the shim is seen by the guest too. It ends when the VM disconnects, and is killed when
//! this value is dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::config::{VirtioFsCache, Vm};
use crate::rootfs::{self, RootfsError};
use crate::state_dir::{OWNER_VARIABLE, StateDir};

/// The tag by which the guest mounts the directory; Kata's name.
pub const TAG: &str = "kataShared";
/// Where distributions put the daemon.
const PLACES: &[&str] = &[
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/libexec/qemu/virtiofsd",
    "/usr/bin/virtiofsd",
];
/// How long it may take to listen. It takes some 10 ms.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look for its socket.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Open files of the daemon. Its own default is more than most hosts let a process have.
const OPEN_FILES: u32 = 16_384;
/// Bytes of its error output that an error shows.
const MAX_STDERR: u64 = 4096;

/// A running daemon.
#[derive(Debug)]
pub struct Virtiofsd {
    child: Child,
    socket: PathBuf,
}

/// Why there is no daemon.
#[derive(Debug, Error)]
pub enum StartError {
    /// It is in none of the usual places.
    #[error("no virtiofsd in {PLACES:?}: install it, or set virtio_fs_daemon in [hypervisor.qemu]")]
    Missing,
    /// There is nothing to serve.
    #[error("prepare the shared directory: {0}")]
    Serve(#[from] RootfsError),
    /// The program does not start.
    #[error("start {program:?}: {source}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It ended before it listened.
    #[error("virtiofsd ended at once: {stderr}")]
    Ended {
        /// What it wrote to its error output.
        stderr: String,
    },
    /// It runs and does not listen.
    #[error("virtiofsd did not listen in {} s", LISTEN_TIMEOUT.as_secs())]
    Silent,
}

/// The daemon's program: the configured one, or that in one of the usual places.
#[must_use]
pub fn find(vm: &Vm) -> Option<PathBuf> {
    let usual = || PLACES.iter().map(PathBuf::from).find(|path| path.exists());
    vm.virtio_fs_daemon.clone().or_else(usual)
}

impl Virtiofsd {
    /// Prepares the shared directory, starts the daemon for it and waits until it listens.
    ///
    /// # Errors
    /// [`StartError`], as soon as the daemon has ended where it ends.
    pub async fn start(vm: &Vm, directory: &StateDir) -> Result<Self, StartError> {
        let program = find(vm).ok_or(StartError::Missing)?;
        let served = rootfs::serve(directory)?;
        let socket = directory.path().join("virtiofs.sock");
        // Its parent directory is the sandbox's own; a left-over socket would be taken for a live one.
        let _ = std::fs::remove_file(&socket);
        let child = Command::new(&program)
            .args(arguments(&socket, &served, vm.virtio_fs_cache))
            .args(&vm.virtio_fs_extra_args)
            .env(OWNER_VARIABLE, directory.path())
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| StartError::Spawn {
                program: program.clone(),
                source,
            })?;
        let mut daemon = Self { child, socket };
        if let Some(pid) = daemon.child.id() {
            // The owner variable finds it too, should this fail.
            let _ = directory.record("virtiofsd", pid);
        }
        tokio::time::timeout(LISTEN_TIMEOUT, daemon.listening())
            .await
            .map_err(|_| StartError::Silent)??;
        daemon.drain_stderr();
        Ok(daemon)
    }

    /// The socket on which it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for its end. Can be dropped and called again.
    pub async fn ended(&mut self) {
        // An error means that it cannot be waited for, and so is gone.
        let _ = self.child.wait().await;
    }

    /// Kills it and waits for its end.
    pub async fn stop(mut self) {
        // Dropping it does the same, without waiting.
        let _ = self.child.kill().await;
    }

    async fn listening(&mut self) -> Result<(), StartError> {
        while !self.socket.exists() {
            if let Ok(Some(_)) = self.child.try_wait() {
                let mut stderr = Vec::new();
                if let Some(pipe) = self.child.stderr.take() {
                    let _ = pipe.take(MAX_STDERR).read_to_end(&mut stderr).await;
                }
                return Err(StartError::Ended {
                    stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
                });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Its messages go to the debug log; a full pipe would stop it.
    fn drain_stderr(&mut self) {
        let Some(mut pipe) = self.child.stderr.take() else {
            return;
        };
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                tracing::debug!(text = %String::from_utf8_lossy(&buffer[..count]), "virtiofsd");
            }
        });
    }
}

/// Both the C and the Rust daemon take these.
fn arguments(socket: &Path, shared: &Path, cache: VirtioFsCache) -> Vec<String> {
    let cache = match cache {
        VirtioFsCache::Auto => "auto",
        VirtioFsCache::Always => "always",
        VirtioFsCache::Never => "none",
    };
    vec![
        format!("--socket-path={}", socket.display()),
        "-o".to_owned(),
        format!("source={}", shared.display()),
        "-o".to_owned(),
        "sandbox=chroot".to_owned(),
        "-o".to_owned(),
        format!("cache={cache}"),
        format!("--rlimit-nofile={OPEN_FILES}"),
    ]
}
