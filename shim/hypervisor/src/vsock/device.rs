//! The vsock device of this process: a vhost-user back end (QEMU docs, interop/vhost-user) that
//! moves packets between the guest's queues and the table of connections.
//!
//! ```text
//!   thread "vsock"         speaks vhost-user with QEMU, ends when QEMU does, drops all of it
//!   thread "vring_worker"  queues, sockets and commands: whatever wakes it, it runs until nothing
//!                          moves any more, and tells the guest once per round
//! ```
//!
//! Queue 0 is filled for the guest, queue 1 comes from it, queue 2 would carry events of a
//! migration and stays unused.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc as commands};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringRwLock, VringState, VringT,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap, Permissions};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::connection::ConnectReply;
use super::guest_memory::Pieces;
use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header};
use super::stream::VsockStream;

/// The guest's CID. Each VM has a device of its own, so all can have the same.
const GUEST_CID: u64 = 3;
const QUEUES: usize = 3;
const TO_GUEST: usize = 0;
const FROM_GUEST: usize = 1;
/// The most entries of a queue; QEMU offers the guest 128.
const QUEUE_SIZE: usize = 1024;
/// The first event numbers belong to the queues and to the end of the worker.
const COMMAND_EVENT: u64 = QUEUES as u64 + 1;
const SOCKET_EVENT: u64 = QUEUES as u64 + 2;
/// How long a guest whose driver is up may take to answer a connect. The kernel of the guest
/// answers, not a program, so this is long even under emulation.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The device as the VM sees it.
#[derive(Debug)]
pub(crate) struct UserDevice {
    commands: commands::Sender<Connect>,
    wake: Arc<OwnedFd>,
    shutdown: Shutdown,
}

struct Shutdown(ShutdownHandle);

impl std::fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shutdown")
    }
}

/// The one command: connect to a port of the guest.
#[derive(Debug)]
struct Connect {
    port: u32,
    reply: ConnectReply,
}

impl UserDevice {
    /// Starts the device. Returns it with the connected vhost-user socket for QEMU.
    pub(crate) fn start(
        directory: &Path,
        host_port: u32,
        incoming: mpsc::Sender<OwnedFd>,
    ) -> io::Result<(Self, OwnedFd)> {
        let (sender, receiver) = commands::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let memory = Memory::new(GuestMemoryMmap::new());
        let backend = Arc::new(Backend {
            memory: memory.clone(),
            wake: wake.clone(),
            state: Mutex::new(State {
                muxer: Muxer::new(GUEST_CID, host_port, incoming)?,
                commands: receiver,
            }),
        });
        let mut daemon = VhostUserDaemon::new("vsock".to_owned(), backend.clone(), memory)
            .map_err(|error| io::Error::other(error.to_string()))?;
        for worker in daemon.get_epoll_handlers() {
            worker.register_listener(wake.as_raw_fd(), EventSet::IN, COMMAND_EVENT)?;
            let sockets = backend.lock().muxer.descriptor().as_raw_fd();
            worker.register_listener(sockets, EventSet::IN, SOCKET_EVENT)?;
        }
        drop(backend);
        let for_qemu = connect_daemon(&mut daemon, directory)?;
        let handle = daemon.shutdown_handle();
        let handle =
            handle.ok_or_else(|| io::Error::other("the vhost-user connection ended early"))?;
        // Whoever waits for QEMU's end also drops the connections: their callers see it at once.
        thread::Builder::new()
            .name("vsock-end".to_owned())
            .spawn(move || {
                if let Err(error) = daemon.wait() {
                    debug!(%error, "vhost-user connection ended");
                }
            })?;
        Ok((
            Self {
                commands: sender,
                wake,
                shutdown: Shutdown(handle),
            },
            for_qemu,
        ))
    }

