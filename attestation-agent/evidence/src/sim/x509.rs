//! What certificates of both simulated vendors share (RFC 5280).

use time::OffsetDateTime;
use yasna::{
    DERWriter,
    models::{ObjectIdentifier, UTCTime},
};

pub(super) const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
const ORGANIZATION: &[u64] = &[2, 5, 4, 10];

/// From when until when a certificate, a list or a document holds, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from: i64,
    /// The last second.
    pub until: i64,
}

pub(super) fn name(w: DERWriter<'_>, common: &str) {
    w.write_sequence(|w| {
        for (id, value) in [
            (ORGANIZATION, "Cloister development"),
            (COMMON_NAME, common),
        ] {
            w.next().write_set(|w| {
                w.next().write_sequence(|w| {
                    oid(w.next(), id);
                    w.next().write_utf8_string(value);
                });
            });
        }
    });
}

pub(super) fn oid(w: DERWriter<'_>, id: &[u64]) {
    w.write_oid(&ObjectIdentifier::from_slice(id));
}

/// A date as certificates write it, between 1950 and 2049.
pub(super) fn utc(seconds: i64) -> Option<UTCTime> {
    let date = OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .filter(|date| (1950..2050).contains(&date.year()))?;
    Some(UTCTime::from_datetime(date))
}
