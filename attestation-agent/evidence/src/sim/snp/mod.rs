//! A simulated SEV-SNP platform: AMD's chain with the same kinds of keys, chips, and signed reports.

mod der;
mod platform;
mod root;

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
};

pub use root::{Chip, ChipKey, DevelopmentRoot};

pub use super::x509::Validity;
use crate::snp::{Report, ReportError, Signature, SnpEvidence};

/// What goes wrong in the simulator.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A key could not be made.
    #[error("the simulator could not make a key: {0}")]
    Key(String),
    /// The system has no randomness, or a key does not sign.
    #[error("the simulator could not sign")]
    Sign,
    /// Not what [`DevelopmentRoot::to_pem`] wrote.
    #[error("the development root's bundle is not usable: {0}")]
    Bundle(&'static str),
    /// A date that certificates cannot write.
    #[error("{0} seconds since the Unix epoch are no date between 1950 and 2049")]
    Date(i64),
    /// The report's members contradict each other.
    #[error(transparent)]
    Report(#[from] ReportError),
}

impl ChipKey {
    /// Signs a report in place of the firmware: fills its signature, and sets its algorithm.
    ///
    /// # Errors
    /// When its members contradict its version, or when signing fails.
    pub fn sign(&self, report: &mut Report) -> Result<(), SimError> {
        report.sig_algo = 1;
        report.signature = Signature::default();
        let bytes = report.to_bytes()?;
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P384_SHA384_FIXED_SIGNING,
            self.pkcs8(),
            &SystemRandom::new(),
        )
        .map_err(|error| SimError::Key(error.to_string()))?;
        let fixed = key
            .sign(&SystemRandom::new(), &bytes[..crate::snp::SIGNED_BYTES])
            .map_err(|_| SimError::Sign)?;
        let fixed = fixed.as_ref().try_into().map_err(|_| SimError::Sign)?;
        report.signature = Signature::from_fixed(fixed);
        Ok(())
    }

    /// Signs a report and puts the key's certificate beside it.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn evidence(&self, mut report: Report) -> Result<SnpEvidence, SimError> {
        self.sign(&mut report)?;
        Ok(SnpEvidence::new(
            &report.to_bytes()?,
            vec![self.certificate_entry()],
        )?)
    }
}
