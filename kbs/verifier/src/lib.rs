//! Evidence and what it must bind become claims, or a failure that names what was wrong.
//!
//! Nothing here opens a socket, reads a file or asks for the time. The kinds of evidence are a closed
//! list, and each is accepted only if the broker's configuration names it: `sample` proves nothing
//! and is for development, and a kind without a verifier is refused, never passed over.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod failure;
mod sample;
pub mod snp;
pub mod tdx;

use std::collections::BTreeSet;

use evidence::{Tee, init_data::InitDataDigest};
use serde_json::Value;

pub use failure::{Explanation, Failure};

/// Bytes of the digest that the evidence binds; attesters pad it to their own field.
pub const REPORT_DATA_BYTES: usize = 48;

/// The kinds that have a verifier.
pub const VERIFIED: [Tee; 1] = [Tee::Sample];

/// The kind of this name, if the configuration accepts it and a verifier is there for it.
///
/// # Errors
/// When the name is unknown, has no verifier, or is not listed by the configuration.
pub fn accept(name: &str, accepted: &BTreeSet<Tee>) -> Result<Tee, Failure> {
    let unknown = || Failure::UnknownKind {
        name: failure::shorten(name),
    };
    let kind: Tee = name.parse().map_err(|_| unknown())?;
    if !VERIFIED.contains(&kind) {
        return Err(unknown());
    }
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

/// Verifies evidence of a kind that was accepted.
///
/// # Errors
/// Names the binding or the member that is wrong, or the kind where it has no verifier.
pub fn verify(kind: Tee, evidence: &Value, bindings: &Bindings) -> Result<Claims, Failure> {
    match kind {
        Tee::Sample => sample::verify(evidence, bindings),
        Tee::Snp | Tee::Tdx | Tee::SimSnp | Tee::SimTdx => Err(Failure::UnknownKind {
            name: kind.to_string(),
        }),
    }
}
