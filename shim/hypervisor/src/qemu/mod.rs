//! QEMU: its command line and the kernel's, as pure functions.

#[cfg(test)]
mod accepted;
pub mod cmdline;
pub mod kernel;

pub use cmdline::{Facts, VsockDevice, arguments};
