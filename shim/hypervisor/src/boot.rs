//! From a checked spec to a QEMU that has greeted: what the host offers is resolved, sockets and the
//! vsock device are made, and from then on someone waits for QEMU's end.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::accel::{self, Resolved};
use crate::console::{self, CONSOLE_TAIL, Panic, Reading, STDERR_TAIL};
use crate::nic::CardFds;
use crate::qemu::{Facts, VsockDevice, arguments};
use crate::qmp::{Event, Qmp, Version};
use crate::spec::{Accel, CheckedSpec, Scratch, VmSpec, Vsock};
use crate::supervise::{self, Cause, Exit, Launch, Process, Started, Status, may_unshare};
use crate::tail::Tail;
use crate::tee;
use crate::tsc;
use crate::vhost_net;
use crate::vm::{BootError, GREETING_TIMEOUT, QUIT_TIMEOUT};
use crate::vsock::{Device, Incoming, KernelDevice, UserDevice};

/// How long the last output of an ended QEMU is waited for. It is in the pipes already.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// A QEMU that has greeted, and all that belongs to it.
#[derive(Debug)]
pub(crate) struct Greeted {
    pub(crate) process: Process,
    pub(crate) qmp: Qmp,
    pub(crate) version: Version,
    pub(crate) vsock: Arc<Device>,
    pub(crate) exited: watch::Receiver<Option<Exit>>,
    pub(crate) stopping: watch::Sender<bool>,
    pub(crate) console: Tail,
    pub(crate) stderr: Tail,
    pub(crate) accel: Resolved,
    pub(crate) measured_command_line: String,
    pub(crate) at: Instant,
}

/// All that QEMU is started with.
pub(crate) struct Prepared {
    facts: Facts,
    vsock: Device,
    incoming: Incoming,
    qmp: UnixStream,
    console: UnixStream,
    descriptors: Vec<OwnedFd>,
}

pub(crate) async fn prepare(spec: &CheckedSpec) -> Result<Prepared, BootError> {
    let memory_encryption = match &spec.spec().confidential {
        Some(wanted) => {
            let has_igvm = spec.spec().igvm.is_some();
            tee::ready(wanted, has_igvm, &spec.spec().qemu).await?
        }
        None => None,
    };
    let accel = match &spec.spec().confidential {
        Some(_) => accel::resolve(Accel::Kvm).map_err(BootError::NoKvm)?,
        None => accel::resolve(spec.spec().accel)?,
    };
    let measuring = (accel == Resolved::Tcg).then(|| tokio::task::spawn_blocking(tsc::measure_khz));
    let (qmp, qmp_end) = socket_pair().map_err(BootError::Socket)?;
    let (console, console_end) = socket_pair().map_err(BootError::Socket)?;
    let (sender, receiver) = mpsc::channel(crate::vsock::MAX_INCOMING);
    let made = make_vsock(spec.spec(), sender).map_err(BootError::Vsock)?;
    let tsc_khz = match measuring {
        Some(task) => task.await.ok().flatten(),
        None => None,
    };
    let scratch = spec.spec().scratch.as_ref().map(make_scratch).transpose()?;
    let cards = cards(spec.spec(), accel).map_err(BootError::Socket)?;
    let facts = Facts {
        accel,
        tsc_khz,
        vsock: made.argument,
        host_port: made.host_port,
        qmp_fd: qmp_end.as_raw_fd(),
        console_fd: console_end.as_raw_fd(),
        scratch_fd: scratch.as_ref().map(AsRawFd::as_raw_fd),
        cards: cards
            .iter()
            .map(|card| card.as_ref().map(OwnedCard::fds))
            .collect(),
        memory_encryption,
    };
    let mut descriptors = vec![qmp_end, console_end, made.descriptor];
    descriptors.extend(scratch);
    for card in cards.into_iter().flatten() {
        descriptors.push(card.tap);
        descriptors.extend(card.vhost);
    }
    Ok(Prepared {
        facts,
        vsock: made.device,
        incoming: Incoming::new(receiver),
        qmp,
        console,
        descriptors,
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
        Vsock::Auto => spec.confidential.is_none() && KernelDevice::is_available(),
    };
    if kernel {
        let (device, descriptor) = KernelDevice::open(spec.host_port, incoming)?;
        let argument = VsockDevice::Kernel {
            fd: descriptor.as_raw_fd(),
            cid: device.cid(),
        };
        let host_port = device.host_port();
        return Ok(MadeVsock {
            device: Device::Kernel(device),
            argument,
            descriptor,
            host_port,
        });
    }
    let (device, descriptor) = UserDevice::start(&spec.state_dir, spec.host_port, incoming)?;
    let argument = VsockDevice::User {
        fd: descriptor.as_raw_fd(),
    };
    Ok(MadeVsock {
        device: Device::User(device),
        argument,
        descriptor,
        host_port: spec.host_port,
    })
}

/// A file without a name: it is gone with the last who has it open, and that is QEMU.
fn make_scratch(scratch: &Scratch) -> Result<OwnedFd, BootError> {
    let made = tempfile::tempfile_in(&scratch.directory).and_then(|file| {
        file.set_len(u64::from(scratch.mib) << 20)?;
        Ok(file)
    });
    made.map(OwnedFd::from)
        .map_err(|source| BootError::Scratch {
            mib: scratch.mib,
            directory: scratch.directory.clone(),
            source,
        })
}

/// What QEMU inherits for an interface.
struct OwnedCard {
    tap: OwnedFd,
    vhost: Option<OwnedFd>,
}

impl OwnedCard {
    fn fds(&self) -> CardFds {
        CardFds {
            tap: self.tap.as_raw_fd(),
            vhost: self.vhost.as_ref().map(AsRawFd::as_raw_fd),
        }
    }
}

/// Descriptors of our own of the interfaces' devices: those of the spec go with the spec.
fn cards(spec: &VmSpec, accel: Resolved) -> io::Result<Vec<Option<OwnedCard>>> {
    let has_vhost = vhost_net::is_wanted(spec, accel);
    let card = |tap: BorrowedFd<'_>| {
        Ok(OwnedCard {
            tap: tap.try_clone_to_owned()?,
            vhost: has_vhost.then(vhost_net::open).flatten(),
        })
    };
    let taps = spec.nics.iter().map(crate::Nic::tap);
    taps.map(|tap| tap.map(card).transpose()).collect()
}