    pub(crate) async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| io::Error::new(io::ErrorKind::NotConnected, "the VM is gone");
        self.commands
            .send(Connect { port, reply })
            .map_err(|_| gone(()))?;
        rustix::io::write(&self.wake, &1u64.to_ne_bytes())?;
        match timeout(CONNECT_TIMEOUT, answer).await {
            Ok(Ok(socket)) => VsockStream::new(socket?),
            Ok(Err(_)) => Err(io::ErrorKind::ConnectionReset.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for UserDevice {
    fn drop(&mut self) {
        self.shutdown.0.shutdown();
    }
}

/// Makes the connection that QEMU will inherit an end of. The daemon accepts connections only, so
/// there is a listening socket for a moment; the directory is named through its descriptor because
/// its path may be longer than the address of a socket.
fn connect_daemon(
    daemon: &mut VhostUserDaemon<Arc<Backend>>,
    directory: &Path,
) -> io::Result<OwnedFd> {
    let place = tempfile::Builder::new()
        .prefix("vsock-")
        .tempdir_in(directory)?;
    let opened = File::open(place.path())?;
    let address = format!("/proc/self/fd/{}/device", opened.as_raw_fd());
    let listener = UnixListener::bind(&address)?;
    let for_qemu = UnixStream::connect(&address)?;
    let mut listener = vhost::vhost_user::Listener::from(listener);
    daemon
        .start(&mut listener)
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(for_qemu.into())
}

/// What the worker works on.
struct Backend {
    memory: Memory,
    wake: Arc<OwnedFd>,
    state: Mutex<State>,
}

struct State {
    muxer: Muxer,
    commands: commands::Receiver<Connect>,
}

impl Backend {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Only the worker changes the state; where it panicked, it is gone and nobody goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
    }

    /// The queues keep this for themselves.
    fn set_event_idx(&self, _enabled: bool) {}

    /// The device's configuration is the guest's CID (virtio 1.3 §5.10.4).
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = GUEST_CID.to_le_bytes();
        let range = offset as usize..(offset as usize).saturating_add(size as usize);
        config.get(range).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    /// Never fails: an error would end the worker, and with it every connection.
    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        queues: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        if u64::from(event) == COMMAND_EVENT {
            let _ = rustix::io::read(self.wake.as_fd(), &mut [0; 8]);
        }
        let [to_guest, from_guest, ..] = queues else {
            return Ok(());
        };
        let memory = self.memory.memory();
        self.lock().run(&memory, to_guest, from_guest);
        Ok(())
    }
}

impl State {
    /// Moves what can be moved, until nothing does.
    fn run(&mut self, memory: &GuestMemoryMmap, to_guest: &VringRwLock, from_guest: &VringRwLock) {
        loop {
            let mut moved = self.take_commands(to_guest);
            moved |= self.muxer.take_events();
            moved |= with_queue(FROM_GUEST, memory, from_guest, |queue| {
                self.receive(memory, queue)
            });
            moved |= with_queue(TO_GUEST, memory, to_guest, |queue| self.send(memory, queue));
            if !moved {
                return;
            }
        }
    }

    fn take_commands(&mut self, to_guest: &VringRwLock) -> bool {
        let mut any = false;
        while let Ok(Connect { port, reply }) = self.commands.try_recv() {
            any = true;
            if is_running(&to_guest.get_ref()) {
                self.muxer.connect(port, reply);
            } else {
                let down = io::Error::new(
                    io::ErrorKind::NotConnected,
                    "the guest's vsock driver is not up",
                );
                let _ = reply.send(Err(down));
            }
        }
        any
    }

    /// Takes the packets of the guest.
    fn receive(&mut self, memory: &GuestMemoryMmap, queue: &mut VringState) -> bool {
        let mut any = false;
        while self.muxer.accepts_packets() {
            let Some(chain) = queue.get_queue_mut().pop_descriptor_chain(memory) else {
                break;
            };
            any = true;
            let head = chain.head_index();
            match Pieces::collect(memory, chain.readable(), Permissions::Read) {
                Some(pieces) => self.take_packet(pieces),
                None => debug!("the guest sent a chain that is not its memory"),
            }
            if let Err(error) = queue.add_used(head, 0) {
                debug!(%error, "the guest's used ring is not its memory");
                break;
            }
        }
        any
    }

