//! A running VM: booting it, talking to it, and knowing at once when it is gone.
//!
//! ```text
//!   boot ─► resolve ─► spawn ─► QMP greeting ─► running ─────────► exited
//!              │          │          │             │                  ▲
//!              ▼          ▼          ▼             └─ kill, shutdown ─┘
//!          BootError   BootError   BootError::Exited, as soon as QEMU has ended
//! ```

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::accel::{self, KvmUnusable, Resolved};
use crate::console::{self, CONSOLE_TAIL, Panic, Reading, STDERR_TAIL};
use crate::qemu::{Facts, VsockDevice, arguments};
use crate::qmp::{Event, Qmp, QmpError, Version};
use crate::spec::{CheckedSpec, SpecError, VmSpec, Vsock};
use crate::supervise::{self, Cause, Exit, Launch, Process, Started, Status};
use crate::tail::Tail;
use crate::tsc;
use crate::vsock::{Device, Incoming, KernelDevice, UserDevice, VsockStream};

/// The oldest QEMU whose command line was tried.
const OLDEST_QEMU: Version = Version { major: 7, minor: 2, micro: 0 };
/// How long QEMU may take to greet. It takes 50 ms; a host that swaps takes longer. The end of
/// QEMU is noticed at once and never waited for.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long QEMU may take to end after `quit`, before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the last output of an ended QEMU is waited for. It is in the pipes already.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// Why a VM did not come to run.
#[derive(Debug, Error)]
pub enum BootError {
    /// The spec is not valid.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// KVM was asked for by name and cannot be used.
    #[error("KVM was asked for and cannot be used: {0}; set the accelerator to \"auto\" or \"tcg\"")]
    Kvm(#[from] KvmUnusable),
    /// The vsock device cannot be made.
    #[error("vsock device: {0}")]
    Vsock(#[source] io::Error),
    /// A socket between us and QEMU cannot be made.
    #[error("socket for QEMU: {0}")]
    Socket(#[source] io::Error),
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

/// Adding devices to a running VM: an ability that a VM may have.
pub trait Hotplug: Send + Sync {}

/// A running VM. Dropping it kills and reaps QEMU.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    qmp: Qmp,
    vsock: Device,
    incoming: Option<Incoming>,
    exited: watch::Receiver<Option<Exit>>,
    stopping: watch::Sender<bool>,
    console: Tail,
    stderr: Tail,
    timings: Timings,
    accel: Resolved,
    version: Version,
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
        let forked = Instant::now();
        let (vm, greeted) = prepared.start(&spec).await?;
        let mut vm = vm;
        vm.check_running().await?;
        vm.timings = Timings {
            resolve: forked - called,
            qmp_ready: greeted - forked,
            running: greeted.elapsed(),
        };
        let Version { major, minor, .. } = vm.version;
        info!(
            vm = spec.spec().name, pid = vm.pid(), accel = ?vm.accel, qemu = %format!("{major}.{minor}"),
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
        self.vsock.connect(port).await
    }

    /// The connections that the guest opens to the host port. Can be taken once.
    pub fn incoming(&mut self) -> Option<Incoming> {
        self.incoming.take()
    }

    /// `None` as long as the VM runs, then how it ended.
    #[must_use]
    pub fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.clone()
    }

    /// The last 64 KiB of the guest's console. The guest chooses its content.
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.console.text()
    }

    /// The last 16 KiB of QEMU's error output.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        self.stderr.text()
    }

    /// How long the boot took.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// QEMU's process id, in a process group of its own.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The accelerator that was chosen.
    #[must_use]
    pub fn accel(&self) -> Resolved {
        self.accel
    }

    /// QEMU's version.
    #[must_use]
    pub fn qemu_version(&self) -> Version {
        self.version
    }

    /// Adding devices, where the VM can.
    #[must_use]
    pub fn hotplug(&self) -> Option<&dyn Hotplug> {
        None
    }

    /// Waits up to `grace` for the end of a VM whose guest was asked to power off (by its agent:
    /// nothing is asked here), then ends QEMU, then kills it.
    pub async fn shutdown(&self, grace: Duration) -> Exit {
        if let Ok(exit) = timeout(grace, self.wait()).await {
            return exit;
        }
        self.stopping.send_replace(true);
        // An error means that QEMU is ending, or will have to be killed.
        let quit = async {
            let _ = self.qmp.quit().await;
            self.wait().await
        };
        match timeout(QUIT_TIMEOUT, quit).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }

