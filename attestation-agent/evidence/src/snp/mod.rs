//! AMD SEV-SNP's attestation report, and the JSON around it that guests send.
//!
//! Offsets and meanings are those of the SEV-SNP firmware ABI (AMD 56860, "ATTESTATION_REPORT"), the
//! JSON is that of the `sev` crate 6 and 7, which Trustee's guests send. Nothing here believes a
//! field: that is the verifier's work.

mod bytes;
mod generation;
mod message;
mod report;
mod table;
mod words;

pub use generation::{Generation, Product};
pub use message::{CERTIFICATE_BYTES, CERTIFICATES, Certificate, CertificateKind, SnpEvidence};
pub use report::{REPORT_BYTES, Report, ReportError, SIGNED_BYTES};
pub use table::{TABLE_BYTES, TableError};
pub use words::{FirmwareVersion, GuestPolicy, KeyInfo, PlatformInfo, Signature, SigningKey, Tcb};
