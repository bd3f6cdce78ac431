//! Payload on its way between a socket and wherever the packet lies: guest memory in the product,
//! our own memory in tests and fuzzing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::{RecvFlags, SendFlags, recv, send};

/// The payload of a packet from the guest, wherever it lies.
pub trait Payload {
    /// Bytes that are left.
    fn len(&self) -> usize;
    /// Whether none is left.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Sends as many bytes as the socket takes, and forgets them.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` among them.
    fn write_to(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize>;
    /// Moves all that is left to the end of a queue.
    fn append_to(&mut self, queue: &mut VecDeque<u8>);
}

/// A buffer of the guest for one payload.
pub trait Buffer {
    /// Bytes that fit.
    fn capacity(&self) -> usize;
    /// Fills up to `most` bytes from the socket.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` among them.
    fn read_from(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize>;
}

/// Payload in our own memory, for tests and fuzzing.
impl Payload for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn write_to(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let written = send(socket, self, SendFlags::NOSIGNAL)?;
        *self = &self[written..];
        Ok(written)
    }

    fn append_to(&mut self, queue: &mut VecDeque<u8>) {
        queue.extend(*self);
        *self = &[];
    }
}

/// A buffer in our own memory, for tests and fuzzing: filled from its start.
impl Buffer for &mut [u8] {
    fn capacity(&self) -> usize {
        <[u8]>::len(self)
    }

    fn read_from(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let most = most.min(self.capacity());
        let (count, _) = recv(socket, &mut self[..most], RecvFlags::empty())?;
        Ok(count)
    }
}
