//! What stands between a guest and what signs for it.
//!
//! The kernel's interface is one ([`Tsm`](super::Tsm), [`SevGuest`](super::SevGuest)); a guest with a simulated
//! TEE reaches one behind its host. Both give the same bytes, and the attesters do not know which it is.

use std::io;

use super::REPORT_DATA_BYTES;

/// Bytes of a register.
pub const REGISTER_BYTES: usize = 48;

/// A report as it was signed, and what was given beside it.
#[derive(Clone, PartialEq, Eq)]
pub struct Report {
    /// An SNP report, or a TDX quote.
    pub outblob: Vec<u8>,
    /// The host's table of certificates; empty where there is none.
    pub auxblob: Vec<u8>,
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report")
            .field("outblob", &self.outblob.len())
            .field("auxblob", &self.auxblob.len())
            .finish()
    }
}

/// Gives reports. Every call may block, as firmware does.
pub trait Platform: Send + Sync {
    /// A report over these bytes.
    ///
    /// # Errors
    /// There is none, and the text says why.
    fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> io::Result<Report>;

    /// The log of what firmware and kernel measured into registers; nothing where they have none.
    ///
    /// # Errors
    /// It cannot be read.
    fn boot_log(&self) -> io::Result<Option<Vec<u8>>>;
}

/// Registers that a guest extends while it runs: 0 to 3 are RTMR0 to RTMR3.
pub trait Registers: Send + Sync {
    /// A register's value.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, register: usize) -> io::Result<[u8; REGISTER_BYTES]>;

    /// Makes a register the SHA-384 of its value and this digest.
    ///
    /// # Errors
    /// It is not known whether the register was extended.
    fn extend(&self, register: usize, digest: &[u8; REGISTER_BYTES]) -> io::Result<()>;
}
