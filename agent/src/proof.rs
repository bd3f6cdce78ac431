//! How this guest proves what it is: the attester of its configured kind, and the log of what happens in it.
//!
//! Opening it probes the kind: a guest that gets no report does not start, and nothing weaker stands in.

use std::path::Path;
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use attestation_agent::attester::{SampleAttester, is_bound};
use attestation_agent::attester::{SnpAttester, TdxAttester, Tsm, snp_platform};
use attestation_agent::{Attester, EventLog};
use evidence::Tee;
use evidence::init_data::{Algorithm, InitDataDigest};
use tokio::task::spawn_blocking;

use crate::firmware::Firmware;
use crate::host::HostPort;

const PHASE: &str = "attest";
/// Whose events Cloister's own are.
const OWN: &str = "cloister";
/// Whose events those are that peers record too, by their names.
const PEERS: &str = "github.com/confidential-containers";

/// The proof of a guest with a TEE.
#[derive(Clone)]
pub struct Proof {
    /// Makes evidence.
    pub attester: Arc<dyn Attester>,
    /// What happened, for the evidence.
    pub log: Arc<EventLog>,
}

/// What a launch bound, as the guest's own report says it.
#[derive(Debug)]
pub struct Bound {
    tee: Tee,
    bytes: Vec<u8>,
}

impl Proof {
    /// Finds what signs for this kind. Evidence without signatures has what was measured on the command
    /// line in place of a report's field.
    ///
    /// # Errors
    /// [`ErrorCode::FailedPrecondition`]: it is not there.
    pub fn open(
        tee: Tee,
        measured: Option<&InitDataDigest>,
        host: HostPort,
    ) -> Result<Self, GuestError> {
        let root = Path::new("/");
        let plain = || Arc::new(EventLog::new(None));
        let (attester, log): (Arc<dyn Attester>, _) = match tee {
            Tee::Sample => (Arc::new(SampleAttester::new(measured.cloned())), plain()),
            Tee::Snp => {
                let platform = snp_platform(root).map_err(|error| failed(&error))?;
                (Arc::new(SnpAttester::new(tee, platform)), plain())
            }
            Tee::SimSnp => {
                let platform = Arc::new(Firmware(host));
                (Arc::new(SnpAttester::new(tee, platform)), plain())
            }
            Tee::Tdx => {
                let platform = Arc::new(Tsm::tdx_guest(root));
                let log = Arc::new(EventLog::new(Some(platform.clone())));
                (Arc::new(TdxAttester::new(tee, platform, log.clone())), log)
            }
            Tee::SimTdx => {
                let platform = Arc::new(Firmware(host));
                let log = Arc::new(EventLog::new(Some(platform.clone())));
                (Arc::new(TdxAttester::new(tee, platform, log.clone())), log)
            }
        };
        Ok(Self { attester, log })
    }

    /// What the launch bound, by a first report.
    ///
    /// # Errors
    /// [`ErrorCode::FailedPrecondition`]: there is no report, so that this guest is not what it was
    /// configured to be.
    pub async fn bound(&self) -> Result<Bound, GuestError> {
        let attester = Arc::clone(&self.attester);
        let bytes = spawn_blocking(move || attester.launch_bound()).await;
        let bytes = bytes.map_err(|error| failed(&error))?;
        Ok(Bound {
            tee: self.attester.kind(),
            bytes: bytes.map_err(|error| failed(&error))?,
        })
    }

    /// Records what the guest is governed by, before anything is done by it.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub async fn record_launch(
        &self,
        init_data: Option<&InitDataDigest>,
        policy: Option<&str>,
    ) -> Result<(), GuestError> {
        let digest = init_data.map_or_else(|| "none".to_owned(), ToString::to_string);
        self.record(OWN, "InitData", digest).await?;
        self.record_policy(policy).await
    }

    /// Records a policy before it decides anything, by its digest, or that it is the agent's own.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub async fn record_policy(&self, policy: Option<&str>) -> Result<(), GuestError> {
        let digest = |policy: &str| Algorithm::Sha384.digest(policy.as_bytes()).to_string();
        let name = policy.map_or_else(|| "built-in".to_owned(), digest);
        self.record(OWN, "Policy", name).await
    }

    /// Records an image before anything of it runs.
    ///
    /// # Errors
    /// As [`record`](Self::record).
    pub async fn record_image(&self, image: &str, digest: &str) -> Result<(), GuestError> {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        // Guest-components' form to the blank.
        let content = format!(
            r#"{{"image":{}, "digest":{}}}"#,
            quoted(image),
            quoted(digest)
        );
        self.record(PEERS, "PullImage", content).await
    }

    /// Measures an event.
    ///
    /// # Errors
    /// [`ErrorCode::FailedPrecondition`]: it was not measured, and so must not happen.
    async fn record(
        &self,
        domain: &'static str,
        operation: &'static str,
        content: String,
    ) -> Result<(), GuestError> {
        let log = Arc::clone(&self.log);
        let extended = spawn_blocking(move || log.extend(domain, operation, &content, None)).await;
        let extended = extended.map_err(|error| failed(&error))?;
        extended.map_err(|error| failed(&error))
    }
}

impl Bound {
    /// What a plain VM was told to expect, where nothing answers for it.
    #[must_use]
    pub fn told(digest: Option<&InitDataDigest>) -> Self {
        Self {
            tee: Tee::Sample,
            bytes: digest.map_or_else(Vec::new, |digest| digest.as_bytes().to_vec()),
        }
    }

    /// Whether this document was bound, or none.
    #[must_use]
    pub fn is(&self, digest: Option<&InitDataDigest>) -> bool {
        is_bound(self.tee, &self.bytes, digest)
    }

    /// The field in hex.
    #[must_use]
    pub fn hex(&self) -> String {
        self.bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proof({})", self.attester.kind())
    }
}

fn failed(cause: &dyn std::fmt::Display) -> GuestError {
    GuestError::new(ErrorCode::FailedPrecondition, PHASE, cause)
}

#[cfg(test)]
mod tests {
    use evidence::init_data::Algorithm;

    use super::*;

    #[test]
    fn a_digest_is_compared_with_the_field_as_it_fits_into_it() {
        for algorithm in Algorithm::ALL {
            let digest = algorithm.digest(b"document");
            for (tee, width) in [(Tee::Snp, 32), (Tee::SimTdx, 48)] {
                let mut bytes = digest.as_bytes().to_vec();
                bytes.resize(width, 0);
                let bound = Bound { tee, bytes };
                assert!(bound.is(Some(&digest)) && !bound.is(None), "{tee}");
                assert!(!bound.is(Some(&algorithm.digest(b"other"))));
                let nothing = vec![0; width];
                let unbound = Bound {
                    tee,
                    bytes: nothing,
                };
                assert!(unbound.is(None) && !unbound.is(Some(&digest)));
            }
            assert!(Bound::told(Some(&digest)).is(Some(&digest)));
            assert!(Bound::told(None).is(None));
        }
    }
}
