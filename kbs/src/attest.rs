//! From evidence to a token: challenge, key, evidence, appraisal, in this order.

use std::{sync::Arc, time::SystemTime};

use evidence::init_data::InitData;
use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, ErrorKind, VERSION, limit, report_data,
};
use policies::{
    appraisal::{AppraisalPolicy, ReferenceValues},
    release::Reason,
    scopes::Selector,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256, Sha384};
use verifier::{Bindings, Explanation};

use crate::{
    broker::{Broker, guest},
    record::{Entry, Kind, Outcome, Versions},
    refusal::Refusal,
    session::{Challenge, SessionError},
};

/// Bytes of an init-data entry that goes into the token whole. A longer one goes in as its digest,
/// so that the token still fits into a header.
const CLAIM_BYTES: usize = 8 * 1024;

/// A challenge for a guest, and the cookie that carries it.
pub(crate) fn challenge(
    broker: &Broker,
    request: &AuthRequest,
) -> Result<(AuthResponse, String), Refusal> {
    if request.version != VERSION {
        let found: String = request.version.chars().take(32).collect();
        return Err(Refusal::new(
            ErrorKind::ProtocolVersion,
            format!("protocol version {found:?} is not spoken here: use {VERSION}"),
        ));
    }
    verifier::accept(&request.tee, &broker.accepted)
        .map_err(|failure| Refusal::new(ErrorKind::TeeNotAccepted, failure.to_string()))?;
    let extra_params = request
        .negotiate()
        .map_err(|error| Refusal::new(ErrorKind::InvalidRequest, error.to_string()))?;
    let (challenge, cookie) = broker
        .challenges
        .issue(&request.tee, SystemTime::now())
        .map_err(refuse_session)?;
    let response = AuthResponse {
        nonce: challenge.nonce,
        extra_params,
    };
    Ok((response, cookie))
}

/// A token for evidence that answers the challenge in the cookie.
pub(crate) async fn attest(
    broker: &Arc<Broker>,
    cookie: &str,
    request: AttestRequest,
) -> Result<String, Refusal> {
    let now = SystemTime::now();
    let challenge = broker
        .challenges
        .open(cookie, now)
        .map_err(refuse_session)?;
    let selector = Selector::default();
    let (policy, version) = broker.rules.appraisal_for(&selector).await?;
    let (references, reference_version) = broker.rules.references(now);
    let rules = Rules { policy, references };
    let entry = entry(&challenge, &request).by(Versions {
        policy: selector.to_string(),
        appraisal: version,
        references: reference_version,
        ..Versions::default()
    });
    match judge(broker, &rules, &challenge, &request, now) {
        Ok(token) => {
            broker.keep(entry).await?;
            Ok(token)
        }
        Err(Verdict::Refused(refusal)) => Err(refusal),
        Err(Verdict::Denied(reason)) => {
            let ticket = broker.deny(entry.denied(vec![reason])).await;
            let detail = "the evidence was refused: the owner reads why with `kbs explain`";
            Err(Refusal::new(ErrorKind::AttestationError, detail).with_ticket(ticket))
        }
    }
}

fn entry(challenge: &Challenge, request: &AttestRequest) -> Entry {
    let subject = guest(&request.runtime_data.tee_pubkey);
    let evidence = request.tee_evidence.primary_evidence.to_string();
    let digest = hex::encode(Sha256::digest(evidence));
    Entry::new(
        Kind::Attest,
        Outcome::Allowed,
        subject,
        challenge.tee.clone(),
    )
    .on(digest)
}

/// By what one piece of evidence is appraised.
struct Rules {
    policy: Arc<AppraisalPolicy>,
    references: ReferenceValues,
}

/// Why there is no token.
enum Verdict {
    /// The request or the broker is at fault.
    Refused(Refusal),
    /// The evidence is at fault, which the owner will want to understand.
    Denied(Reason),
}

