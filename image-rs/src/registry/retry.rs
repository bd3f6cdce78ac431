//! When a request is tried again: how often, after how long, and what a busy registry may ask for.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, HeaderName, RETRY_AFTER};
use rand::RngExt;

/// How often and how soon a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts at the last place that can be asked, the first included; as many in a row may bring a blob no further.
    pub attempts: u32,
    /// The same at a place behind which another one waits.
    pub mirror_attempts: u32,
    /// What the second attempt waits; each later one waits twice as long. Half of each pause is left to chance, so
    /// that many guests do not come back together.
    pub first_pause: Duration,
    /// The longest pause of our own choice.
    pub pause_max: Duration,
    /// The longest pause that a registry can ask for by `Retry-After`.
    pub retry_after_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            mirror_attempts: 2,
            first_pause: Duration::from_millis(200),
            pause_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(60),
        }
    }
}

impl Retry {
    /// The pause after `attempt`, counted from 1.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let whole = self.first_pause.saturating_mul(doubled).min(self.pause_max);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// What the answer asks for, in seconds or until a date, cut to what it may ask for.
    pub(super) fn asked(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds).min(self.retry_after_max));
        }
        let until = httpdate::parse_http_date(text).ok()?;
        // The registry's own clock, because a guest's may be wrong.
        let now = date(headers, &DATE).unwrap_or_else(SystemTime::now);
        let wait = until.duration_since(now).unwrap_or(Duration::ZERO);
        Some(wait.min(self.retry_after_max))
    }
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn pauses_double_to_their_cap_and_keep_half() {
        let retry = Retry::default();
        for (attempt, whole) in [(1, 200), (2, 400), (3, 800), (7, 10_000), (60, 10_000)] {
            for _ in 0..20 {
                let pause = retry.pause(attempt);
                let whole = Duration::from_millis(whole);
                assert!(pause >= whole / 2 && pause <= whole, "{attempt}: {pause:?}");
            }
        }
    }

    #[test]
    fn a_registry_may_ask_for_seconds_or_a_date_and_not_for_ever() {
        let asked = |values: &[(HeaderName, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in values {
                headers.insert(name, HeaderValue::from_static(value));
            }
            Retry::default().asked(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(asked(&[(RETRY_AFTER, "7")]), Some(7));
        assert_eq!(asked(&[(RETRY_AFTER, "86400")]), Some(60));
        let date = (DATE, "Wed, 21 Oct 2015 07:27:30 GMT");
        let until = (RETRY_AFTER, "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(asked(&[date.clone(), until]), Some(30));
        let far = (RETRY_AFTER, "Wed, 21 Oct 2037 07:28:00 GMT");
        assert_eq!(asked(std::slice::from_ref(&far)), Some(60));
        let past = (RETRY_AFTER, "Wed, 21 Oct 2009 07:28:00 GMT");
        assert_eq!(asked(&[date, past]), Some(0));
        assert_eq!(asked(&[(RETRY_AFTER, "soon")]), None);
        assert_eq!(asked(&[]), None);
    }
}
