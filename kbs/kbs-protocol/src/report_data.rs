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
        tee_pubkey: tee_pubkey.into(),
    })
}

/// What each additional device's evidence must bind.
#[must_use]
pub fn device_report_data(nonce: &str, tee_pubkey: &TeePubKey) -> [u8; REPORT_DATA_BYTES] {
    digest(&Bound {
        additional_evidence: None,
        nonce,
        tee_pubkey: tee_pubkey.into(),
    })
}

/// Members in the order of RFC 8785, so that what serde writes is the canonical form already: all of
/// them are texts, in which the two escape the same.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Bound<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_evidence: Option<&'a str>,
    nonce: &'a str,
    tee_pubkey: Key<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Key<'a> {
    Ec {
        alg: &'a str,
        crv: &'a str,
        kty: &'a str,
        x: &'a str,
        y: &'a str,
    },
    Rsa {
        alg: &'a str,
        e: &'a str,
        kty: &'a str,
        n: &'a str,
    },
}

impl<'a> From<&'a TeePubKey> for Key<'a> {
    fn from(key: &'a TeePubKey) -> Self {
        match key {
            TeePubKey::Ec { crv, alg, x, y } => Self::Ec {
                alg,
                crv,
                kty: "EC",
                x,
                y,
            },
            TeePubKey::Rsa { alg, n, e } => Self::Rsa {
                alg,
                e,
                kty: "RSA",
                n,
            },
        }
    }
}

fn digest(bound: &Bound<'_>) -> [u8; REPORT_DATA_BYTES] {
    #[expect(clippy::expect_used, reason = "texts in a map always serialize")]
    let text = serde_json::to_vec(bound).expect("texts serialize");
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

    #[test]
    fn what_is_hashed_is_the_canonical_form_whatever_the_texts_are() {
        let odd: String = (0..0x250_u32)
            .chain([0x2028, 0xe000, 0xfb33, 0x1f600])
            .filter_map(char::from_u32)
            .collect();
        let text = || odd.clone();
        let keys = [
            TeePubKey::Ec {
                crv: text(),
                alg: text(),
                x: text(),
                y: text(),
            },
            TeePubKey::Rsa {
                alg: text(),
                n: text(),
                e: text(),
            },
        ];
        for key in &keys {
            for additional in [None, Some(odd.as_str())] {
                let mut plain = json!({"nonce": odd, "tee-pubkey": key});
                if let Some(additional) = additional {
                    plain["additional-evidence"] = additional.into();
                }
                let bound = Bound {
                    additional_evidence: additional,
                    nonce: &odd,
                    tee_pubkey: key.into(),
                };
                assert_eq!(
                    serde_json::to_vec(&bound).unwrap(),
                    serde_json_canonicalizer::to_vec(&plain).unwrap()
                );
            }
        }
    }
}
