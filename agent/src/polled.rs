//! The one place that registers descriptors with tokio, which calls that unsafe.

#![expect(
    unsafe_code,
    reason = "AsyncFd::register relies on the descriptor staying open"
)]

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An open descriptor that the runtime polls.
#[derive(Debug)]
pub struct Polled {
    descriptor: AsyncFd<OwnedFd>,
}

impl Polled {
    /// Registers a descriptor for what it can become ready for.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2): a regular file cannot be polled.
    pub fn new(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: the OwnedFd is moved in, so nobody else closes it; it is always the same
        // descriptor, and AsyncFd deregisters it before it drops it.
        let descriptor = unsafe { AsyncFd::register_with_interest(descriptor, interest)? };
        Ok(Self { descriptor })
    }
}

impl Deref for Polled {
    type Target = AsyncFd<OwnedFd>;

    fn deref(&self) -> &Self::Target {
        &self.descriptor
    }
}