    /// Kills QEMU and waits for its end.
    pub async fn kill(&self) -> Exit {
        self.stopping.send_replace(true);
        self.process.kill();
        self.wait().await
    }

    /// Waits for the end of the VM.
    pub async fn wait(&self) -> Exit {
        let mut exited = self.exited.clone();
        match exited.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(exit)) => exit.clone(),
            // The task that publishes the end is gone only with the runtime.
            Ok(None) | Err(_) => Exit {
                status: Status::Unknown,
                cause: Cause::Vmm,
                stderr_tail: self.stderr.text(),
            },
        }
    }

    async fn check_running(&self) -> Result<(), BootError> {
        if self.version < OLDEST_QEMU {
            return Err(BootError::Version(self.version));
        }
        let status = match self.qmp.query_status().await {
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

/// All that QEMU is started with.
struct Prepared {
    facts: Facts,
    vsock: Device,
    incoming: Incoming,
    qmp: UnixStream,
    console: UnixStream,
    descriptors: Vec<OwnedFd>,
}

async fn prepare(spec: &CheckedSpec) -> Result<Prepared, BootError> {
    let accel = accel::resolve(spec.spec().accel)?;
    let measuring = (accel == Resolved::Tcg).then(|| tokio::task::spawn_blocking(tsc::measure_khz));
    let (qmp, qmp_end) = socket_pair().map_err(BootError::Socket)?;
    let (console, console_end) = socket_pair().map_err(BootError::Socket)?;
    let (sender, receiver) = mpsc::channel(crate::vsock::MAX_INCOMING);
    let made = make_vsock(spec.spec(), sender).map_err(BootError::Vsock)?;
    let tsc_khz = match measuring {
        Some(task) => task.await.ok().flatten(),
        None => None,
    };
    let facts = Facts {
        accel,
        tsc_khz,
        vsock: made.argument,
        host_port: made.host_port,
        qmp_fd: qmp_end.as_raw_fd(),
        console_fd: console_end.as_raw_fd(),
    };
    Ok(Prepared {
        facts,
        vsock: made.device,
        incoming: Incoming::new(receiver),
        qmp,
        console,
        descriptors: vec![qmp_end, console_end, made.descriptor],
    })
}

struct MadeVsock {
    device: Device,
    argument: VsockDevice,
    descriptor: OwnedFd,
    host_port: u32,
}

fn make_vsock(spec: &VmSpec, incoming: mpsc::Sender<OwnedFd>) -> io::Result<MadeVsock> {
    let kernel = match spec.vsock {
        Vsock::User => false,
        Vsock::Kernel => true,
        Vsock::Auto => KernelDevice::is_available(),
    };
    if kernel {
        let (device, descriptor) = KernelDevice::open(spec.host_port, incoming)?;
        let argument = VsockDevice::Kernel { fd: descriptor.as_raw_fd(), cid: device.cid() };
        let host_port = device.host_port();
        return Ok(MadeVsock { device: Device::Kernel(device), argument, descriptor, host_port });
    }
    let (device, descriptor) = UserDevice::start(&spec.state_dir, spec.host_port, incoming)?;
    let argument = VsockDevice::User { fd: descriptor.as_raw_fd() };
    Ok(MadeVsock { device: Device::User(device), argument, descriptor, host_port: spec.host_port })
}

/// Our end, registered with the runtime, and QEMU's.
fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

impl Prepared {
    async fn start(self, spec: &CheckedSpec) -> Result<(Vm, Instant), BootError> {
        let arguments = arguments(spec, &self.facts);
        debug!(vm = spec.spec().name, ?arguments, "starting QEMU");
        let launch = Launch {
            program: spec.spec().qemu.clone(),
            arguments: arguments.into_iter().map(OsString::from).collect(),
            directory: spec.spec().state_dir.clone(),
            descriptors: self.descriptors,
        };
        let program = launch.program.display().to_string();
        let spawn_failed = |source| BootError::Spawn { program: program.clone(), source };
        let Started { process, stderr, ended } = supervise::spawn(launch).await.map_err(spawn_failed)?;
        let stderr = pipe::Receiver::from_owned_fd(stderr.into()).map_err(BootError::Socket)?;
        let stderr = console::read(stderr, STDERR_TAIL, None);
        let log = spec.spec().console_log.as_deref();
        let console = console::read(self.console, CONSOLE_TAIL, log);
        let tails = (console.tail.clone(), stderr.tail.clone());

        let (publisher, exited) = watch::channel(None);
        let (stopping, stopped) = watch::channel(false);
        let (reason, reasons) = watch::channel(None);
        tokio::spawn(publish_exit(ended, console, stderr, Clues { stopped, reasons }, publisher));

        let (qmp, version, events) = greet(self.qmp, exited.clone()).await?;
        let greeted = Instant::now();
        tokio::spawn(follow(events, reason));
        let vm = Vm {
            process,
            qmp,
            vsock: self.vsock,
            incoming: Some(self.incoming),
            exited,
            stopping,
            console: tails.0,
            stderr: tails.1,
            timings: Timings { resolve: Duration::ZERO, qmp_ready: Duration::ZERO, running: Duration::ZERO },
            accel: self.facts.accel,
            version,
        };
        Ok((vm, greeted))
    }
}

/// Waits for the greeting or for the end of QEMU, whichever comes first.
async fn greet(
    stream: UnixStream,
    mut exited: watch::Receiver<Option<Exit>>,
) -> Result<(Qmp, Version, mpsc::Receiver<Event>), BootError> {
    match timeout(GREETING_TIMEOUT, Qmp::connect(stream)).await {
        Ok(Ok(connected)) => Ok(connected),
        Err(_) => Err(BootError::Silent),
        // QEMU closes the socket when it ends: the reason follows within milliseconds.
        Ok(Err(error)) => match timeout(QUIT_TIMEOUT, exited.wait_for(Option::is_some)).await {
            Ok(Ok(exit)) => Err(exit.clone().map_or(BootError::Qmp(error), BootError::Exited)),
            _ => Err(BootError::Qmp(error)),
        },
    }
}

/// Remembers the first reason that QEMU gave for its end.
async fn follow(mut events: mpsc::Receiver<Event>, reason: watch::Sender<Option<String>>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Shutdown { reason: said } => {
                reason.send_if_modified(|known| known.is_none() && known.replace(said).is_none());
            }
            Event::GuestPanicked => debug!("the guest told of its panic"),
            Event::Other(name) => debug!(name, "QMP event"),
        }
    }
}

