//! The log of a guest whose TEE has no registers: it comes in the additional evidence, whose text the report's
//! data is a digest over.
//!
//! So it is what the measured guest said at the time of its report, as a quote's registers are. It has the
//! same form as a TD's, and becomes the same claims.

use base64::{Engine, prelude::BASE64_STANDARD};
use evidence::{
    Tee,
    eventlog::{EventClaims, EventKind, EventLog},
};
use serde_json::{Value, value::RawValue};

use crate::{Claims, Failure, failure::shorten};

/// Its name in the additional evidence.
pub const NAME: &str = "event-log";
/// Bytes of the log: what an agent records while a guest runs, and no firmware's.
const LOG_BYTES: usize = 64 * 1024;

/// Adds the log's events to what was verified of the report that answers for it: `uefi_event_logs`, as a TD
/// has them, and where the log came from.
///
/// # Errors
/// [`Failure::DeviceMalformed`]: it is no log, an event's digest is not of what it says, or the kind has
/// registers which answer for its log.
pub fn add(claims: &mut Claims, log: &RawValue) -> Result<(), Failure> {
    match claims.kind {
        Tee::Tdx | Tee::SimTdx => {
            return Err(wrong(
                "a TD's log is in its evidence, where registers answer for it",
            ));
        }
        Tee::Snp | Tee::SimSnp | Tee::Sample => {}
    }
    let text: &str = serde_json::from_str(log.get()).map_err(|_| wrong("it is no text"))?;
    if text.len() > LOG_BYTES.div_ceil(3) * 4 {
        return Err(wrong(&format!("more than {LOG_BYTES} bytes")));
    }
    let bytes = BASE64_STANDARD
        .decode(text)
        .map_err(|_| wrong("it is not base64"))?;
    let log = EventLog::parse(&bytes).map_err(|error| wrong(&error.to_string()))?;
    log.replay().map_err(|error| wrong(&error.to_string()))?;
    for (number, event) in log.events().iter().enumerate() {
        if event.kind != EventKind::EventTag || !event.digest_matches() {
            return Err(wrong(&format!(
                "the digest of event {number} is not of what it says"
            )));
        }
    }
    let events: Vec<_> = log.events().iter().map(EventClaims::from).collect();
    claims.evidence["uefi_event_logs"] = serde_json::json!(events);
    claims.evidence["event_log_bound_by"] = Value::from("report_data");
    Ok(())
}

fn wrong(detail: &str) -> Failure {
    Failure::DeviceMalformed {
        device: NAME,
        detail: shorten(detail),
    }
}

#[cfg(test)]
mod tests {
    use evidence::eventlog::{AaelEvent, LOG_END, entry, header};
    use serde_json::json;

    use super::*;

    fn claims(kind: Tee) -> Claims {
        Claims {
            kind,
            evidence: json!({"measurement": "00"}),
            report_data: String::new(),
            init_data: None,
        }
    }

    fn log(change: impl FnOnce(&mut Vec<u8>)) -> Box<RawValue> {
        let event = AaelEvent {
            domain: "github.com/confidential-containers",
            operation: "PullImage",
            content: r#"{"image":"a/b", "digest":"sha256:00"}"#,
        };
        let mut bytes = entry(4, &event.data().unwrap()).0;
        change(&mut bytes);
        let log = [&header()[..], &bytes, &LOG_END].concat();
        RawValue::from_string(json!(BASE64_STANDARD.encode(log)).to_string()).unwrap()
    }

    #[test]
    fn its_events_become_the_claims_that_a_tds_become() {
        for kind in [Tee::Snp, Tee::SimSnp, Tee::Sample] {
            let mut claims = claims(kind);
            add(&mut claims, &log(|_| {})).unwrap();
            let said = &claims.evidence;
            let event = &said["uefi_event_logs"][0];
            assert_eq!(event["details"]["data"]["operation"], "PullImage");
            assert_eq!(event["details"]["data"]["content"]["digest"], "sha256:00");
            assert_eq!(event["digest_matches_event"], true);
            assert_eq!(said["event_log_bound_by"], "report_data");
            assert_eq!(said["measurement"], "00");
        }
    }

    #[test]
    fn a_log_that_says_something_else_than_its_digests_is_refused() {
        let refused = |kind, log: &RawValue| add(&mut claims(kind), log).unwrap_err().to_string();
        let changed = log(|bytes| *bytes.last_mut().unwrap() ^= 1);
        assert!(refused(Tee::Snp, &changed).contains("event 0"));
        let register = log(|bytes| bytes[0] = 9);
        assert!(refused(Tee::Snp, &register).contains("register 9"));
        let other = log(|bytes| bytes[4] = 5);
        assert!(refused(Tee::Sample, &other).contains("event 0"));
        assert!(refused(Tee::SimTdx, &log(|_| {})).contains("registers"));
        for text in ["1", "\"%\"", "\"AAAA\""] {
            let log = RawValue::from_string(text.to_owned()).unwrap();
            assert!(refused(Tee::Snp, &log).contains("event-log"), "{text}");
        }
        let long = json!("A".repeat(LOG_BYTES * 2)).to_string();
        let long = RawValue::from_string(long).unwrap();
        assert!(refused(Tee::Snp, &long).contains("more than"));
    }
}
