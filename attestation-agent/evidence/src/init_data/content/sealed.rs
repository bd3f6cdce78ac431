//! Sealed secrets in `cdh.toml`: CoCo's `skip_sealed_secret_verification`, and Cloister's own `[sealed_secret]`.
//!
//! ```text
//! [sealed_secret.verification_keys]
//! "kbs:///default/signing/key" = '{"kty":"EC","crv":"P-256","x":"…","y":"…"}'
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{CDH_TOML, ContentError};

/// Verification keys of one pod.
const VERIFICATION_KEYS: usize = 64;

/// Whose sealed secrets are opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SealedSecrets {
    /// Whether a signature is passed over, which lets a host choose which of the owner's secrets goes where.
    pub skip_verification: bool,
    /// The keys that may sign, as JWK by their `kid`. Where there are none, a `kid` that is a `kbs:///` URI is
    /// fetched from the broker; where there are some, no other signs.
    pub verification_keys: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    verification_keys: BTreeMap<String, String>,
}

pub(super) fn check(skip: bool, section: Section) -> Result<SealedSecrets, ContentError> {
    let keys = section.verification_keys;
    if keys.len() > VERIFICATION_KEYS {
        return Err(ContentError::TooMany {
            file: CDH_TOML,
            key: "sealed_secret.verification_keys",
            found: keys.len(),
            cap: VERIFICATION_KEYS,
        });
    }
    if skip && !keys.is_empty() {
        return Err(ContentError::Unsupported {
            file: CDH_TOML,
            key: "skip_sealed_secret_verification",
            fix: "verification keys are named too: keep one of the two",
        });
    }
    Ok(SealedSecrets {
        skip_verification: skip,
        verification_keys: keys,
    })
}
