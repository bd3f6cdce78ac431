//! The four messages of the handshake, with the names that are on the wire.
//!
//! ```text
//! guest                              broker
//!   ── AuthRequest ───────────────────►   POST auth
//!   ◄────────────────── AuthResponse ──   nonce, and the cookie
//!   ── AttestRequest ─────────────────►   POST attest, with the cookie
//!   ◄───────────────── TokenResponse ──
//! ```
//!
//! Outer names are in kebab case, those inside `tee-evidence` in snake case: so they are upstream.
//! Unknown members are passed over, as peers do, since only named members are ever hashed.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{ErrorInformation, Jwe, ResourcePath, TeePubKey, VERSION, report_data::HASH_ALGORITHM};

/// The member of `extra-params` in which a guest lists what it can say beyond the protocol, and that in
/// which a broker answers what it takes of it.
const SUPPORTED: &str = "cloister-supported";
const SELECTED: &str = "cloister-selected";
const RAW_EVIDENCE: &str = "raw-evidence";
const RESOURCE: &str = "resource";
/// What a guest without registers calls its log in the additional evidence: base64 of a log in TCG's form,
/// for which the report's data answers, since the text is hashed into it.
pub const EVENT_LOG: &str = "event-log";
/// All that an end of ours knows beyond the protocol.
const OURS: [&str; 3] = [RAW_EVIDENCE, EVENT_LOG, RESOURCE];

/// The guest opens a handshake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuthRequest {
    /// The version that the guest speaks; see [`VERSION`].
    pub version: String,
    /// The name of the TEE, for example `snp`, `tdx` or `sample`.
    pub tee: String,
    /// Free form; the guest's hash algorithms are in it.
    pub extra_params: Value,
}

impl AuthRequest {
    /// The request of a guest of ours for a TEE.
    #[must_use]
    pub fn new(tee: impl Into<String>) -> Self {
        Self {
            version: VERSION.to_owned(),
            tee: tee.into(),
            extra_params: json!({
                "supported-hash-algorithms": [HASH_ALGORITHM],
                SUPPORTED: OURS,
            }),
        }
    }

    /// The `extra-params` of the answer: the hash, where the guest gave a choice.
    ///
    /// # Errors
    /// When the guest gave a choice and SHA-384 is not in it.
    pub fn negotiate(&self) -> Result<Value, NegotiationError> {
        let Some(offered) = self.extra_params.get("supported-hash-algorithms") else {
            return Ok(Value::String(String::new()));
        };
        let named = |value: &Value| value.as_str().is_some_and(is_hash);
        let mut answer = match offered.as_array() {
            Some(list) if list.iter().any(named) => {
                json!({ "selected-hash-algorithm": HASH_ALGORITHM })
            }
            Some(_) | None => return Err(NegotiationError::Hash),
        };
        // A guest that does not ask for them sees nothing that others do not answer.
        if let Some(asked) = self.extra_params.get(SUPPORTED).and_then(Value::as_array) {
            let known = OURS.into_iter();
            let known = known.filter(|name| asked.iter().any(|asked| asked == name));
            answer[SELECTED] = known.collect();
        }
        Ok(answer)
    }

    /// The name of the appraisal policies that the guest asks for, where it asks for one.
    ///
    /// # Errors
    /// When the member is there and is no text.
    pub fn policy_selector(&self) -> Result<Option<&str>, NegotiationError> {
        match self.extra_params.get("attestation_policy_selector") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) => Ok(Some(name)),
            Some(_) => Err(NegotiationError::Selector),
        }
    }
}

/// The broker's challenge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AuthResponse {
    /// Opaque text; both ends hash it as it is.
    pub nonce: String,
    /// The choice of the hash, or an empty text.
    pub extra_params: Value,
}

impl AuthResponse {
    /// Checks that the broker chose the hash that we compute.
    ///
    /// # Errors
    /// When it chose another one, or answered with something that is not a name.
    pub fn check_hash(&self) -> Result<(), NegotiationError> {
        match self.extra_params.get("selected-hash-algorithm") {
            None => Ok(()),
            Some(Value::String(name)) if is_hash(name) => Ok(()),
            Some(_) => Err(NegotiationError::Hash),
        }
    }

    /// What the broker takes of ours; nothing where it is another's.
    #[must_use]
    pub fn ours(&self) -> Ours {
        let selected = self.extra_params.get(SELECTED).and_then(Value::as_array);
        let has = |name: &str| selected.is_some_and(|all| all.iter().any(|one| one == name));
        Ours {
            raw_evidence: has(RAW_EVIDENCE),
            event_log: has(EVENT_LOG),
            resource: has(RESOURCE),
        }
    }
}

/// What our ends say to each other beyond the protocol, where both know it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ours {
    /// Evidence in its shortest form: a report's bytes in base64.
    pub raw_evidence: bool,
    /// A log in the additional evidence, below [`EVENT_LOG`].
    pub event_log: bool,
    /// A resource that is asked for with the evidence; see [`AttestRequest::resource`].
    pub resource: bool,
}

/// The guest answers the challenge. `E` is its evidence: JSON in whatever form the reader takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttestRequest<E = Value> {
    /// What the owner gave to the guest, in the clear; its digest is in the evidence.
    #[serde(default)]
    pub init_data: Option<InitData>,
    /// What the evidence binds.
    pub runtime_data: RuntimeData,
    /// The evidence.
    pub tee_evidence: TeeEvidence<E>,
    /// What a guest that is believed will ask for next. It is released, or refused, in the answer with the token, as
    /// to a request of its own.
    #[serde(
        rename = "cloister-resource",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub resource: Option<ResourcePath>,
}

