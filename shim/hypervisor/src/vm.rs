//! A running VM: booting it, talking to it, and knowing at once when it is gone.
//!
//! ```text
//!   boot ─► resolve ─► spawn ─► QMP greeting ─► running ─────────► exited
//!              │          │          │             │                  ▲
//!              ▼          ▼          ▼             └─ kill, shutdown ─┘
//!          BootError   BootError   BootError::Exited, as soon as QEMU has ended
//! ```

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::info;

use crate::accel::{KvmUnusable, Resolved};
use crate::boot::{Greeted, prepare};
use crate::disk::Disks;
use crate::growth::Hotplug;
use crate::hot_nic::HotNics;
use crate::qmp::{Qmp, QmpError, Version};
use crate::spec::{CheckedSpec, SpecError, VmSpec};
use crate::supervise::{Cause, Exit, Status};
use crate::tee::NotReady;
use crate::vhost_net;
use crate::vsock::{Connector, Incoming, VsockStream};

/// The oldest QEMU whose command line was tried.
const OLDEST_QEMU: Version = Version {
    major: 7,
    minor: 2,
    micro: 0,
};
/// How long QEMU may take to greet. It takes 50 ms; a host that swaps takes longer. The end of
/// QEMU is noticed at once and never waited for.
pub(crate) const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long QEMU may take to end after `quit`, before it is killed, or after it closed its sockets.
pub(crate) const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a VM did not come to run.
#[derive(Debug, Error)]
pub enum BootError {
    /// The spec is not valid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// KVM was asked for by name and cannot be used.
    #[error(
        "KVM was asked for and cannot be used: {0}; set the accelerator to \"auto\" or \"tcg\""
    )]
    Kvm(#[from] KvmUnusable),
    /// A confidential guest has no other accelerator.
    #[error("a confidential guest needs KVM: {0}")]
    NoKvm(#[source] KvmUnusable),
    /// The host or QEMU cannot launch the confidential guest that was asked for.
    #[error("no confidential guest is launched, and nothing in its place: {0}")]
    Tee(#[from] NotReady),
    /// The vsock device cannot be made.
    #[error("vsock device: {0}")]
    Vsock(#[source] io::Error),
    /// A socket between us and QEMU cannot be made.
    #[error("socket for QEMU: {0}")]
    Socket(#[source] io::Error),
    /// The scratch disk cannot be made.
    #[error("scratch disk of {mib} MiB in {directory:?}: {source}")]
    Scratch {
        /// Its size.
        mib: u32,
        /// Where it was to be.
        directory: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// QEMU does not start.
    #[error("start of {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// QEMU ended before the VM ran.
    #[error("the VM ended before it ran: {0}")]
    Exited(Exit),
    /// QEMU runs but does not do what it is told.
    #[error("control of QEMU: {0}")]
    Qmp(#[from] QmpError),
    /// QEMU runs and says nothing.
    #[error("QEMU did not greet within {} s", GREETING_TIMEOUT.as_secs())]
    Silent,
    /// QEMU is too old.
    #[error("QEMU {}.{} is too old: install {}.{} or newer", .0.major, .0.minor, OLDEST_QEMU.major, OLDEST_QEMU.minor)]
    Version(Version),
    /// QEMU's run state is not one in which the guest runs.
    #[error("QEMU started with the run state {0:?} in place of running")]
    NotRunning(String),
}

/// How long the steps of a boot took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// From the call to the fork: checks, accelerator, vsock device.
    pub resolve: Duration,
    /// From the fork to QEMU's greeting.
    pub qmp_ready: Duration,
    /// From the greeting to the answer that the guest runs.
    pub running: Duration,
}

/// Tells whether a VM stands still because somebody wants it to.
#[derive(Debug)]
pub struct Pulse {
    qmp: Qmp,
    pid: u32,
}

impl Pulse {
    /// Whether QEMU was stopped by a signal, or the guest over the control socket. A guest that QEMU stopped by itself,
    /// such as one whose instructions KVM cannot go on with (`internal-error`), is not paused: nobody makes it go on.
    pub async fn is_paused(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        if stat.is_ok_and(|stat| is_stopped(&stat)) {
            return true;
        }
        let status = self.qmp.query_status().await;
        status.is_ok_and(|status| is_wanted(&status))
    }
}

/// Whether a run state of QEMU (`RunState` of `qapi/run-state.json`) is one that somebody asked for, and in which
/// the guest does not run.
fn is_wanted(status: &str) -> bool {
    const WANTED: [&str; 9] = [
        "paused",
        "suspended",
        "debug",
        // The guest comes from another host, or goes to one.
        "prelaunch",
        "inmigrate",
        "finish-migrate",
        "postmigrate",
        // Its memory is being written down, or read.
        "save-vm",
        "restore-vm",
    ];
    WANTED.contains(&status)
}

/// The state in a line of `proc_pid_stat(5)`, behind the name, which may have blanks and brackets.
fn is_stopped(stat: &str) -> bool {
    let behind = stat.rsplit_once(") ").map(|(_, behind)| behind);
    behind.is_some_and(|behind| behind.starts_with(['T', 't']))
}

/// A running VM. Dropping it kills and reaps QEMU.
#[derive(Debug)]
pub struct Vm {
    qemu: Greeted,
    incoming: Option<Incoming>,
    hotplug: Option<Hotplug>,
    disks: Option<Disks>,
    nics: Option<HotNics>,
    timings: Timings,
}

impl Vm {
    /// Boots a VM and returns as soon as its guest runs, which is long before the guest's programs
    /// do. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`BootError`], within milliseconds of QEMU's end where QEMU ends.
    pub async fn boot(spec: VmSpec) -> Result<Self, BootError> {
        let called = Instant::now();
        let spec = CheckedSpec::try_from(spec)?;
        let prepared = prepare(&spec).await?;
        let is_shared = prepared.is_shared(&spec);
        let forked = Instant::now();
        let (qemu, incoming) = prepared.start(&spec).await?;
        let greeted = qemu.at;
        let vhost = vhost_net::is_wanted(spec.spec(), qemu.accel);
        let mut vm = Self {
            hotplug: Hotplug::new(qemu.qmp.clone(), spec.spec(), qemu.accel, is_shared),
            disks: Disks::new(&qemu.qmp, spec.spec()),
            nics: HotNics::new(&qemu.qmp, spec.spec(), vhost),
            qemu,
            incoming: Some(incoming),
            timings: Timings {
                resolve: forked - called,
                qmp_ready: greeted - forked,
                running: Duration::ZERO,
            },
        };
        vm.check_running().await?;
        vm.timings.running = greeted.elapsed();
        let Version { major, minor, .. } = vm.qemu.version;
        info!(
            vm = spec.spec().name, pid = vm.pid(), accel = ?vm.accel(), qemu = %format!("{major}.{minor}"),
            milliseconds = called.elapsed().as_millis(), "VM runs"
        );
        Ok(vm)
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// At once: `NotConnected` while the guest's driver is not up, `ConnectionRefused` where no one
    /// listens, `ConnectionReset` when the VM ends. `TimedOut` when the guest does not answer.
    pub async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        self.qemu.vsock.connect(port).await
    }

    /// The same for who does not have the VM.
    #[must_use]
    pub fn connector(&self) -> Connector {
        Connector::new(&self.qemu.vsock)
    }

    /// The connections that the guest opens to the host port. Can be taken once.
    pub fn incoming(&mut self) -> Option<Incoming> {
        self.incoming.take()
    }

    /// What makes the VM grow, where it may.
    #[must_use]
    pub fn hotplug(&self) -> Option<&Hotplug> {
        self.hotplug.as_ref()
    }

    /// What lets disks come and go, where they may.
    #[must_use]
    pub fn disks(&self) -> Option<&Disks> {
        self.disks.as_ref()
    }

    /// What lets network interfaces come, where they may.
    #[must_use]
    pub fn hot_nics(&self) -> Option<&HotNics> {
        self.nics.as_ref()
    }

    /// `None` as long as the VM runs, then how it ended.
    #[must_use]
    pub fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.qemu.exited.clone()
    }

    /// The last 64 KiB of the guest's console. The guest chooses its content.
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.qemu.console.text()
    }

    /// The last 16 KiB of QEMU's error output.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        self.qemu.stderr.text()
    }

    /// How long the boot took.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// QEMU's process id, in a process group of its own.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.qemu.process.pid()
    }

    /// What the kernel of a confidential guest of this specification is started with, and what is measured of it. A
    /// plain VM has this host's own words besides: its emulator's, and the port of its vsock device.
    #[must_use]
    pub fn measured_command_line(&self) -> &str {
        &self.qemu.measured_command_line
    }

    /// The accelerator that was chosen.
    #[must_use]
    pub fn accel(&self) -> Resolved {
        self.qemu.accel
    }

    /// What tells whether the VM is paused, for who does not have it.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse {
            qmp: self.qemu.qmp.clone(),
            pid: self.pid(),
        }
    }

    /// Waits up to `grace` for the end of a VM whose guest was asked to power off (by its agent:
    /// nothing is asked here), then ends QEMU, then kills it.
    pub async fn shutdown(&self, grace: Duration) -> Exit {
        if let Ok(exit) = timeout(grace, self.wait()).await {
            return exit;
        }
        self.qemu.stopping.send_replace(true);
        // An error means that QEMU is ending, or will have to be killed.
        let quit = async {
            let _ = self.qemu.qmp.quit().await;
            self.wait().await
        };
        match timeout(QUIT_TIMEOUT, quit).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }

    /// Kills QEMU and waits for its end.
    pub async fn kill(&self) -> Exit {
        self.qemu.stopping.send_replace(true);
        self.qemu.process.kill();
        self.wait().await
    }

    /// Waits for the end of the VM.
    pub async fn wait(&self) -> Exit {
        let mut exited = self.qemu.exited.clone();
        match exited.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            // The task that publishes the end is gone only with the runtime.
            Ok(None) | Err(_) => Exit {
                status: Status::Unknown,
                cause: Cause::Vmm,
                stderr_tail: self.qemu.stderr.text(),
            },
        }
    }

    async fn check_running(&self) -> Result<(), BootError> {
        if self.qemu.version < OLDEST_QEMU {
            return Err(BootError::Version(self.qemu.version));
        }
        let status = match self.qemu.qmp.query_status().await {
            Ok(status) => status,
            Err(error) => return Err(self.boot_failure(error.into()).await),
        };
        match status.as_str() {
            "running" => Ok(()),
            // The guest was quick to end, or QEMU is about to.
            "shutdown" => Err(self.boot_failure(BootError::NotRunning(status)).await),
            _ => Err(BootError::NotRunning(status)),
        }
    }

    /// Prefers the end of QEMU, where there is one, to what followed from it.
    async fn boot_failure(&self, error: BootError) -> BootError {
        match timeout(QUIT_TIMEOUT, self.wait()).await {
            Ok(exit) => BootError::Exited(exit),
            Err(_) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_state_that_somebody_asked_for_is_a_pause() {
        for wanted in ["paused", "suspended", "debug", "prelaunch", "save-vm"] {
            assert!(is_wanted(wanted), "{wanted}");
        }
        for own in [
            "running",
            "internal-error",
            "io-error",
            "guest-panicked",
            "watchdog",
            "shutdown",
            "a later one",
        ] {
            assert!(!is_wanted(own), "{own}");
        }
    }

    #[test]
    fn a_process_that_was_stopped_is_told_from_one_that_waits() {
        assert!(is_stopped("7 (qemu) T 1 7"));
        assert!(is_stopped("7 (a) S) b) t 1 7"));
        assert!(!is_stopped("7 (qemu T 1) S 1 7"));
        assert!(!is_stopped(""));
    }
}