/// Whether QEMU makes no connection itself: all it needs of the network are descriptors that it inherits, or is sent
/// later. Who takes QEMU over from within the guest is then in a namespace in which nothing is, and not in the host's.
fn has_no_sockets(spec: &VmSpec) -> bool {
    spec.nics.iter().all(|nic| nic.tap().is_some())
}

/// Our end, registered with the runtime, and QEMU's.
fn socket_pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

impl Prepared {
    /// Whether the guest's memory is another process's too.
    pub(crate) fn is_shared(&self, spec: &CheckedSpec) -> bool {
        crate::qemu::is_shared(spec, &self.facts)
    }

    pub(crate) async fn start(self, spec: &CheckedSpec) -> Result<(Greeted, Incoming), BootError> {
        let measured_command_line = crate::qemu::measured_command_line(spec);
        let arguments = arguments(spec, &self.facts);
        debug!(vm = spec.spec().name, ?arguments, "starting QEMU");
        let launch = Launch {
            program: spec.spec().qemu.clone(),
            arguments: arguments.into_iter().map(OsString::from).collect(),
            directory: spec.spec().state_dir.clone(),
            descriptors: self.descriptors,
            without_network: has_no_sockets(spec.spec()) && may_unshare(),
        };
        let program = launch.program.display().to_string();
        let spawn_failed = |source| BootError::Spawn {
            program: program.clone(),
            source,
        };
        let Started {
            process,
            stderr,
            ended,
        } = supervise::spawn(launch).await.map_err(spawn_failed)?;
        let stderr = pipe::Receiver::from_owned_fd(stderr.into()).map_err(BootError::Socket)?;
        let stderr = console::read(stderr, STDERR_TAIL, None);
        let log = spec.spec().console_log.as_deref();
        let console = console::read(self.console, CONSOLE_TAIL, log);
        let tails = (console.tail.clone(), stderr.tail.clone());

        let (publisher, exited) = watch::channel(None);
        let (stopping, stopped) = watch::channel(false);
        let (reason, reasons) = watch::channel(None);
        tokio::spawn(publish_exit(
            ended,
            console,
            stderr,
            Clues { stopped, reasons },
            publisher,
        ));

        let (qmp, version, events) = greet(self.qmp, exited.clone()).await?;
        let at = Instant::now();
        tokio::spawn(follow(events, reason));
        let greeted = Greeted {
            process,
            qmp,
            version,
            vsock: Arc::new(self.vsock),
            exited,
            stopping,
            console: tails.0,
            stderr: tails.1,
            accel: self.facts.accel,
            measured_command_line,
            at,
        };
        Ok((greeted, self.incoming))
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
            Ok(Ok(exit)) => Err(exit
                .clone()
                .map_or(BootError::Qmp(error), BootError::Exited)),
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
    let _ = timeout(DRAIN_TIMEOUT, async {
        (console.task.await, stderr.task.await)
    })
    .await;
    // The reason is on the control socket, which was closed before the process ended.
    let mut reasons = clues.reasons.clone();
    let _ = timeout(DRAIN_TIMEOUT, async {
        while reasons.borrow().is_none() && reasons.changed().await.is_ok() {}
    })
    .await;
    let exit = Exit {
        status,
        cause: clues.cause(&console.panic),
        stderr_tail: stderr.tail.text(),
    };
    info!(%exit, "VM ended");
    publisher.send_replace(Some(exit));
}
