//! Evidence and what it must bind become claims, or a failure that names what was wrong.
//!
//! Nothing here opens a socket, reads a file or asks for the time. The kinds of evidence are a closed
//! list, and each is accepted only if the broker's configuration names it: `sample` proves nothing
//! and is for development, and a kind without a verifier is refused, never passed over.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod device;
pub mod event_log;
mod failure;
pub mod sample;
pub mod snp;
pub mod tdx;

use std::collections::BTreeSet;

use evidence::{Tee, init_data::InitDataDigest};
use serde_json::Value;

pub use failure::{Explanation, Failure};

/// Bytes of the digest that the evidence binds; attesters pad it to their own field.
pub const REPORT_DATA_BYTES: usize = 48;

/// Reads the name of a kind, where the broker's configuration lists it.
///
/// # Errors
/// When the name is unknown, or is not listed.
pub fn accept(name: &str, accepted: &BTreeSet<Tee>) -> Result<Tee, Failure> {
    let kind: Tee = name.parse().map_err(|_| Failure::UnknownKind {
        name: failure::shorten(name),
    })?;
    if !accepted.contains(&kind) {
        return Err(Failure::NotAccepted { kind });
    }
    Ok(kind)
}

/// What the evidence must bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    /// The digest over the challenge and the guest's key.
    pub report_data: [u8; REPORT_DATA_BYTES],
    /// The digest of the init-data that the guest sent in the clear, where it sent one.
    pub init_data: Option<InitDataDigest>,
}

/// What verified evidence says.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Which kind it is.
    pub kind: Tee,
    /// What only this kind has; it goes into the token below the kind's name.
    pub evidence: Value,
    /// Hex of the digest over the challenge and the key.
    pub report_data: String,
    /// Hex of the init-data's digest that the launch bound, where it bound one. When this is absent,
    /// whatever init-data the guest sent is its own word only.
    pub init_data: Option<String>,
}
