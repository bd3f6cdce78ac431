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

mod queues;

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
use tracing::debug;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringRwLock};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::connection::ConnectReply;
use super::muxer::Muxer;
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
