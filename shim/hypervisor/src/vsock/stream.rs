//! One connection, whichever device carries it: a stream socket driven by the runtime.
#![expect(
    unsafe_code,
    reason = "registering a descriptor with the runtime is unsafe by its contract"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection to the guest. It can be turned into its descriptor, which is non-blocking.
#[derive(Debug)]
pub struct VsockStream {
    socket: AsyncFd<OwnedFd>,
}

impl VsockStream {
    /// Takes a non-blocking stream socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: watch(socket)?,
        })
    }
}

/// Registers a descriptor with the runtime.
pub(super) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns an open descriptor and names it for as long as it lives; it is
    // neither replaced nor closed while the runtime has it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

impl From<VsockStream> for OwnedFd {
    fn from(stream: VsockStream) -> Self {
        stream.socket.into_inner()
    }
}

impl AsFd for VsockStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            let result = guard.try_io(|socket| {
                Ok(rustix::net::recv(
                    socket.get_ref(),
                    &mut *unfilled,
                    RecvFlags::empty(),
                )?)
            });
            match result {
                Ok(Ok((count, _))) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_write_ready(context))?;
            let result = guard.try_io(|socket| {
                Ok(rustix::net::send(
                    socket.get_ref(),
                    bytes,
                    SendFlags::NOSIGNAL,
                )?)
            });
            match result {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = rustix::net::shutdown(self.socket.get_ref(), Shutdown::Write);
        Poll::Ready(ended.map_err(io::Error::from))
    }
}
