//! A refusal as the owner reads it: what was asked, and each claim with what was expected, what was
//! found, and the fix. The guest, and the host that carries its traffic, get the ticket only.

use policies::release::Reason;
use serde::{Deserialize, Serialize};

use crate::record::{Entry, Kind};

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

impl From<Entry> for Denial {
    fn from(entry: Entry) -> Self {
        let step = match entry.kind {
            Kind::Attest => "attest",
            Kind::Release | Kind::Resource | Kind::Policy | Kind::Reference => "resource",
        };
        Self {
            ticket: entry.ticket,
            time: entry.time,
            step: step.to_owned(),
            subject: entry.resource,
            reasons: entry.claims,
        }
    }
}
