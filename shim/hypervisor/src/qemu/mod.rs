//! QEMU: its command line and the kernel's, as pure functions.

pub mod cmdline;
pub mod kernel;

pub use cmdline::{Facts, VsockDevice, arguments};
