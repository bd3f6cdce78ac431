//! QEMU: its command line and the kernel's, as pure functions.

#[cfg(test)]
mod accepted;
#[cfg(test)]
mod accepted_tee;
pub mod cmdline;
pub(crate) mod confidential;
pub mod kernel;

pub(crate) use cmdline::is_shared;
pub use cmdline::{Facts, VsockDevice, arguments};
pub use kernel::{measured_command_line, predicted_command_line};
