//! Connections between host and guest.
//!
//! Where the host's kernel has vhost-vsock, that is used. Elsewhere the device is in this process:
//! QEMU hands the guest's queues over by the vhost-user protocol, and a thread moves bytes between
//! guest memory and one socket pair per connection. Callers see one stream type in both cases.
//!
//! ```text
//!            caller               this process                    guest
//!   connect(port) ──────────►  REQUEST ─────────rx queue──────►  listener?
//!   VsockStream   ◄──────────  RESPONSE, or RST (refused) ◄─tx─  yes, or no
//!   incoming()    ◄── socket ─ REQUEST to the host port   ◄─tx─  connect(CID 2, port)
//!                              RST at once for other ports ─rx►
//!   bytes        ◄──────────►  RW, CREDIT_UPDATE, CREDIT_REQUEST, SHUTDOWN, RST
//! ```
//!
//! The packets are those of virtio 1.3 §5.10.6. The guest is not trusted: every length is checked,
//! connections and queued bytes are bounded, and a guest that breaks the rules loses the
//! connection concerned.

mod connection;
pub mod credit;
mod device;
mod guest_memory;
mod kernel;
pub mod muxer;
pub mod packet;
mod stream;
pub mod transfer;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

pub(crate) use device::UserDevice;
pub(crate) use kernel::KernelDevice;
pub use stream::VsockStream;

/// The CID of the host (virtio 1.3 §5.10.4).
pub const HOST_CID: u64 = 2;
/// Connections of the guest that wait to be accepted; more are refused.
pub const MAX_INCOMING: usize = 128;

/// Connections that the guest opened to the host port.
#[derive(Debug)]
pub struct Incoming {
    sockets: mpsc::Receiver<OwnedFd>,
}

impl Incoming {
    pub(crate) fn new(sockets: mpsc::Receiver<OwnedFd>) -> Self {
        Self { sockets }
    }

    /// The next connection; `None` once the VM is gone. Cancel-safe.
    ///
    /// # Errors
    /// When a connection cannot be registered with the runtime. Others may follow.
    pub async fn accept(&mut self) -> Option<io::Result<VsockStream>> {
        self.sockets.recv().await.map(VsockStream::new)
    }
}

/// The way to the guest's ports, for who does not have the VM. It leads nowhere once that is dropped.
#[derive(Debug, Clone)]
pub struct Connector {
    device: Weak<Device>,
}

impl Connector {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self {
            device: Arc::downgrade(device),
        }
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// As [`crate::Vm::connect`].
    pub async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        match self.device.upgrade() {
            Some(device) => device.connect(port).await,
            None => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the VM is gone",
            )),
        }
    }
}

/// One of the two devices.
#[derive(Debug)]
pub(crate) enum Device {
    Kernel(KernelDevice),
    User(UserDevice),
}

impl Device {
    pub(crate) async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        match self {
            Self::Kernel(device) => device.connect(port).await,
            Self::User(device) => device.connect(port).await,
        }
    }
}
