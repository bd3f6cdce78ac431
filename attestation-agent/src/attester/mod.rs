//! Makers of evidence, one for each kind of TEE.
//!
//! The kind is configured by name. An attester that cannot make evidence is an error, never a reason
//! to try another one.

mod platform;
mod sample;
mod sev_guest;
mod snp;
mod tdx;
mod tsm;

use std::sync::Arc;

use evidence::Tee;
use evidence::init_data::{Binding, InitDataDigest};
use serde_json::Value;

pub use platform::{Platform, REGISTER_BYTES, Registers, Report};
pub use sample::SampleAttester;
pub use sev_guest::{DEVICE as SEV_GUEST, SevGuest};
pub use snp::SnpAttester;
pub use tdx::TdxAttester;
pub use tsm::Tsm;

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

    /// The same in a form that is shorter, and that only a broker of ours reads; for kinds whose JSON is
    /// short already it is the same.
    ///
    /// # Errors
    /// As [`report`](Self::report).
    fn raw_report(&self, report_data: &[u8]) -> Result<Value, AttestError> {
        self.report(report_data)
    }

    /// What the launch bound, as the guest's own report has it: `HOST_DATA` or `MRCONFIGID`, zeros where
    /// nothing was bound.
    ///
    /// # Errors
    /// As [`report`](Self::report).
    fn launch_bound(&self) -> Result<Vec<u8>, AttestError>;
}

/// Whether a launch bound init-data of this digest, or none where there is none.
#[must_use]
pub fn is_bound(tee: Tee, bound: &[u8], digest: Option<&InitDataDigest>) -> bool {
    Binding::of(tee, digest).as_bytes() == bound
}

/// The interface of an SNP guest's kernel below this root: configfs, or the device where configfs has none.
///
/// # Errors
/// Neither is there: this is no SNP guest, or its kernel has no driver.
pub fn snp_platform(root: &std::path::Path) -> Result<Arc<dyn Platform>, AttestError> {
    let tsm = Tsm::sev_guest(root);
    if tsm.is_there() {
        return Ok(Arc::new(tsm));
    }
    let device = SevGuest::new(root.join(SEV_GUEST.trim_start_matches('/')));
    match device.is_there() {
        true => Ok(Arc::new(device)),
        false => Err(AttestError::Report {
            tee: Tee::Snp,
            cause: format!("there is neither configfs' tsm/report nor {SEV_GUEST}"),
        }),
    }
}

/// Report data, padded to the field with zeros.
fn padded(report_data: &[u8]) -> Result<[u8; REPORT_DATA_BYTES], AttestError> {
    let mut field = [0; REPORT_DATA_BYTES];
    field
        .get_mut(..report_data.len())
        .ok_or(AttestError::ReportData(report_data.len()))?
        .copy_from_slice(report_data);
    Ok(field)
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
