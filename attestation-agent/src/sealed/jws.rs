//! The compact JWS around a payload (RFC 7515): parsed, then verified, and only then read.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::{PREFIX, Payload, SEALED_BYTES, SealedError, VerifyingKey, shown};

/// The only algorithm (RFC 7518 section 3.4).
pub(super) const ES256: &str = "ES256";
/// Characters of a key's name.
const KID_CHARS: usize = 1024;

/// Three parts that nobody has verified.
pub struct Signed<'a> {
    /// What is signed: header, dot, payload.
    input: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
}

impl std::fmt::Debug for Signed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signed").finish_non_exhaustive()
    }
}

impl<'a> Signed<'a> {
    /// Takes a sealed secret apart. White space at its ends, which files have, is no part of it.
    ///
    /// # Errors
    /// It has another form, or is too large.
    pub fn parse(text: &'a str) -> Result<Self, SealedError> {
        if text.len() > SEALED_BYTES {
            return Err(SealedError::TooLarge);
        }
        let text = text.trim();
        let rest = text.strip_prefix(PREFIX).ok_or(SealedError::Form)?;
        let (input, signature) = rest.rsplit_once('.').ok_or(SealedError::Form)?;
        let (header, payload) = input.split_once('.').ok_or(SealedError::Form)?;
        if payload.contains('.') || payload.is_empty() {
            return Err(SealedError::Form);
        }
        Ok(Self {
            input,
            header,
            payload,
            signature,
        })
    }

    /// The name of the key that is said to have signed: a `kbs:///` URI, or a name of init-data.
    ///
    /// # Errors
    /// The header is malformed, or names another algorithm than ES256.
    pub fn kid(&self) -> Result<String, SealedError> {
        let json = decode("header", self.header)?;
        let header: Header = serde_json::from_slice(&json).map_err(|_| SealedError::Part {
            part: "header",
            cause: "it is not JSON with `alg` and `kid` alone",
        })?;
        if header.alg != ES256 {
            return Err(SealedError::Algorithm(shown(&header.alg)));
        }
        if header.kid.is_empty()
            || header.kid.len() > KID_CHARS
            || header.kid.contains(char::is_control)
        {
            return Err(SealedError::Part {
                part: "header",
                cause: "`kid` is no name of a key",
            });
        }
        Ok(header.kid)
    }

    /// The payload, when the key signed it.
    ///
    /// # Errors
    /// The signature is not this key's, or what was signed is no payload.
    pub fn verified(self, kid: &str, key: &VerifyingKey) -> Result<Payload, SealedError> {
        let signature = decode("signature", self.signature)?;
        if !key.verifies(self.input.as_bytes(), &signature) {
            return Err(SealedError::Signature { kid: shown(kid) });
        }
        self.payload(true)
    }

    /// The payload, whoever wrote it: for those whose measured init-data says so.
    ///
    /// # Errors
    /// It is no payload.
    pub fn unverified(self) -> Result<Payload, SealedError> {
        self.payload(false)
    }

    fn payload(&self, is_verified: bool) -> Result<Payload, SealedError> {
        Payload::from_json(&decode("payload", self.payload)?, is_verified)
    }
}

fn decode(part: &'static str, text: &str) -> Result<Vec<u8>, SealedError> {
    let cause = "it is not base64url without padding";
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| SealedError::Part { part, cause })
}
