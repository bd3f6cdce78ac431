//! From evidence to a token: challenge, key, evidence, appraisal, in this order.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use evidence::init_data::InitData;
use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, ErrorKind, VERSION, device_report_data, limit,
    report_data,
};
use policies::{
    PolicyError,
    appraisal::{AppraisalPolicy, ReferenceValues, Status},
    scopes::{ScopeError, Selector},
};
use serde_json::{Value, json, value::RawValue};
use sha2::{Digest, Sha256};
use verifier::{Bindings, Explanation, Failure};

use crate::{
    annotate::annotate,
    broker::Broker,
    record::{Entry, Judged, Kind, Outcome, Versions, guest},
    refusal::Refusal,
    rules::RuleError,
    session::Challenge,
    token::Submod,
    verify::NotVerified,
};

/// A request whose evidence is read once, by its verifier.
pub(crate) type Request = AttestRequest<Box<RawValue>>;

/// The part of the guest that its primary evidence is about.
pub(crate) const CPU: &str = "cpu0";
/// The class of the primary evidence.
const CPU_CLASS: &str = "cpu";

/// A challenge for a guest, and the cookie that carries it.
pub(crate) fn challenge(
    broker: &Broker,
    request: &AuthRequest,
) -> Result<(AuthResponse, String), Refusal> {
    if !is_spoken(&request.version) {
        let found: String = request.version.chars().take(32).collect();
        return Err(Refusal::new(
            ErrorKind::ProtocolVersion,
            format!("protocol version {found:?} is not spoken here: use {VERSION}"),
        ));
    }
    broker
        .verifiers
        .accept(&request.tee)
        .map_err(|failure| Refusal::new(ErrorKind::TeeNotAccepted, failure.to_string()))?;
    let invalid = |detail: String| Refusal::new(ErrorKind::InvalidRequest, detail);
    let extra_params = request
        .negotiate()
        .map_err(|error| invalid(error.to_string()))?;
    let policy = request
        .policy_selector()
        .map_err(|error| invalid(error.to_string()))?;
    Selector::new(policy, CPU_CLASS).map_err(no_policy)?;
    let (challenge, cookie) = broker
        .challenges
        .issue(&request.tee, policy.map(str::to_owned), SystemTime::now())
        .map_err(|error| Refusal::new(ErrorKind::SessionNotFound, error.to_string()))?;
    let response = AuthResponse {
        nonce: challenge.nonce,
        extra_params,
    };
    Ok((response, cookie))
}