/// What is known about an end besides the status.
struct Clues {
    stopped: watch::Receiver<bool>,
    reasons: watch::Receiver<Option<String>>,
}

impl Clues {
    fn cause(&self, panic: &Panic) -> Cause {
        if let Some(line) = panic.line() {
            return Cause::Panic(line);
        }
        if *self.stopped.borrow() {
            return Cause::Stopped;
        }
        match self.reasons.borrow().as_deref() {
            Some("guest-shutdown") => Cause::PoweredOff,
            Some("guest-reset") => Cause::Reset,
            Some("guest-panic") => Cause::Panic("told by the panic device".to_owned()),
            Some("host-qmp-quit" | "host-signal") => Cause::Stopped,
            Some(_) | None => Cause::Vmm,
        }
    }
}

async fn publish_exit(
    ended: oneshot::Receiver<Status>,
    console: Reading,
    stderr: Reading,
    clues: Clues,
    publisher: watch::Sender<Option<Exit>>,
) {
    let status = ended.await.unwrap_or(Status::Unknown);
    let _ = timeout(DRAIN_TIMEOUT, async { (console.task.await, stderr.task.await) }).await;
    // The reason is on the control socket, which was closed before the process ended.
    let mut reasons = clues.reasons.clone();
    let _ = timeout(DRAIN_TIMEOUT, async {
        while reasons.borrow().is_none() && reasons.changed().await.is_ok() {}
    })
    .await;
    let exit = Exit { status, cause: clues.cause(&console.panic), stderr_tail: stderr.tail.text() };
    info!(%exit, "VM ended");
    publisher.send_replace(Some(exit));
}
