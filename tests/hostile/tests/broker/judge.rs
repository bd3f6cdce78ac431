//! What an answer to a mutated request may be.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use evidence::{Tee, snp::SnpEvidence, tdx::TdxEvidence};
use kbs_protocol::{AttestRequest, TeePubKey, TokenResponse};
use serde_json::Value;

use crate::guest::Guest;
use crate::http::{Answer, Request};
use crate::mutate::{Class, PUBLIC, Source};
use crate::served::SECRET;

/// Why the answer is a fault, if it is one.
pub(crate) fn judge(
    source: &Source<'_>,
    (class, request): (Class, &Request),
    answer: &Answer,
) -> Result<(), String> {
    if answer.status >= 500 && answer.status != 503 {
        return Err("a fault of the broker's own".to_owned());
    }
    leaks(source, request, answer)?;
    if !(200..300).contains(&answer.status) {
        return Ok(());
    }
    match class {
        Class::Auth => Ok(()),
        Class::Attest => {
            // Both cookie and words of the other one are an honest request too.
            let good = says_the_same(source.good, request, answer);
            good.or_else(|fault| says_the_same(source.other, request, answer).map_err(|_| fault))
        }
        Class::Resource => released(source, request, answer),
        Class::Admin => Err("administered without a token".to_owned()),
        Class::Nobody => {
            let path = request.target.split(|byte| b"?#".contains(byte)).next();
            let public =
                path.is_some_and(|path| PUBLIC.iter().any(|public| public.as_bytes() == path));
            let asked = [b"GET".as_slice(), b"HEAD"].contains(&request.method.as_slice());
            let told = format!("not public: {}", request.target.escape_ascii());
            (public && asked).then_some(()).ok_or(told)
        }
    }
}

fn leaks(source: &Source<'_>, request: &Request, answer: &Answer) -> Result<(), String> {
    let TeePubKey::Ec { x, .. } = &source.other.request.runtime_data.tee_pubkey else {
        return Err("a guest without a key on a curve".to_owned());
    };
    let sealed = BASE64_URL_SAFE_NO_PAD.encode(SECRET);
    let sent = request.bytes();
    for (name, text) in [
        ("the secret", SECRET),
        ("the secret in base64", &sealed),
        ("the administrator's token", source.admin),
        (
            "the other guest's nonce",
            &source.other.request.runtime_data.nonce,
        ),
        ("the other guest's key", x),
        ("the other guest's token", &source.other.token),
    ] {
        // What was sent here is no news to who sent it.
        let told = holds(answer.head.as_bytes(), text) || holds(&answer.body, text);
        if told && !holds(&sent, text) {
            return Err(format!("the answer has {name}"));
        }
    }
    Ok(())
}

fn holds(bytes: &[u8], text: &str) -> bool {
    let text = text.as_bytes();
    bytes.len() >= text.len() && bytes.windows(text.len()).any(|part| part == text)
}

/// A resource goes to who sends a token as it was given, and only its guest can read it.
fn released(source: &Source<'_>, request: &Request, answer: &Answer) -> Result<(), String> {
    let sent = |guest: &Guest| {
        let is = |value: &[u8]| value == guest.token.as_bytes();
        request.headers.iter().any(|(name, value)| match *name {
            "authorization" => value.strip_prefix(b"Bearer ").is_some_and(is),
            _ => value.strip_prefix(b"kbs-session-id=t.").is_some_and(is),
        })
    };
    let to = [source.good, source.other]
        .into_iter()
        .find(|one| sent(one));
    let Some(guest) = to else {
        return Err("released by an altered token".to_owned());
    };
    if request.method != b"HEAD" && !guest.opens(&answer.body) {
        return Err("released something else, or to somebody else".to_owned());
    }
    Ok(())
}

