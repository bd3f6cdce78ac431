//! The one place of the shim that registers a descriptor with tokio, which calls that unsafe.

#![expect(
    unsafe_code,
    reason = "AsyncFd::register relies on the descriptor staying open"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor that can be polled.
pub(super) fn polled(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the OwnedFd is moved in, so nobody else closes it; it is always the same descriptor, and
    // AsyncFd deregisters it before it drops it.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
