//! CoCo's unsigned sample evidence, for development. It exists only where it is configured by name.

use evidence::{Tee, init_data::InitDataDigest, sample::SampleEvidence};
use serde_json::Value;

use super::{AttestError, Attester, REPORT_DATA_BYTES};

/// Makes sample evidence.
#[derive(Debug, Clone)]
pub struct SampleAttester {
    launch_bound: Option<InitDataDigest>,
}

impl SampleAttester {
    /// An attester of a guest whose launch bound this digest of init-data. It stands for the field of
    /// a hardware report, so it comes from the launch, never from the init-data that was received.
    #[must_use]
    pub fn new(launch_bound: Option<InitDataDigest>) -> Self {
        Self { launch_bound }
    }
}

impl Attester for SampleAttester {
    fn kind(&self) -> Tee {
        Tee::Sample
    }

    fn report(&self, report_data: &[u8]) -> Result<Value, AttestError> {
        if report_data.len() > REPORT_DATA_BYTES {
            return Err(AttestError::ReportData(report_data.len()));
        }
        let evidence = SampleEvidence::new(report_data, self.launch_bound.as_ref());
        serde_json::to_value(evidence).map_err(|error| AttestError::Evidence {
            tee: Tee::Sample,
            cause: error.to_string(),
        })
    }

    fn launch_bound(&self) -> Result<Vec<u8>, AttestError> {
        let bound = self.launch_bound.as_ref();
        Ok(bound.map_or_else(Vec::new, |digest| digest.as_bytes().to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use evidence::init_data::Algorithm;
    use serde_json::json;

    use super::*;

    #[test]
    fn evidence_is_what_peers_compare() {
        let attester = SampleAttester::new(None);
        assert_eq!(
            attester.report(&[0; 3]).unwrap(),
            json!({"svn": "1", "report_data": "AAAA"})
        );
        assert_eq!(attester.report(&[0; 65]), Err(AttestError::ReportData(65)));
    }

    #[test]
    fn the_launch_bound_digest_is_in_the_evidence() {
        let digest = Algorithm::Sha256.digest(b"abc");
        let evidence = SampleAttester::new(Some(digest.clone()))
            .report(&[])
            .unwrap();
        assert_eq!(evidence["init_data"], json!(digest.hex()));
    }

    #[test]
    fn the_recorded_handshake_has_the_recorded_evidence() {
        // Recorded from a guest-components client, which holds the 48 bytes without padding.
        let key = serde_json::from_value(json!({
            "kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW",
            "x": "o59IT4UJgK0Xwi8iGcwLpTWY5BkeBwTtFJ7UKjYCX90",
            "y": "K1YI3QC_qQ156PQD9teGndR6R05kgu2nX35GwT0EkWU",
        }))
        .unwrap();
        let nonce = "Tk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk4=";
        let report_data = kbs_protocol::report_data(nonce, &key, "");
        assert_eq!(
            SampleAttester::new(None).report(&report_data).unwrap(),
            json!({
                "report_data": "cBa6Bc4EwtzMb6kl4irOdlfGkqc7LHfrj1O8vM3AWtYZQ6XjmmELNsshx2uTbAMD",
                "svn": "1",
            })
        );
    }
}
