//! Intel TDX: a quote, the collateral that says what its platform is worth, and what it must bind.
//!
//! Whether a quote and its collateral hold is `dcap-qvl`'s verdict alone. Around it stand what names a
//! refusal ([`TdxFailure`]), what makes a second verification cheap ([`Collateral`]), and what
//! `dcap-qvl` does not know: the bindings, and the event log that has to replay to the registers.

mod certificate;
mod claims;
mod collateral;
mod diagnosis;
mod document;
mod failure;
mod known;
mod needs;
mod parts;
mod roots;

use dcap_qvl::{QuoteClaims, QuotePolicy, verify::QuoteVerifier};
use evidence::{
    eventlog::{EventLog, Register},
    tdx::{Body, TdxEvidence, TdxMessage},
};
use serde::{Deserialize, Deserializer};

pub use collateral::Collateral;
pub use document::Document;
pub use failure::TdxFailure;
pub use needs::{Ca, Needs, needs};
pub use parts::{CHAIN_BYTES, CRL_BYTES, DOCUMENT_BYTES, Parts, SIGNATURE_BYTES};
pub use roots::Roots;

use crate::{Bindings, Claims, Failure};

/// Reads evidence from its JSON.
///
/// # Errors
/// [`Failure::Malformed`] with the member that is wrong, or [`TdxFailure::Quote`].
pub fn parse<'a>(roots: &Roots, evidence: impl Deserializer<'a>) -> Result<TdxEvidence, Failure> {
    let message = TdxMessage::deserialize(evidence).map_err(|error| Failure::Malformed {
        kind: roots.kind(),
        detail: crate::failure::shorten(&error.to_string()),
    })?;
    Ok(TdxEvidence::try_from(message).map_err(TdxFailure::Quote)?)
}

/// Verifies evidence at `now`, in seconds since the Unix epoch. The kind in the claims is the roots'.
///
/// A debug TD is accepted, with a claim that says so, as its owner may want one. A TD is refused that
/// can be migrated, that a service TD may enter, that the host profiles, or that does not notice the
/// loss of a page: no claim of Trustee's tells it from a sound one.
///
/// # Errors
/// Names the first thing that is wrong.
pub fn verify(
    evidence: &TdxEvidence,
    roots: &Roots,
    collateral: &Collateral,
    bindings: &Bindings,
    now: u64,
) -> Result<Claims, Failure> {
    if collateral.root != roots.root {
        return Err(TdxFailure::OtherRoots.into());
    }
    let seconds = i64::try_from(now).unwrap_or(i64::MAX);
    collateral.at(seconds)?;
    let found = judge(evidence, roots, collateral, now)
        .map_err(|said| diagnosis::cause(evidence, collateral, seconds, &said))?;
    let body = &evidence.quote().body;
    diagnosis::attributes(body)?;
    binds(body, bindings)?;
    let log = evidence
        .event_log()
        .map(EventLog::parse)
        .transpose()
        .map_err(TdxFailure::EventLog)?;
    let rtmr_3_replayed = match &log {
        Some(log) => replays(body, &log.replay().map_err(TdxFailure::EventLog)?)?,
        None => false,
    };
    let verdict = claims::Verdict {
        found: &found,
        ca: collateral.needs.ca,
    };
    let bound = body.mr_config_id != [0; 48];
    Ok(Claims {
        kind: roots.kind(),
        evidence: claims::claims(evidence.quote(), log.as_ref(), rtmr_3_replayed, &verdict),
        report_data: hex::encode(bindings.report_data),
        init_data: bound.then(|| hex::encode(body.mr_config_id)),
    })
}

/// `dcap-qvl`'s verdict, or what it says against the quote.
fn judge(
    evidence: &TdxEvidence,
    roots: &Roots,
    collateral: &Collateral,
    now: u64,
) -> Result<QuoteClaims, String> {
    let verifier = QuoteVerifier::<known::Remembering>::new_with_config(roots.root.der.clone())
        .allow_debug(true);
    let policy = QuotePolicy::claims_only(now);
    collateral
        .known
        .during(|| verifier.verify_with_policy(evidence.bytes(), &collateral.whole, now, &policy))
        .map_err(|error| format!("{error:#}"))
}

fn binds(body: &Body, bindings: &Bindings) -> Result<(), Failure> {
    let mut expected = [0; 64];
    expected[..bindings.report_data.len()].copy_from_slice(&bindings.report_data);
    if body.report_data != expected {
        return Err(Failure::ReportData {
            expected: hex::encode(expected),
            found: hex::encode(body.report_data),
        });
    }
    let sent = bindings.init_data.as_ref().map(measure::mrconfigid);
    match sent {
        Some(sent) if sent != body.mr_config_id => Err(Failure::InitData {
            bound: hex::encode(body.mr_config_id),
            sent: hex::encode(sent),
        }),
        _ => Ok(()),
    }
}

/// That the registers are those of the log; whether that is known of RTMR3 too. A guest may extend
/// RTMR3 without a log of it, and then only a policy can say whether that will do.
fn replays(body: &Body, registers: &[Register; 4]) -> Result<bool, TdxFailure> {
    let names = ["rtmr_0", "rtmr_1", "rtmr_2", "rtmr_3"];
    for (at, (said, replayed)) in body.rtmr.iter().zip(registers).enumerate() {
        if *said == replayed.value {
            continue;
        }
        if at == 3 && replayed.events == 0 {
            return Ok(false);
        }
        return Err(TdxFailure::Replay {
            register: names[at],
            expected: hex::encode(said),
            found: hex::encode(replayed.value),
        });
    }
    Ok(true)
}