/// Any 0.4: its patches change no message.
fn is_spoken(version: &str) -> bool {
    let mut parts = version.split('.');
    let patch = |text: &str| {
        (1..=9).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    parts.next() == Some("0")
        && parts.next() == Some("4")
        && parts.next().is_some_and(patch)
        && parts.next().is_none()
}

/// A token for evidence that answers the challenge, and the entry that has to be on the record before the token is
/// given away.
pub(crate) async fn attest(
    broker: &Arc<Broker>,
    challenge: &Challenge,
    request: Request,
) -> Result<(String, Entry), Refusal> {
    let now = SystemTime::now();
    let name = challenge.policy.as_deref();
    let selector = Selector::new(name, CPU_CLASS).map_err(no_policy)?;
    let mut entry = entry(challenge, &request);
    let judged = match judge(broker, challenge, &request, now).await {
        Ok(parts) => {
            // By what holds now, and not by what held before collateral was waited for. Which names have a policy is
            // told to nobody who has no evidence.
            let (policy, version) = broker.rules.appraisal_for(&selector).await?;
            let (references, number) = broker.rules.references(SystemTime::now());
            entry = entry.by(Versions {
                policy: selector.to_string(),
                appraisal: version,
                references: number,
                ..Versions::default()
            });
            let rules = Rules {
                broker,
                cpu: policy,
                references,
            };
            let devices = &mut entry.versions.devices;
            appraise(&rules, challenge, parts, devices).await
        }
        Err(verdict) => Err(verdict),
    };
    match judged {
        Ok(submods) => {
            let token = broker
                .signer
                .issue(&entry.ticket, &submods, now)
                .map_err(|error| Refusal::new(ErrorKind::InvalidRequest, error.to_string()))?;
            entry.affirms_nothing = !submods.iter().any(affirms);
            let judged = submods.into_iter().flat_map(|part| {
                let judgements = part.appraisal.judgements;
                let mut judged = Judged::by_policy(judgements, &part.appraisal.reasons);
                if part.name != CPU {
                    judged
                        .iter_mut()
                        .for_each(|one| one.submod.clone_from(&part.name));
                }
                judged
            });
            Ok((token, entry.judging(judged)))
        }
        Err(Verdict::Refused(refusal)) => Err(refusal),
        Err(Verdict::Denied(kind, cause)) => {
            let ticket = broker.deny(entry.denied().judging([*cause])).await;
            let reads = format!("the owner reads why with `kbs explain {ticket}`");
            let detail = match kind {
                ErrorKind::CollateralUnavailable => {
                    "what the vendor says of this hardware cannot be had now: try again later"
                        .to_owned()
                }
                ErrorKind::PolicyEngineError => format!("the appraisal policy failed: {reads}"),
                _ => format!("the evidence was refused: {reads}"),
            };
            Err(Refusal::new(kind, detail).with_ticket(ticket))
        }
    }
}

fn entry(challenge: &Challenge, request: &Request) -> Entry {
    let subject = guest(&request.runtime_data.tee_pubkey);
    let evidence = serde_json::to_string(&request.tee_evidence);
    let digest = digest(&evidence.unwrap_or_default());
    Entry::new(
        Kind::Attest,
        Outcome::Allowed,
        subject,
        challenge.tee.clone(),
    )
    .on(digest)
}

/// SHA-256 in hex of JSON without the blanks between its tokens.
fn digest(json: &str) -> String {
    const BLANKS: [u8; 4] = *b" \t\n\r";
    // Whole chunks are looked at with a few instructions.
    let has_blank = |chunk: &[u8]| chunk.iter().fold(false, |any, byte| any | (*byte <= b' '));
    if !json.as_bytes().chunks(64).any(has_blank) {
        // As programs write it.
        return hex::encode(Sha256::digest(json));
    }
    let mut hash = Sha256::new();
    let (mut quoted, mut escaped) = (false, false);
    let parts = json.as_bytes().split(|&byte| {
        let blank = !quoted && BLANKS.contains(&byte);
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        blank
    });
    parts.for_each(|part| hash.update(part));
    hex::encode(hash.finalize())
}

/// By what one guest is appraised.
struct Rules<'a> {
    broker: &'a Broker,
    cpu: Arc<AppraisalPolicy>,
    references: ReferenceValues,
}

/// Why there is no token.
enum Verdict {
    /// The request or the broker is at fault.
    Refused(Refusal),
    /// What the owner will want to understand: evidence that is at fault, or could not be judged.
    Denied(ErrorKind, Box<Judged>),
}

impl From<Failure> for Verdict {
    fn from(failure: Failure) -> Self {
        refused(failure.explain())
    }
}

