//! The key that verifies sealed secrets: a JWK (RFC 7517) of P-256. Members that are not asked for are passed over, as
//! the RFC wants it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::Deserialize;

use super::{SealedError, jws::ES256, shown};

/// Bytes of a JWK as JSON.
const JWK_BYTES: usize = 16 * 1024;
/// Bytes of a coordinate.
pub(super) const COORDINATE_BYTES: usize = 32;
/// What an uncompressed point begins with (SEC 1 section 2.3.3).
pub(super) const UNCOMPRESSED: u8 = 4;

/// A public key.
#[derive(Debug, Clone)]
pub struct VerifyingKey {
    point: Vec<u8>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
}

impl VerifyingKey {
    /// Reads a JWK. Whether its point is on the curve shows when it verifies.
    ///
    /// # Errors
    /// Names `kid` and what is wrong.
    pub fn from_jwk(kid: &str, json: &[u8]) -> Result<Self, SealedError> {
        let bad = |cause| SealedError::Key {
            kid: shown(kid),
            cause,
        };
        if json.len() > JWK_BYTES {
            return Err(bad("it is too long"));
        }
        let jwk: Jwk =
            serde_json::from_slice(json).map_err(|_| bad("not JSON with kty, crv, x and y"))?;
        if (jwk.kty.as_str(), jwk.crv.as_str()) != ("EC", "P-256") {
            return Err(bad("`kty` is not `EC`, or `crv` is not `P-256`"));
        }
        if jwk.alg.is_some_and(|alg| alg != ES256) || jwk.purpose.is_some_and(|use_| use_ != "sig")
        {
            return Err(bad("it is for something else than ES256 signatures"));
        }
        let mut point = vec![UNCOMPRESSED];
        for coordinate in [&jwk.x, &jwk.y] {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(coordinate);
            let bytes = bytes.ok().filter(|bytes| bytes.len() == COORDINATE_BYTES);
            point.extend(bytes.ok_or_else(|| bad("a coordinate is not 32 bytes in base64url"))?);
        }
        Ok(Self { point })
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point)
            .verify(message, signature)
            .is_ok()
    }
}
