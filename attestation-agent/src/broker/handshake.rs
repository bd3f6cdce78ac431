//! The RCAR handshake as states that move by value.
//!
//! ```text
//! Challenged::ask ──► Challenged { nonce, cookie } ──answer──► Attested { token, key pair }
//! ```
//!
//! A broker of ours takes the request for the first resource with the evidence, and answers both at once: a round trip
//! and a wait for its disk less.
//!
//! A nonce is answered once: whoever fails starts at the beginning.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use evidence::eventlog::{self, LOG_END};
use http::{HeaderMap, HeaderValue, header::SET_COOKIE};
use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, EVENT_LOG, ErrorKind, InitData, Jwe, Ours, Released,
    ResourceUri, RuntimeData, SESSION_COOKIE, Secret, TeeEvidence, TeeKeyPair, TokenResponse,
    limit::{AUTH_BODY_BYTES, JWE_BYTES, NONCE_CHARS, TOKEN_BYTES},
    report_data,
};
use serde::Serialize;
use tokio::{task::spawn_blocking, time::Instant};

use super::{
    BrokerError, Step,
    exchange::{Exchange, Failure},
};
use crate::{AttestError, Attester, EventLog, token::Token};

/// Characters of the session's cookie; Trustee's has 32.
const COOKIE_CHARS: usize = 4096;

/// What stays the same over all handshakes of a guest.
pub(super) struct Identity {
    pub(super) attester: Arc<dyn Attester>,
    pub(super) keys: Arc<TeeKeyPair>,
    pub(super) init_data: Option<String>,
    pub(super) log: Option<Arc<EventLog>>,
}

/// The broker gave a challenge.
pub(super) struct Challenged {
    nonce: String,
    cookie: HeaderValue,
    /// What the broker takes besides what all do.
    takes: Ours,
}

/// The broker believed the evidence.
pub(super) struct Attested {
    pub(super) token: Token,
    pub(super) keys: Arc<TeeKeyPair>,
}

impl Challenged {
    pub(super) async fn ask(exchange: &Exchange, identity: &Identity) -> Result<Self, BrokerError> {
        let step = Step::Auth;
        let request = AuthRequest::new(identity.attester.kind().name());
        let answer = exchange
            .post(step, "auth", None, json(step, &request)?, AUTH_BODY_BYTES)
            .await
            .map_err(Failure::into_error)?;
        let challenge: AuthResponse = answer.json()?;
        let protocol = |cause: &str| BrokerError::Protocol {
            step,
            cause: cause.to_owned(),
        };
        challenge
            .check_hash()
            .map_err(|error| protocol(&error.to_string()))?;
        if challenge.nonce.is_empty() || challenge.nonce.len() > NONCE_CHARS {
            return Err(protocol("the nonce is empty or too long"));
        }
        let cookie = session_cookie(&answer.headers);
        Ok(Self {
            takes: challenge.ours(),
            nonce: challenge.nonce,
            cookie: cookie.ok_or_else(|| protocol("no session cookie that can be sent back"))?,
        })
    }