impl From<Refusal> for Verdict {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<RuleError> for Verdict {
    fn from(error: RuleError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<NotVerified> for Verdict {
    fn from(not: NotVerified) -> Self {
        match &not {
            NotVerified::Collateral(error) if error.retry_helps() => Self::Denied(
                ErrorKind::CollateralUnavailable,
                judged(not.explain()).into(),
            ),
            NotVerified::Collateral(_) | NotVerified::Failed(_) => refused(not.explain()),
        }
    }
}

fn refused(explanation: Explanation) -> Verdict {
    Verdict::Denied(ErrorKind::AttestationError, judged(explanation).into())
}

/// What was verified of one part of a guest, in the form that policies read.
struct Part {
    class: &'static str,
    evidence: Value,
}

async fn judge(
    broker: &Broker,
    challenge: &Challenge,
    request: &Request,
    now: SystemTime,
) -> Result<Vec<Part>, Verdict> {
    let runtime = &request.runtime_data;
    let kind = broker.verifiers.accept(&challenge.tee)?;
    if runtime.nonce != challenge.nonce {
        return Err(refused(Explanation {
            claim: "nonce",
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
    let beside = broker.verifiers.additional(additional)?;
    let devices = beside.devices;
    let init_data = request
        .init_data
        .as_ref()
        .map(parse_init_data)
        .transpose()?;
    let bindings = Bindings {
        report_data: report_data(&runtime.nonce, &runtime.tee_pubkey, additional),
        init_data: init_data.as_ref().map(InitData::digest),
    };
    let mut claims = broker
        .verifiers
        .verify(kind, &request.tee_evidence.primary_evidence, &bindings, now)
        .await?;
    if let Some(log) = beside.event_log {
        verifier::event_log::add(&mut claims, log)?;
    }
    let mut parts = vec![Part {
        class: CPU_CLASS,
        evidence: annotate(claims, runtime, additional, init_data.as_ref()),
    }];
    if devices.is_empty() {
        return Ok(parts);
    }
    let bound = device_report_data(&runtime.nonce, &runtime.tee_pubkey);
    for (device, evidence) in &devices {
        let claims = verifier::device::verify(*device, *evidence, &bound)?;
        parts.push(Part {
            class: device.class(),
            evidence: json!({
                device.name(): claims.evidence,
                "report_data": hex::encode(bound),
                "runtime_data_claims": {
                    "nonce": runtime.nonce,
                    "tee-pubkey": runtime.tee_pubkey,
                },
            }),
        });
    }
    Ok(parts)
}

/// Asks the policy of each part's class, and notes which version that was.
async fn appraise(
    rules: &Rules<'_>,
    challenge: &Challenge,
    parts: Vec<Part>,
    versions: &mut BTreeMap<String, i64>,
) -> Result<Vec<Submod>, Verdict> {
    let mut counts = BTreeMap::new();
    let mut submods = Vec::with_capacity(parts.len());
    for part in parts {
        let number = counts.entry(part.class).or_insert(0_u32);
        let name = format!("{}{number}", part.class);
        *number += 1;
        let policy = match part.class {
            CPU_CLASS => Arc::clone(&rules.cpu),
            class => {
                let name = challenge.policy.as_deref();
                let selector = Selector::new(name, class).map_err(no_policy)?;
                let (policy, version) = rules.broker.rules.appraisal_for(&selector).await?;
                versions.insert(class.to_owned(), version);
                policy
            }
        };
        let (evidence, references) = (part.evidence, Arc::clone(&rules.references));
        let question = move |policy: &AppraisalPolicy| {
            let appraisal = policy.appraise(&evidence, &references)?;
            Ok((appraisal, evidence))
        };
        // One that ships is asked here, an owner's where it can hold up nobody.
        let judged = if policy.is_built_in() {
            question(&policy)
        } else {
            rules.broker.rules.desk.ask(&policy, question).await
        };
        let (appraisal, evidence) = judged.map_err(|error| match error {
            PolicyError::Busy => Verdict::Refused(RuleError::Busy.into()),
            error => {
                let judged = Judged::failing(&error).into();
                Verdict::Denied(ErrorKind::PolicyEngineError, judged)
            }
        })?;
        submods.push(Submod {
            name,
            policy: challenge.policy.clone().unwrap_or("default".to_owned()),
            appraisal,
            evidence,
        });
    }
    Ok(submods)
}

/// Whether it is worth something that the guest was judged.
fn affirms(part: &Submod) -> bool {
    matches!(part.appraisal.status, Status::Affirming | Status::Warning)
}

fn parse_init_data(sent: &kbs_protocol::InitData) -> Result<InitData, Verdict> {
    if sent.format != "toml" {
        return Err(invalid("init-data: format is not `toml`"));
    }
    InitData::parse(sent.body.as_bytes()).map_err(|error| invalid(error.to_string()))
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn no_policy(error: ScopeError) -> Refusal {
    Refusal::new(ErrorKind::InvalidRequest, error.to_string())
}

fn invalid(detail: impl Into<String>) -> Verdict {
    Verdict::Refused(Refusal::new(ErrorKind::InvalidRequest, detail))
}

fn judged(explanation: Explanation) -> Judged {
    Judged {
        claim: explanation.claim.to_owned(),
        expected: explanation.expected,
        found: explanation.found,
        holds: false,
        rule: "verifier".to_owned(),
        fix: explanation.fix,
        submod: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_between_tokens_change_no_digest_and_others_do() {
        let compact = r#"{"a":[1,2],"b \" c":"d\\"}"#;
        let spaced = "{ \"a\" : [1,\n\t2],\r\n\"b \\\" c\": \"d\\\\\" }";
        let expected = hex::encode(Sha256::digest(compact));
        assert_eq!(digest(compact), expected);
        assert_eq!(digest(spaced), expected);
        assert_ne!(digest(&compact.replace("b ", "b")), expected);
    }
}
