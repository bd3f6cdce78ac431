//! The broker's token, and how long it is of use.
//!
//! The guest does not verify it: the broker does, each time. Only its times are read, to renew it
//! before the broker would refuse it. A token without readable times is kept until it is refused.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::HeaderValue;
use kbs_protocol::limit::TOKEN_BYTES;
use serde::Deserialize;
use tokio::time::Instant;

/// A token is renewed this much before its end, so that a request under way still has a valid one.
const MARGIN: Duration = Duration::from_secs(30);

/// RFC 6750 section 2.1.
const SCHEME: &str = "Bearer ";

/// A token, as the header that carries it.
pub(crate) struct Token {
    bearer: HeaderValue,
    renew_at: Option<Instant>,
    renew_early: Option<Instant>,
}

#[derive(Deserialize)]
struct Times {
    exp: Option<f64>,
    iat: Option<f64>,
    nbf: Option<f64>,
}

impl Token {
    /// A token that was received just now; nothing where it cannot be carried.
    pub(crate) fn received(text: &str, now: Instant) -> Option<Self> {
        if text.is_empty() || text.len() > TOKEN_BYTES {
            return None;
        }
        let mut bearer = HeaderValue::try_from(format!("{SCHEME}{text}")).ok()?;
        bearer.set_sensitive(true);
        let life = lifetime(text);
        let before_end =
            |margins: u32| life.map(|life| now + life.saturating_sub(margin(life) * margins));
        Some(Self {
            bearer,
            renew_at: before_end(1),
            renew_early: before_end(2),
        })
    }

    pub(crate) fn bearer(&self) -> HeaderValue {
        self.bearer.clone()
    }

    /// The token itself.
    pub(crate) fn text(&self) -> &str {
        let header = self.bearer.to_str().unwrap_or_default();
        header.strip_prefix(SCHEME).unwrap_or_default()
    }

    /// When it is renewed where nobody waits for it: as long before [`Self::is_fresh`] ends as that is before its end.
    pub(crate) fn renew_early(&self) -> Option<Instant> {
        self.renew_early
    }

    pub(crate) fn is_fresh(&self, now: Instant) -> bool {
        self.renew_at.is_none_or(|at| now < at)
    }
}

fn margin(life: Duration) -> Duration {
    MARGIN.min(life / 5)
}

/// The issuer's own clock on both sides of the difference: a guest's clock comes from its host.
fn lifetime(text: &str) -> Option<Duration> {
    /// Beyond this a number is no time that somebody meant.
    const LONGEST_SECONDS: f64 = 366.0 * 24.0 * 3600.0;
    let payload = text.split('.').nth(1)?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
    let times: Times = serde_json::from_slice(&payload).ok()?;
    let seconds = times.exp? - times.iat.or(times.nbf)?;
    Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST_SECONDS)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> Token {
        let text = format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(payload));
        Token::received(&text, Instant::now()).unwrap()
    }

    #[test]
    fn a_token_is_renewed_before_its_end() {
        let now = Instant::now();
        let token = token(r#"{"iat":1000,"exp":1300,"x":[]}"#);
        assert!(token.is_fresh(now + Duration::from_secs(269)));
        assert!(!token.is_fresh(now + Duration::from_secs(271)));
    }

    #[test]
    fn a_short_token_is_of_use_for_most_of_its_life() {
        let now = Instant::now();
        let token = token(r#"{"nbf":1000,"exp":1010}"#);
        assert!(token.is_fresh(now + Duration::from_secs(7)));
        assert!(!token.is_fresh(now + Duration::from_secs(9)));
    }

    #[test]
    fn hostile_times_do_no_harm() {
        let far = Instant::now() + Duration::from_secs(1_000_000_000);
        for payload in ["", "[]", r#"{"exp":"x"}"#, r#"{"exp":5}"#] {
            assert!(token(payload).is_fresh(far), "{payload}");
        }
        assert!(!token(r#"{"iat":9,"exp":1}"#).is_fresh(Instant::now()));
        assert!(!token(r#"{"iat":0,"exp":1e308}"#).is_fresh(far));
    }

    #[test]
    fn what_no_header_can_carry_is_no_token() {
        assert!(Token::received("", Instant::now()).is_none());
        assert!(Token::received("a\nb", Instant::now()).is_none());
        assert!(Token::received(&"a".repeat(TOKEN_BYTES + 1), Instant::now()).is_none());
    }
}
