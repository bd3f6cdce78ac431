//! A point in time as people name it: a time of RFC 3339, or how long ago.

use anyhow::{Result, bail};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// The units, by what they end with.
const UNITS: [(char, i64); 4] = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];

/// Reads a time, or a duration such as `90s`, `10m`, `1h30m`, before `now`.
pub(crate) fn parse(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let ago = seconds(text).and_then(|seconds| now.checked_sub(Duration::seconds(seconds)));
    match ago {
        Some(time) => Ok(time),
        None => bail!(
            "{text:?} is not a time: write 2026-11-26T12:00:00Z, or how long ago, as 90s or 1h30m"
        ),
    }
}

fn seconds(text: &str) -> Option<i64> {
    let mut total: i64 = 0;
    let mut number = String::new();
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            number.push(letter);
            continue;
        }
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == letter)?;
        let count = number.parse::<i64>().ok()?;
        total = total.checked_add(count.checked_mul(*unit)?)?;
        number.clear();
    }
    (!text.is_empty() && number.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_ago() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(2);
        let at = |text| (now - parse(text, now).unwrap()).whole_seconds();
        assert_eq!(at("90s"), 90);
        assert_eq!(at("1h30m"), 5400);
        assert_eq!(at("1970-01-01T00:00:00Z"), 172_800);
        for bad in ["", "s", "10", "1h30", "-1s", "9223372036854775807d", "1y"] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
