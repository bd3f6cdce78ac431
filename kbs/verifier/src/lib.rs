//! Evidence and what it must bind become claims, or a failure that names what was wrong.
//!
//! Nothing here opens a socket, reads a file or asks for the time. The kinds of evidence are a closed
//! list, and each is accepted only if the broker's configuration names it: `sample` proves nothing
//! and is for development, and a kind without a verifier is refused, never passed over.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod failure;
mod sample;

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use failure::{Explanation, Failure};

/// Bytes of the digest that the evidence binds; attesters pad it to their own field.
pub const REPORT_DATA_BYTES: usize = 48;

/// The kinds of evidence that have a verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// CoCo's unsigned sample: anybody can make it.
    Sample,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 1] = [Self::Sample];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sample => "sample",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Self, Failure> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| Failure::UnknownKind {
                name: failure::shorten(name),
            })
    }
}

/// The kind of this name, if the configuration accepts it.
///
/// # Errors
/// When no verifier has this name, or the configuration does not list it.
pub fn accept(name: &str, accepted: &BTreeSet<Kind>) -> Result<Kind, Failure> {
    let kind: Kind = name.parse()?;
    if accepted.contains(&kind) {
        return Ok(kind);
    }
    Err(Failure::NotAccepted { kind })
}

/// What the evidence must bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    /// The digest over the challenge and the guest's key.
    pub report_data: [u8; REPORT_DATA_BYTES],
    /// The digest of the init-data that the guest sent in the clear, where it sent one.
    pub init_data: Option<Vec<u8>>,
}

/// What verified evidence says.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Which kind it is.
    pub kind: Kind,
    /// What only this kind has; it goes into the token below the kind's name.
    pub evidence: Value,
    /// Hex of the digest over the challenge and the key.
    pub report_data: String,
    /// Hex of the init-data's digest that the launch bound, where it bound one. When this is absent,
    /// whatever init-data the guest sent is its own word only.
    pub init_data: Option<String>,
}

/// Verifies evidence of a kind that was accepted.
///
/// # Errors
/// Names the binding or the member that is wrong.
pub fn verify(kind: Kind, evidence: &Value, bindings: &Bindings) -> Result<Claims, Failure> {
    match kind {
        Kind::Sample => sample::verify(evidence, bindings),
    }
}
