//! Whom to leave alone, and for how long: services that limit their rate, and documents that could not
//! be had a moment ago.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rand::RngExt;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::{CollateralError, document::Document, shelf::Shelf};

/// Failures that are remembered at once.
const FAILURES: usize = 4096;
/// The longest that a service may ask to be left alone.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// How long a service that says no time is left alone at first, and at last.
const REST: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(900));
/// How long after a first failure, and at last, a document is not asked for again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(600));
/// The same for answers that another attempt will not change soon.
const LONG_PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(900));

/// What was refused lately.
pub(super) struct Holds {
    hosts: Mutex<HashMap<String, Rest>>,
    documents: Shelf<Document, Failed>,
}

struct Rest {
    until: Instant,
    times: u32,
}

#[derive(Clone)]
struct Failed {
    until: Instant,
    times: u32,
    error: CollateralError,
}

impl Holds {
    pub(super) fn new() -> Self {
        Self {
            hosts: Mutex::new(HashMap::new()),
            documents: Shelf::new(FAILURES),
        }
    }

    /// Whether the host may be asked for the document now.
    pub(super) fn check(
        &self,
        document: &Document,
        host: &str,
        now: Instant,
    ) -> Result<(), CollateralError> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rest) = hosts.get(host).filter(|rest| rest.until > now) {
            return Err(CollateralError::RateLimited {
                document: document.clone(),
                host: host.to_owned(),
                until: SystemTime::now() + (rest.until - now),
            });
        }
        drop(hosts);
        match self.documents.get(document) {
            Some(failed) if failed.until > now => Err(failed.error),
            _ => Ok(()),
        }
    }

    /// The host said that it is asked too much.
    pub(super) fn rest(&self, host: &str, asked: Option<Duration>, now: Instant) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let times = hosts.get(host).map_or(0, |rest| rest.times);
        let pause = asked.map_or_else(|| back_off(REST, times), |asked| asked.min(LONGEST_REST));
        let until = now + pause;
        let times = times.saturating_add(1);
        hosts.insert(host.to_owned(), Rest { until, times });
        tracing::warn!(host, seconds = pause.as_secs(), "a service limits its rate");
    }

    /// The document could not be had, or what came was not usable.
    pub(super) fn failed(&self, error: CollateralError, document: &Document, now: Instant) {
        let times = self
            .documents
            .get(document)
            .map_or(0, |failed| failed.times);
        let pause = match error {
            CollateralError::Unknown { .. } | CollateralError::Refused { .. } => LONG_PAUSE,
            _ => PAUSE,
        };
        let failed = Failed {
            until: now + back_off(pause, times),
            times: times.saturating_add(1),
            error,
        };
        self.documents.insert(document.clone(), failed);
    }

    /// The host gave an answer.
    pub(super) fn answered(&self, host: &str) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.remove(host);
    }

    /// The document was taken.
    pub(super) fn taken(&self, document: &Document) {
        self.documents.remove(document);
    }
}

/// Doubles with each time, up to the second; a random part keeps brokers from asking in step.
pub(super) fn back_off((first, last): (Duration, Duration), times: u32) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    let whole = first.saturating_mul(factor).min(last);
    whole.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(text.trim(), &Rfc2822).ok()?;
    let wait = date - OffsetDateTime::from(now);
    Some(wait.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        "snp.crl.Milan".parse().unwrap()
    }

    #[test]
    fn a_pause_grows_up_to_its_most() {
        let (first, last) = (Duration::from_secs(2), Duration::from_secs(60));
        for times in [0, 1, 5, 31, 32, u32::MAX] {
            let pause = back_off((first, last), times);
            let whole = (2_u64 << times.min(32)).min(60);
            assert!(pause >= Duration::from_secs(whole) / 2, "{times}");
            assert!(pause <= Duration::from_secs(whole), "{times}");
        }
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        let date = "Sun, 06 Nov 1994 08:49:47 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(10)));
        let past = "Sun, 06 Nov 1994 08:49:27 GMT";
        assert_eq!(retry_after(past, now), Some(Duration::ZERO));
        assert_eq!(retry_after("later", now), None);
    }

    #[test]
    fn a_host_is_left_alone_for_as_long_as_it_asked() {
        let (holds, now) = (Holds::new(), Instant::now());
        holds.rest("kds", Some(Duration::from_secs(10)), now);
        let check = |host, after| holds.check(&document(), host, now + after);
        let refused = check("kds", Duration::from_secs(9)).unwrap_err();
        assert!(matches!(refused, CollateralError::RateLimited { .. }));
        assert!(check("pcs", Duration::ZERO).is_ok());
        assert!(check("kds", Duration::from_secs(10)).is_ok());
        holds.rest("kds", Some(Duration::MAX), now);
        assert!(check("kds", LONGEST_REST / 2).is_err());
        assert!(check("kds", LONGEST_REST).is_ok());
        holds.rest("kds", Some(LONGEST_REST), now);
        holds.answered("kds");
        assert!(check("kds", Duration::ZERO).is_ok());
    }

    #[test]
    fn a_failure_is_remembered_for_a_while() {
        let (holds, now) = (Holds::new(), Instant::now());
        let busy = CollateralError::Busy {
            document: document(),
        };
        holds.failed(busy.clone(), &document(), now);
        let check = |after| holds.check(&document(), "kds", now + after);
        assert_eq!(check(PAUSE.0 / 4), Err(busy));
        assert!(check(PAUSE.0).is_ok());
        holds.failed(check(Duration::ZERO).unwrap_err(), &document(), now);
        holds.taken(&document());
        assert!(check(Duration::ZERO).is_ok());
    }
}
