//! `[reference]`: whose reference values are taken.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[reference]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reference {
    /// Public keys in PEM, P-256, P-384 or Ed25519, whose signed CoRIMs are taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<PathBuf>,
    /// Take a CoRIM that nobody signed, from any administrator who may register reference values.
    /// Without it, an administrator says so with each one.
    pub accept_unsigned_corim: bool,
}
