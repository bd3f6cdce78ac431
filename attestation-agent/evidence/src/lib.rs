//! Wire formats of evidence and init-data; pure.
//!
//! Both ends of an attestation read and write these, so each format is defined once, here. Nothing
//! in this crate opens a file or a socket: callers bring the bytes.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod device;
pub mod eventlog;
pub mod init_data;
pub mod sample;
#[cfg(feature = "sim")]
pub mod sim;
pub mod snp;
pub mod tdx;
mod tee;

pub use device::Device;
pub use tee::{Tee, TeeError};

/// A piece of a foreign text that is safe to print in an error.
fn shown(text: &str) -> String {
    const SHOWN: usize = 64;
    text.chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
