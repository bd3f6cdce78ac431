//! The signer of simulated evidence: the hardware's formats, under a development root.
//!
//! A verifier believes such a root only where the operator gave it one, and then as a simulated kind.

pub mod snp;
pub mod tdx;
mod x509;

pub use x509::Validity;
