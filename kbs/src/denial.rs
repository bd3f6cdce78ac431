//! A refusal as the owner reads it: what was asked, and each claim with what was expected, what was
//! found, and the fix. The guest, and the host that carries its traffic, get the ticket only.

use policies::release::Reason;
use rand::Rng;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Letters and digits that nobody takes for one another.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const TICKET_CHARS: usize = 12;

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// What the guest was given.
    pub ticket: String,
    /// When, in RFC 3339.
    pub time: String,
    /// `attest` or `resource`.
    pub step: String,
    /// What was asked for: a kind of TEE, or a resource.
    pub subject: String,
    /// Why not.
    pub reasons: Vec<Reason>,
}

impl Denial {
    pub(crate) fn new(step: &str, subject: impl Into<String>, reasons: Vec<Reason>) -> Self {
        let mut random = [0; TICKET_CHARS];
        rand::rng().fill_bytes(&mut random);
        let ticket = random
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
            .collect();
        let now = OffsetDateTime::now_utc();
        Self {
            ticket,
            time: now.format(&Rfc3339).unwrap_or_default(),
            step: step.to_owned(),
            subject: subject.into(),
            reasons,
        }
    }
}
