//! Makers of evidence, one for each kind of TEE.
//!
//! The kind is configured by name. An attester that cannot make evidence is an error, never a reason
//! to try another one.

mod sample;

use evidence::Tee;
use serde_json::Value;

pub use sample::SampleAttester;

/// The widest field that any TEE has for report data, in bytes.
pub const REPORT_DATA_BYTES: usize = 64;

/// Makes evidence of one kind.
pub trait Attester: Send + Sync {
    /// The kind, which the broker is told first.
    fn kind(&self) -> Tee;

    /// Evidence over report data, in the JSON form of the kind. It may block, as firmware does. Report
    /// data that is shorter than the kind's field is padded with zeros at its end; sample evidence
    /// holds it as it is, which is what peers compare.
    ///
    /// # Errors
    /// When the report data is longer than [`REPORT_DATA_BYTES`], or the TEE gives no report.
    fn report(&self, report_data: &[u8]) -> Result<Value, AttestError>;
}

/// Evidence that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// Longer than any TEE's field.
    #[error("report data has {0} bytes: at most {REPORT_DATA_BYTES}")]
    ReportData(usize),
    /// The TEE gave no report.
    #[error("{tee}: no report: {cause}")]
    Report {
        /// The kind that was asked.
        tee: Tee,
        /// What its device or firmware said.
        cause: String,
    },
    /// The evidence has no JSON form.
    #[error("{tee}: evidence: {cause}")]
    Evidence {
        /// The kind that was asked.
        tee: Tee,
        /// What could not be written.
        cause: String,
    },
}
