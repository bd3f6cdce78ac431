//! SEV-SNP, and what simulates it: a report and the certificates that the host gave.

use std::sync::Arc;

use evidence::{
    Tee,
    snp::{Certificate, CertificateKind, SnpEvidence},
};
use serde_json::Value;

use super::{AttestError, Attester, Platform, padded};

/// Makes SNP evidence.
pub struct SnpAttester {
    kind: Tee,
    platform: Arc<dyn Platform>,
}

impl SnpAttester {
    /// An attester of this kind, [`Tee::Snp`] or [`Tee::SimSnp`], on a platform that has its reports.
    #[must_use]
    pub fn new(kind: Tee, platform: Arc<dyn Platform>) -> Self {
        Self { kind, platform }
    }

    fn evidence(&self, report_data: &[u8]) -> Result<SnpEvidence, AttestError> {
        let failed = |cause: String| AttestError::Report {
            tee: self.kind,
            cause,
        };
        let asked = padded(report_data)?;
        let report = self.platform.report(&asked);
        let report = report.map_err(|error| failed(error.to_string()))?;
        let certificates = Certificate::table(&report.auxblob);
        let mut certificates = certificates.map_err(|error| failed(error.to_string()))?;
        certificates.retain(|one| one.kind != CertificateKind::Empty);
        let evidence = SnpEvidence::new(&report.outblob, certificates);
        let evidence = evidence.map_err(|error| failed(error.to_string()))?;
        match evidence.report().report_data == asked {
            true => Ok(evidence),
            false => Err(failed("the report is over other data".to_owned())),
        }
    }
}

impl Attester for SnpAttester {
    fn kind(&self) -> Tee {
        self.kind
    }

    fn report(&self, report_data: &[u8]) -> Result<Value, AttestError> {
        let evidence = self.evidence(report_data)?;
        serde_json::to_value(evidence).map_err(|error| AttestError::Evidence {
            tee: self.kind,
            cause: error.to_string(),
        })
    }

    fn raw_report(&self, report_data: &[u8]) -> Result<Value, AttestError> {
        Ok(self.evidence(report_data)?.raw())
    }

    fn launch_bound(&self) -> Result<Vec<u8>, AttestError> {
        Ok(self.evidence(&[])?.report().host_data.to_vec())
    }
}

impl std::fmt::Debug for SnpAttester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SnpAttester({})", self.kind)
    }
}
