//! A simulated TDX platform: Intel's chain with the same kinds of keys and extensions, the collateral
//! of its provisioning service, a quoting enclave, and signed quotes.
//!
//! ```text
//! root ─┬─ PCK CA (Platform or Processor) ── platform's key ── QE report ── attestation key ── quote
//!       └─ TCB signing ── TCB info, QE identity
//! ```

mod collateral;
mod der;
mod launch;
mod log;
mod platform;
mod root;

pub use collateral::{Collateral, Level, Offer, QeLevel, Status};
pub use log::LogBuilder;
pub use platform::{Enclave, Platform, PlatformKey, QuotingEnclave};
pub use root::{Ca, DevelopmentRoot};

pub use super::x509::Validity;

/// What goes wrong in the simulator.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A key could not be read.
    #[error("the simulator could not read a key: {0}")]
    Key(String),
    /// The system has no randomness, or a key does not sign.
    #[error("the simulator could not sign")]
    Sign,
    /// Not what [`DevelopmentRoot::to_pem`] wrote.
    #[error("the development root's bundle is not usable: {0}")]
    Bundle(&'static str),
    /// A date that certificates or documents cannot write.
    #[error("{0} seconds since the Unix epoch are no date between 1950 and 2049")]
    Date(i64),
    /// What was to be signed is no quote.
    #[error(transparent)]
    Quote(#[from] crate::tdx::QuoteError),
}
