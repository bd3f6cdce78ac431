//! QEMU: its command line and the kernel's, as pure functions.

#[cfg(test)]
mod accepted;
pub mod cmdline;
pub mod kernel;

pub(crate) use cmdline::is_shared;
pub use cmdline::{Facts, VsockDevice, arguments};
