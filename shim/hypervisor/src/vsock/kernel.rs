//! The host kernel's vhost-vsock: the device is in the kernel, and connections are AF_VSOCK sockets
//! addressed by the guest's CID (vsock(7)).
//!
//! CIDs and ports are one space for the whole host, unlike with the device in this process. So a
//! CID is drawn until one is free, another port is taken where the wanted one is in use, and a
//! connection counts only if it comes from our guest's CID.
#![expect(
    unsafe_code,
    reason = "the CID is set by an ioctl that has no safe interface"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, getpeername,
    getsockname, listen, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::stream::{VsockStream, watch};

const DEVICE: &str = "/dev/vhost-vsock";
/// CIDs up to 2 mean hypervisor, local and host; the last one means any.
const FIRST_CID: u32 = 3;
const CID_ANY: u32 = u32::MAX;
const PORT_ANY: u32 = u32::MAX;
/// Draws of a CID. A collision is as likely as there are VMs per four thousand million.
const CID_DRAWS: usize = 16;
/// How long the guest's kernel may take to answer a connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 64;

nix::ioctl_write_ptr!(
    /// `VHOST_VSOCK_SET_GUEST_CID` of linux/vhost.h.
    set_guest_cid,
    0xAF,
    0x60,
    u64
);

/// The device as the VM sees it.
#[derive(Debug)]
pub(crate) struct KernelDevice {
    cid: u32,
    host_port: u32,
    accepting: JoinHandle<()>,
}

impl KernelDevice {
    /// Whether the device can be opened.
    pub(crate) fn is_available() -> bool {
        open_device().is_ok()
    }

    /// Opens the device under a free CID, and listens. Returns it with the descriptor for QEMU.
    pub(crate) fn open(
        wanted_port: u32,
        incoming: mpsc::Sender<OwnedFd>,
    ) -> io::Result<(Self, OwnedFd)> {
        let device = open_device()?;
        let cid = draw_cid(&device)?;
        let (listener, host_port) = listen_on(wanted_port)?;
        let listener = watch(listener)?;
        let accepting = tokio::spawn(accept_from(cid, listener, incoming));
        Ok((
            Self {
                cid,
                host_port,
                accepting,
            },
            device.into(),
        ))
    }

    pub(crate) fn cid(&self) -> u64 {
        self.cid.into()
    }

    pub(crate) fn host_port(&self) -> u32 {
        self.host_port
    }

    pub(crate) async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        let socket = stream_socket()?;
        match connect(socket.as_raw_fd(), &VsockAddr::new(self.cid, port)) {
            Ok(()) => return VsockStream::new(socket),
            Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(explained(error.into())),
        }
        let socket = watch(socket)?;
        match timeout(CONNECT_TIMEOUT, socket.writable()).await {
            Ok(ready) => drop(ready?),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        match rustix::net::sockopt::socket_error(socket.get_ref())? {
            Ok(()) => VsockStream::new(socket.into_inner()),
            Err(error) => Err(explained(error.into())),
        }
    }
}

impl Drop for KernelDevice {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The kernel's words for what the other device says too.
fn explained(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ECONNRESET) => io::ErrorKind::ConnectionRefused.into(),
        Some(libc::ENODEV | libc::ENETUNREACH) => io::ErrorKind::NotConnected.into(),
        _ => error,
    }
}

fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

fn draw_cid(device: &File) -> io::Result<u32> {
    let mut random = File::open("/dev/urandom")?;
    for _ in 0..CID_DRAWS {
        let mut bytes = [0; 4];
        random.read_exact(&mut bytes)?;
        let cid = u32::from_ne_bytes(bytes);
        if !(FIRST_CID..CID_ANY).contains(&cid) {
            continue;
        }
        let argument = u64::from(cid);
        // SAFETY: the descriptor is open, and the kernel reads eight bytes from the pointer.
        match unsafe { set_guest_cid(device.as_raw_fd(), &raw const argument) } {
            Ok(_) => return Ok(cid),
            Err(Errno::EADDRINUSE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("no free vsock CID was found"))
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Vsock, SockType::Stream, flags, None)?)
}

fn listen_on(wanted: u32) -> io::Result<(OwnedFd, u32)> {
    let socket = stream_socket()?;
    match bind(socket.as_raw_fd(), &VsockAddr::new(CID_ANY, wanted)) {
        Ok(()) => {}
        Err(Errno::EADDRINUSE) => bind(socket.as_raw_fd(), &VsockAddr::new(CID_ANY, PORT_ANY))?,
        Err(error) => return Err(error.into()),
    }
    listen(&socket, Backlog::new(BACKLOG)?)?;
    let port = getsockname::<VsockAddr>(socket.as_raw_fd())?.port();
    Ok((socket, port))
}

async fn accept_from(cid: u32, listener: AsyncFd<OwnedFd>, incoming: mpsc::Sender<OwnedFd>) {
    loop {
        let Ok(mut ready) = listener.readable().await else {
            return;
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let accepted = match accept4(listener.as_raw_fd(), flags) {
            // SAFETY: accept4 has just made this descriptor, and no one else has it.
            Ok(descriptor) => unsafe { OwnedFd::from_raw_fd(descriptor) },
            Err(Errno::EAGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
            Err(error) => return warn!(%error, "vsock connections are not accepted any more"),
        };
        match getpeername::<VsockAddr>(accepted.as_raw_fd()) {
            Ok(peer) if peer.cid() == cid => {}
            _ => {
                debug!("a vsock connection of another VM was refused");
                continue;
            }
        }
        if incoming.try_send(accepted).is_err() {
            debug!("a vsock connection was refused: too many wait to be accepted");
        }
    }
}