    /// The header may be spread over pieces, and the payload over any number that follow.
    fn take_packet(&mut self, mut pieces: Pieces<'_>) {
        let mut bytes = [0; HEADER_LEN];
        let Some(front) = pieces.split_to(HEADER_LEN) else {
            return;
        };
        front.copy_to(&mut bytes);
        let header = match Header::parse(&bytes) {
            Ok(header) => header,
            Err(error) => return debug!(%error, "the guest sent a malformed packet"),
        };
        // What is missing is noticed by the muxer; what is too much is not looked at.
        let len = pieces.size().min(header.len as usize);
        if let Some(mut payload) = pieces.split_to(len) {
            self.muxer.guest_packet(&header, &mut payload);
        }
    }

    /// Fills the guest's buffers.
    fn send(&mut self, memory: &GuestMemoryMmap, queue: &mut VringState) -> bool {
        let mut any = false;
        while self.muxer.has_output() {
            let Some(chain) = queue.get_queue_mut().pop_descriptor_chain(memory) else {
                break;
            };
            let head = chain.head_index();
            let used = match Pieces::collect(memory, chain.writable(), Permissions::Write) {
                Some(pieces) => match self.fill(pieces) {
                    Fill::Used(used) => used,
                    Fill::Nothing => {
                        queue.get_queue_mut().go_to_previous_position();
                        break;
                    }
                },
                None => 0,
            };
            any = true;
            if let Err(error) = queue.add_used(head, used) {
                debug!(%error, "the guest's used ring is not its memory");
                break;
            }
        }
        any
    }

    fn fill(&mut self, mut pieces: Pieces<'_>) -> Fill {
        let Some(front) = pieces.split_to(HEADER_LEN) else {
            return Fill::Used(0);
        };
        if pieces.size() == 0 {
            // A buffer without room for payload would look like the end of a socket.
            return Fill::Used(0);
        }
        let Some(header) = self.muxer.output(&mut pieces) else {
            return Fill::Nothing;
        };
        front.copy_from(&header.to_bytes());
        let header_len = u32::try_from(HEADER_LEN).unwrap_or(u32::MAX);
        Fill::Used(header_len.saturating_add(header.len))
    }
}

enum Fill {
    /// So many bytes were written.
    Used(u32),
    /// There was nothing to say after all.
    Nothing,
}

fn is_running(queue: &VringState) -> bool {
    queue.is_enabled() && queue.get_queue().ready()
}

/// Works on a queue with its notifications off, and tells the guest once if it wants to be told.
/// True when something moved, or may move because the guest was quick.
fn with_queue(
    index: usize,
    memory: &GuestMemoryMmap,
    vring: &VringRwLock,
    work: impl FnOnce(&mut VringState) -> bool,
) -> bool {
    let mut queue = vring.get_mut();
    if !is_running(&queue) || !queue.get_queue().is_valid(memory) {
        return false;
    }
    let step = |result: Result<bool, virtio_queue::Error>| {
        result.unwrap_or_else(|error| {
            warn!(queue = index, %error, "the guest's queue is not its memory");
            false
        })
    };
    step(queue.disable_notification().map(|()| false));
    let moved = work(&mut queue);
    if moved
        && step(queue.needs_notification())
        && let Err(error) = queue.signal_used_queue()
    {
        debug!(%error, "the guest cannot be notified");
    }
    // More buffers for the guest matter only when something waits for them, which the next round
    // or the next kick finds out; more packets matter at once.
    let more = step(queue.enable_notification());
    moved || (more && index == FROM_GUEST)
}
