//! The rule that binds a challenge and a key to evidence.
//!
//! SHA-384 over the RFC 8785 form of `{"additional-evidence", "nonce", "tee-pubkey"}`; a device's
//! evidence leaves the first member out. The attester pads the digest to its own field.

use serde::Serialize;
use sha2::{Digest, Sha384};

use crate::TeePubKey;

/// The hash, by its name in `extra-params`.
pub const HASH_ALGORITHM: &str = "sha384";

/// Bytes of the digest, before the attester pads it.
pub const REPORT_DATA_BYTES: usize = 48;

/// What the primary evidence must bind.
#[must_use]
pub fn report_data(
    nonce: &str,
    tee_pubkey: &TeePubKey,
    additional_evidence: &str,
) -> [u8; REPORT_DATA_BYTES] {
    digest(&Bound {
        additional_evidence: Some(additional_evidence),
        nonce,
        tee_pubkey,
    })
}

/// What each additional device's evidence must bind.
#[must_use]
pub fn device_report_data(nonce: &str, tee_pubkey: &TeePubKey) -> [u8; REPORT_DATA_BYTES] {
    digest(&Bound {
        additional_evidence: None,
        nonce,
        tee_pubkey,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Bound<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_evidence: Option<&'a str>,
    nonce: &'a str,
    tee_pubkey: &'a TeePubKey,
}

fn digest(bound: &Bound<'_>) -> [u8; REPORT_DATA_BYTES] {
    #[expect(
        clippy::expect_used,
        reason = "three texts and a flat map always have a canonical form"
    )]
    let text = serde_json_canonicalizer::to_vec(bound).expect("strings serialize");
    Sha384::digest(text).into()
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use serde_json::json;

    use super::*;

    /// Recorded from a guest-components client; its digest was recomputed apart from it.
    #[test]
    fn the_recorded_handshake_has_the_recorded_digest() {
        let key: TeePubKey = serde_json::from_value(json!({
            "kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW",
            "x": "o59IT4UJgK0Xwi8iGcwLpTWY5BkeBwTtFJ7UKjYCX90",
            "y": "K1YI3QC_qQ156PQD9teGndR6R05kgu2nX35GwT0EkWU",
            "kid": "not hashed",
        }))
        .unwrap();
        let nonce = "Tk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk4=";
        assert_eq!(
            BASE64_STANDARD.encode(report_data(nonce, &key, "")),
            "cBa6Bc4EwtzMb6kl4irOdlfGkqc7LHfrj1O8vM3AWtYZQ6XjmmELNsshx2uTbAMD"
        );
        assert_ne!(
            report_data(nonce, &key, ""),
            device_report_data(nonce, &key)
        );
    }
}