/// A token is given only for what the honest guest said too.
fn says_the_same(good: &Guest, request: &Request, answer: &Answer) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("accepted with {what} changed"));
    let cookie = request.headers.iter().find(|(name, _)| *name == "cookie");
    let cookie = cookie.map_or(&[][..], |(_, value)| value);
    let kept = cookie
        .split(|byte| *byte == b';')
        .any(|pair| pair.trim_ascii() == good.cookie.as_bytes());
    if !kept {
        return wrong("the cookie");
    }
    let sent: AttestRequest =
        serde_json::from_slice(&request.body).map_err(|error| error.to_string())?;
    if sent.runtime_data != good.request.runtime_data {
        return wrong("the nonce or the key");
    }
    // Who sends no init-data in the clear has the launch's digest in the evidence nonetheless. Of
    // `sample` nobody vouches for either.
    let free = sent.init_data.is_none() || good.kind == Tee::Sample;
    if !free && sent.init_data != good.request.init_data {
        return wrong("init-data");
    }
    if sent.tee_evidence.additional_evidence != good.request.tee_evidence.additional_evidence {
        return wrong("the additional evidence");
    }
    let (before, after) = (
        &good.request.tee_evidence.primary_evidence,
        &sent.tee_evidence.primary_evidence,
    );
    if signed(good.kind, before)? != signed(good.kind, after)? {
        return wrong("what is signed of the evidence");
    }
    let token: TokenResponse =
        serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    let (mut was, mut is) = (claims(&good.token)?, claims(&token.token)?);
    if free {
        for claims in [&mut was, &mut is] {
            drop(
                claims
                    .as_object_mut()
                    .and_then(|all| all.remove("init_data_claims")),
            );
        }
    }
    same_claims(good.kind, was, is)
}

/// What the hardware signed. Of `sample` nothing is: who makes it may say what he likes, but it has
/// to bind the challenge and the key.
fn signed(kind: Tee, evidence: &Value) -> Result<Vec<u8>, String> {
    let evidence = evidence.clone();
    match kind {
        Tee::SimSnp => serde_json::from_value(evidence)
            .map(|evidence: SnpEvidence| evidence.bytes().to_vec())
            .map_err(|error| error.to_string()),
        Tee::SimTdx => serde_json::from_value(evidence)
            .map(|evidence: TdxEvidence| evidence.quote().signed_bytes())
            .map_err(|error| error.to_string()),
        _ => Ok(evidence["report_data"].to_string().into()),
    }
}

/// The evidence as a token says that it was verified.
fn claims(token: &str) -> Result<Value, String> {
    let body = token.split('.').nth(1).unwrap_or_default();
    let body = BASE64_URL_SAFE_NO_PAD.decode(body);
    let body = body.map_err(|error| error.to_string())?;
    let body: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    let claims = body.pointer("/submods/cpu0/ear.veraison.annotated-evidence");
    claims
        .cloned()
        .ok_or_else(|| "a token without evidence".to_owned())
}

/// Of an event log, only what its digest answers for is believed, so that texts beside it and the
/// part that no register needs may differ.
fn same_claims(kind: Tee, mut was: Value, mut is: Value) -> Result<(), String> {
    let name = kind.name();
    if kind == Tee::Sample {
        for claims in [&mut was, &mut is] {
            claims[name] = Value::Null;
            claims["init_data"] = Value::Null;
        }
    }
    if kind == Tee::SimTdx {
        let believed = |claims: &mut Value| {
            let events = claims[name]["uefi_event_logs"].take();
            claims[name]["rtmr_3_replayed"] = Value::Null;
            let events = events.as_array().cloned().unwrap_or_default();
            let believed = events.into_iter().filter(|event| {
                event["digest_matches_event"] == true && event["type_name"] != "EV_NO_ACTION"
            });
            let bound = |event: Value| ["index", "digests", "event"].map(|of| event[of].clone());
            believed.map(bound).collect::<Vec<_>>()
        };
        let (before, after) = (believed(&mut was), believed(&mut is));
        if !after.iter().all(|event| before.contains(event)) {
            return Err(format!("an event was made up: {after:?}"));
        }
    }
    if was != is {
        return Err(format!("the token says something else: {was} and now {is}"));
    }
    Ok(())
}