    /// Sends the evidence, and the name of the resource that is wanted next, where the broker takes it. What it
    /// answers to that is beside the token; nothing where it does not take it.
    pub(super) async fn answer(
        self,
        exchange: &Exchange,
        identity: &Identity,
        wanted: Option<&ResourceUri>,
    ) -> Result<(Attested, Option<Released>), BrokerError> {
        let step = Step::Attest;
        let wanted = wanted.filter(|_| self.takes.resource);
        let tee_pubkey = identity.keys.public();
        let additional_evidence = identity.additional(self.takes)?;
        let report_data = report_data(&self.nonce, &tee_pubkey, &additional_evidence);
        let attester = identity.attester.clone();
        let raw = self.takes.raw_evidence;
        // Firmware takes its time, and the guest has other work.
        let evidence = spawn_blocking(move || match raw {
            true => attester.raw_report(&report_data),
            false => attester.report(&report_data),
        });
        let evidence = evidence
            .await
            .map_err(|error| identity.no_report(&error))??;
        let request = AttestRequest {
            init_data: identity.init_data.as_deref().map(InitData::toml),
            runtime_data: RuntimeData {
                nonce: self.nonce,
                tee_pubkey,
            },
            tee_evidence: TeeEvidence {
                primary_evidence: evidence,
                additional_evidence,
            },
            resource: wanted.map(|uri| uri.path().clone()),
        };
        let body = json(step, &request)?;
        let cap = TOKEN_BYTES + AUTH_BODY_BYTES + wanted.map_or(0, |_| JWE_BYTES);
        let answer = exchange
            .post(step, "attest", Some(self.cookie), body, cap)
            .await
            .map_err(rejected)?;
        let TokenResponse { token, resource } = answer.json()?;
        let token = Token::received(&token, Instant::now());
        let attested = Attested {
            token: token.ok_or_else(|| BrokerError::Protocol {
                step,
                cause: "the token is empty, too long, or not text of a header".to_owned(),
            })?,
            keys: identity.keys.clone(),
        };
        Ok((attested, resource.filter(|_| wanted.is_some())))
    }
}

impl Attested {
    /// Opens what was sealed to the key that was attested.
    pub(super) fn open(&self, uri: &ResourceUri, jwe: &Jwe) -> Result<Secret, BrokerError> {
        self.keys.open(jwe).map_err(|cause| BrokerError::Open {
            resource: uri.clone(),
            cause,
        })
    }
}

impl Identity {
    fn no_report(&self, cause: &dyn std::fmt::Display) -> AttestError {
        AttestError::Report {
            tee: self.attester.kind(),
            cause: cause.to_string(),
        }
    }

    /// The log, where no register answers for it and the broker takes it: the report answers for the text.
    fn additional(&self, takes: Ours) -> Result<String, AttestError> {
        let log = self.log.as_ref().filter(|log| !log.has_registers());
        let Some(log) = log.filter(|_| takes.event_log) else {
            return Ok(String::new());
        };
        let bytes = log.held(|entries| [&eventlog::header()[..], entries, &LOG_END].concat());
        let bytes = bytes.map_err(|error| self.no_report(&error))?;
        let text = BASE64_STANDARD.encode(bytes);
        Ok(serde_json::json!({ EVENT_LOG: text }).to_string())
    }
}

/// Everything that a broker holds against evidence is a rejection; its policy may speak here too.
fn rejected(failure: Failure) -> BrokerError {
    match failure {
        Failure::Refusal(refusal)
            if matches!(refusal.status, 401 | 403)
                && refusal.kind() != Some(ErrorKind::ProtocolVersion) =>
        {
            BrokerError::Rejected {
                detail: refusal.detail(),
                ticket: refusal.ticket(),
            }
        }
        other => other.into_error(),
    }
}

fn session_cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let prefix = format!("{SESSION_COOKIE}=");
    let cookie = headers
        .get_all(SET_COOKIE)
        .into_iter()
        .filter_map(|value| value.to_str().ok()?.split(';').next())
        .find(|pair| pair.trim().starts_with(&prefix))?
        .trim();
    if cookie.len() > COOKIE_CHARS || cookie.len() == prefix.len() {
        return None;
    }
    let mut cookie = HeaderValue::from_str(cookie).ok()?;
    cookie.set_sensitive(true);
    Some(cookie)
}

fn json(step: Step, message: &impl Serialize) -> Result<Vec<u8>, BrokerError> {
    serde_json::to_vec(message).map_err(|error| BrokerError::Protocol {
        step,
        cause: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sessions_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        assert!(session_cookie(&headers).is_none());
        headers.append(SET_COOKIE, HeaderValue::from_static("other=1"));
        headers.append(
            SET_COOKIE,
            HeaderValue::from_static("kbs-session-id=sess1; Path=/kbs; HttpOnly"),
        );
        assert_eq!(session_cookie(&headers).unwrap(), "kbs-session-id=sess1");
        let mut headers = HeaderMap::new();
        headers.append(SET_COOKIE, HeaderValue::from_static("kbs-session-id="));
        assert!(session_cookie(&headers).is_none());
    }
}
