//! CoCo's unsigned `sample` evidence.
//!
//! `{"svn":"1","report_data":"<base64>"}` as guest-components writes it. Ours may add `init_data`:
//! the digest, in hex, that the launch bound to the guest, so that development runs the same checks
//! as hardware does. It proves nothing, and a broker accepts it only when configured for development.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::init_data::{DigestError, InitDataDigest};

/// The one `svn` that exists.
pub const SVN: &str = "1";

/// The widest report data of any TEE.
pub const REPORT_DATA_BYTES: usize = 64;

/// Sample evidence as it is on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleEvidence {
    /// Always [`SVN`] from us; a peer's may differ, which an appraisal sees.
    pub svn: String,
    /// Base64 of the report data.
    pub report_data: String,
    /// Hex of the digest that the launch bound, without the algorithm's name; absent from a peer and
    /// where no init-data was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_data: Option<String>,
}

impl SampleEvidence {
    /// Evidence over report data and the digest that the launch bound.
    #[must_use]
    pub fn new(report_data: &[u8], init_data: Option<&InitDataDigest>) -> Self {
        Self {
            svn: SVN.to_owned(),
            report_data: BASE64_STANDARD.encode(report_data),
            init_data: init_data.map(InitDataDigest::hex),
        }
    }

    /// The report data.
    ///
    /// # Errors
    /// When it is not base64, or longer than [`REPORT_DATA_BYTES`].
    pub fn report_data(&self) -> Result<Vec<u8>, SampleError> {
        let bytes = BASE64_STANDARD
            .decode(&self.report_data)
            .map_err(|_| SampleError::ReportData)?;
        if bytes.len() > REPORT_DATA_BYTES {
            return Err(SampleError::ReportDataLong(bytes.len()));
        }
        Ok(bytes)
    }

    /// The digest that the launch bound. Its algorithm follows from its length.
    ///
    /// # Errors
    /// When it is not the hex of a digest.
    pub fn init_data(&self) -> Result<Option<InitDataDigest>, SampleError> {
        let digest = self.init_data.as_deref().map(InitDataDigest::from_hex);
        Ok(digest.transpose()?)
    }
}

/// Evidence that is not in the form of this module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Not base64.
    #[error("report_data of the sample evidence is not base64")]
    ReportData,
    /// Longer than any TEE's.
    #[error("report_data of the sample evidence has {0} bytes: at most {REPORT_DATA_BYTES}")]
    ReportDataLong(usize),
    /// Not a digest.
    #[error("init_data of the sample evidence")]
    InitData(#[from] DigestError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init_data::Algorithm;

    #[test]
    fn a_peers_evidence_is_read() {
        // Recorded from a guest-components attestation-agent.
        let text = r#"{"report_data":"cBa6Bc4EwtzMb6kl4irOdlfGkqc7LHfrj1O8vM3AWtYZQ6XjmmELNsshx2uTbAMD","svn":"1"}"#;
        let evidence: SampleEvidence = serde_json::from_str(text).unwrap();
        assert_eq!(evidence.report_data().unwrap().len(), 48);
        assert_eq!(evidence.init_data(), Ok(None));
    }

    #[test]
    fn the_launch_bound_digest_travels() {
        let digest = Algorithm::Sha384.digest(b"x");
        let evidence = SampleEvidence::new(&[7; 64], Some(&digest));
        let text = serde_json::to_string(&evidence).unwrap();
        let back: SampleEvidence = serde_json::from_str(&text).unwrap();
        assert_eq!(back.report_data().unwrap(), [7; 64]);
        assert_eq!(back.init_data().unwrap(), Some(digest));
    }

    #[test]
    fn other_members_and_lengths_are_refused() {
        assert!(
            serde_json::from_str::<SampleEvidence>(r#"{"svn":"1","report_data":"","x":1}"#)
                .is_err()
        );
        let mut evidence = SampleEvidence::new(&[0; 65], None);
        assert_eq!(evidence.report_data(), Err(SampleError::ReportDataLong(65)));
        evidence.init_data = Some("abcd".to_owned());
        assert!(evidence.init_data().is_err());
    }
}