/// Init-data in the clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitData {
    /// `toml`; nothing else is in use.
    pub format: String,
    /// The whole text, which is what the digest covers.
    pub body: String,
}

impl InitData {
    /// Init-data in TOML.
    #[must_use]
    pub fn toml(body: impl Into<String>) -> Self {
        Self {
            format: "toml".to_owned(),
            body: body.into(),
        }
    }
}

/// What the evidence binds: the challenge, and the key that will receive secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RuntimeData {
    /// The nonce of the [`AuthResponse`].
    pub nonce: String,
    /// The public half of the guest's key.
    pub tee_pubkey: TeePubKey,
}

/// Evidence of the CPU's TEE, and of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TeeEvidence<E = Value> {
    /// The form depends on the TEE.
    pub primary_evidence: E,
    /// A JSON map from TEE to evidence as text, or empty.
    #[serde(default)]
    pub additional_evidence: String,
}

/// What the broker answers to evidence that it accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenResponse {
    /// A JWT; see the broker's token format.
    pub token: String,
    /// What became of the resource that was asked for with the evidence; nothing where none was.
    #[serde(
        rename = "cloister-resource",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub resource: Option<Released>,
}

/// The answer to a request for a resource, as a part of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Released {
    /// The resource, sealed to the key that was attested.
    Sealed(Jwe),
    /// There is none for this guest, and why.
    Refused {
        /// The status that an answer of its own would have.
        status: u16,
        /// Its body.
        error: ErrorInformation,
    },
}

/// The two ends do not agree on `extra-params`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// SHA-384 was not offered, or another one was chosen.
    #[error("no common hash algorithm: this end computes `{HASH_ALGORITHM}` only")]
    Hash,
    /// The name of a policy is no text.
    #[error("`attestation_policy_selector` is no text")]
    Selector,
}

/// Peers spell the name with and without a dash, in either case.
fn is_hash(name: &str) -> bool {
    name.eq_ignore_ascii_case(HASH_ALGORITHM) || name.eq_ignore_ascii_case("sha-384")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from a guest-components client.
    const AUTH: &str = r#"{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512","sm3"]}}"#;
    const ATTEST: &str = r#"{"init-data":null,"runtime-data":{"nonce":"Tk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk4=","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"o59IT4UJgK0Xwi8iGcwLpTWY5BkeBwTtFJ7UKjYCX90","y":"K1YI3QC_qQ156PQD9teGndR6R05kgu2nX35GwT0EkWU"}},"tee-evidence":{"primary_evidence":{"report_data":"cBa6Bc4EwtzMb6kl4irOdlfGkqc7LHfrj1O8vM3AWtYZQ6XjmmELNsshx2uTbAMD","svn":"1"},"additional_evidence":""}}"#;

    #[test]
    fn recorded_messages_keep_their_bytes() {
        let auth: AuthRequest = serde_json::from_str(AUTH).unwrap();
        assert_eq!(serde_json::to_string(&auth).unwrap(), AUTH);
        assert_eq!(
            auth.negotiate().unwrap(),
            json!({"selected-hash-algorithm": "sha384"})
        );
        let attest: AttestRequest = serde_json::from_str(ATTEST).unwrap();
        assert_eq!(serde_json::to_string(&attest).unwrap(), ATTEST);
    }

    #[test]
    fn no_common_hash_is_an_error() {
        let mut auth = AuthRequest::new("sample");
        assert!(auth.negotiate().is_ok());
        auth.extra_params = json!({"supported-hash-algorithms": ["sm3"]});
        assert_eq!(auth.negotiate(), Err(NegotiationError::Hash));
        auth.extra_params = json!("");
        assert_eq!(auth.negotiate().unwrap(), json!(""));
    }

    #[test]
    fn what_both_know_is_said_and_to_peers_nothing_changes() {
        let answer = |extra_params| AuthResponse {
            nonce: String::new(),
            extra_params,
        };
        let all = Ours {
            raw_evidence: true,
            event_log: true,
            resource: true,
        };
        let mut auth = AuthRequest::new("snp");
        assert_eq!(answer(auth.negotiate().unwrap()).ours(), all);
        auth.extra_params[SUPPORTED] = json!([EVENT_LOG, "later", 7]);
        let said = answer(auth.negotiate().unwrap()).ours();
        assert_eq!((said.raw_evidence, said.event_log), (false, true));
        auth.extra_params = json!({"supported-hash-algorithms": ["sha384"]});
        let peers = json!({"selected-hash-algorithm": "sha384"});
        assert_eq!(auth.negotiate().unwrap(), peers);
        for theirs in [json!(""), peers, json!({SELECTED: "raw-evidence"})] {
            assert_eq!(answer(theirs).ours(), Ours::default());
        }
    }

    #[test]
    fn a_broker_that_chooses_another_hash_is_refused() {
        let answer = |extra_params| AuthResponse {
            nonce: String::new(),
            extra_params,
        };
        assert!(answer(json!("")).check_hash().is_ok());
        assert!(
            answer(json!({"selected-hash-algorithm": "SHA384"}))
                .check_hash()
                .is_ok()
        );
        assert!(
            answer(json!({"selected-hash-algorithm": "sha512"}))
                .check_hash()
                .is_err()
        );
        assert!(
            answer(json!({"selected-hash-algorithm": 1}))
                .check_hash()
                .is_err()
        );
    }
}