fn judge(
    broker: &Broker,
    rules: &Rules,
    challenge: &Challenge,
    request: &AttestRequest,
    now: SystemTime,
) -> Result<String, Verdict> {
    let runtime = &request.runtime_data;
    let kind = verifier::accept(&challenge.tee, &broker.accepted)
        .map_err(|failure| Verdict::Denied(reason(failure.explain())))?;
    if runtime.nonce != challenge.nonce {
        return Err(Verdict::Denied(Reason {
            claim: "nonce".to_owned(),
            expected: challenge.nonce.clone(),
            found: runtime.nonce.chars().take(limit::NONCE_CHARS).collect(),
            fix: "answer the challenge that came with this cookie".to_owned(),
        }));
    }
    runtime
        .tee_pubkey
        .check()
        .map_err(|error| invalid(format!("tee-pubkey: {error}")))?;
    let additional = &request.tee_evidence.additional_evidence;
    if !matches!(additional.as_str(), "" | "{}") {
        return Err(invalid(
            "additional_evidence: this broker has no verifier for devices: send an empty text",
        ));
    }
    let init_data = request
        .init_data
        .as_ref()
        .map(parse_init_data)
        .transpose()?;
    let bindings = Bindings {
        report_data: report_data(&runtime.nonce, &runtime.tee_pubkey, additional),
        init_data: init_data.as_ref().map(InitData::digest),
    };
    let claims = verifier::verify(kind, &request.tee_evidence.primary_evidence, &bindings)
        .map_err(|failure| Verdict::Denied(reason(failure.explain())))?;
    let annotated = annotate(&claims, request, init_data.as_ref());
    let appraisal = rules
        .policy
        .appraise(&annotated, &rules.references)
        .map_err(|error| {
            tracing::error!(%error, "the appraisal policy failed");
            Verdict::Refused(Refusal::new(
                ErrorKind::PolicyEngineError,
                "the appraisal policy failed: its owner finds the cause in the broker's log",
            ))
        })?;
    broker
        .signer
        .issue(&appraisal, &annotated, now)
        .map_err(|error| invalid(error.to_string()))
}

/// What was verified, in the form that appraisal and release policies read. Init-data is in it only
/// if the launch bound it.
fn annotate(
    claims: &verifier::Claims,
    request: &AttestRequest,
    init_data: Option<&InitData>,
) -> Value {
    let runtime = &request.runtime_data;
    let mut annotated = json!({
        claims.kind.name(): claims.evidence,
        "report_data": claims.report_data,
        "runtime_data_claims": {
            "nonce": runtime.nonce,
            "tee-pubkey": runtime.tee_pubkey,
            "additional-evidence": request.tee_evidence.additional_evidence,
        },
    });
    if let Some(bound) = &claims.init_data {
        annotated["init_data"] = Value::String(bound.clone());
        if let Some(init_data) = init_data {
            annotated["init_data_claims"] = init_data_claims(init_data);
        }
    }
    annotated
}

/// The entries of init-data; those in TOML as objects, as Trustee has them.
fn init_data_claims(init_data: &InitData) -> Value {
    let entry = |(name, text): (&String, &String)| {
        let value = if text.len() > CLAIM_BYTES {
            json!({ "sha384": hex::encode(Sha384::digest(text)) })
        } else if name.ends_with(".toml") {
            toml::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
        } else {
            Value::String(text.clone())
        };
        (name.clone(), value)
    };
    Value::Object(init_data.data().iter().map(entry).collect::<Map<_, _>>())
}

fn parse_init_data(sent: &kbs_protocol::InitData) -> Result<InitData, Verdict> {
    if sent.format != "toml" {
        return Err(invalid("init-data: format is not `toml`"));
    }
    InitData::parse(sent.body.as_bytes()).map_err(|error| invalid(error.to_string()))
}

fn invalid(detail: impl Into<String>) -> Verdict {
    Verdict::Refused(Refusal::new(ErrorKind::InvalidRequest, detail))
}

fn reason(explanation: Explanation) -> Reason {
    Reason {
        claim: explanation.claim.to_owned(),
        expected: explanation.expected,
        found: explanation.found,
        fix: explanation.fix,
    }
}

fn refuse_session(error: SessionError) -> Refusal {
    Refusal::new(ErrorKind::SessionNotFound, error.to_string())
}
