//! COSE_Sign1 around a CoRIM. What was signed is given as it came, byte for byte, to whoever can check
//! it; the values come out only after that.
//!
//! Sources: RFC 9052, section 4.2 (COSE_Sign1) and 4.4 (what is signed); draft-ietf-rats-corim, section
//! 4.2 (headers); RFC 9597 (claims in a header).

use std::fmt;

use ciborium::Value;

use super::{Corim, CorimError, Window, decode, member, seconds, shape, validity};
use crate::reference::{Provenance, ReferenceValue};

/// Labels of headers, and of what is in them.
pub(super) const ALGORITHM: i128 = 1;
const CRITICAL: i128 = 2;
pub(super) const CONTENT_TYPE: i128 = 3;
pub(super) const KEY_ID: i128 = 4;
pub(super) const CORIM_META: i128 = 8;
const CLAIMS: i128 = 15;
const SIGNATURE_VALIDITY: i128 = 1;
const EXPIRATION: i128 = 4;
const NOT_BEFORE: i128 = 5;
/// The content type of a CoRIM.
pub(super) const RIM: &str = "application/rim+cbor";
/// Bytes of a key's id.
const KEY_ID_BYTES: usize = 256;

/// How a CoRIM is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA with SHA-256, on P-256 here.
    Es256,
    /// ECDSA with SHA-384, on P-384 here.
    Es384,
    /// EdDSA, on Ed25519 here.
    EdDsa,
}

impl Algorithm {
    const ALL: [Self; 3] = [Self::Es256, Self::Es384, Self::EdDsa];

    /// Its number among COSE's algorithms.
    pub(super) const fn number(self) -> i64 {
        match self {
            Self::Es256 => -7,
            Self::Es384 => -35,
            Self::EdDsa => -8,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        })
    }
}

/// A signed CoRIM whose signature nobody checked yet.
#[derive(Debug)]
pub struct SignedCorim {
    /// How it is signed.
    pub algorithm: Algorithm,
    /// How the signer names the key; empty where it is not named.
    pub key_id: Vec<u8>,
    /// The bytes that are signed.
    pub message: Vec<u8>,
    /// The signature, as the algorithm has it in COSE.
    pub signature: Vec<u8>,
    payload: Vec<u8>,
    window: Window,
}

impl SignedCorim {
    /// Reads what tag 18 is around.
    pub(super) fn read(value: Value) -> Result<Self, CorimError> {
        let parts: Option<[Value; 4]> = value.into_array().ok().and_then(|all| all.try_into().ok());
        let Some(
            [
                Value::Bytes(protected),
                unprotected,
                payload,
                Value::Bytes(signature),
            ],
        ) = parts
        else {
            return Err(shape(
                "COSE_Sign1",
                "protected headers, unprotected headers, a payload and a signature",
            ));
        };
        let Value::Bytes(payload) = payload else {
            return Err(shape("the payload", "in it: a detached one is not read"));
        };
        let headers = decode(&protected)?;
        check(&headers, &unprotected)?;
        let key_id = match header(&headers, KEY_ID)?.or(header(&unprotected, KEY_ID)?) {
            None => Vec::new(),
            Some(Value::Bytes(id)) if id.len() <= KEY_ID_BYTES => id.clone(),
            Some(_) => return Err(shape("kid", "at most 256 bytes")),
        };
        Ok(Self {
            algorithm: algorithm(&headers)?,
            key_id,
            window: window(&headers)?,
            message: message(protected, payload.clone())?,
            signature,
            payload,
        })
    }

    /// The reference values, from whom `verify` says has signed, for as long as manifest and signature
    /// hold.
    ///
    /// # Errors
    /// Those of `verify`, and a manifest of a wrong form.
    pub fn reference_values<E: From<CorimError>>(
        self,
        verify: impl FnOnce(&Self) -> Result<String, E>,
    ) -> Result<Vec<ReferenceValue>, E> {
        let signer = Provenance::Signer(verify(&self)?);
        let Corim::Unsigned(manifest) = Corim::read(&self.payload)? else {
            return Err(shape("the payload", "an unsigned CoRIM (tag 501)").into());
        };
        Ok(manifest.within(&signer, self.window)?)
    }
}

/// What is signed: RFC 9052, section 4.4, without external data.
pub(super) fn message(protected: Vec<u8>, payload: Vec<u8>) -> Result<Vec<u8>, CorimError> {
    let structure = Value::Array(vec![
        Value::Text("Signature1".to_owned()),
        Value::Bytes(protected),
        Value::Bytes(Vec::new()),
        Value::Bytes(payload),
    ]);
    let mut message = Vec::new();
    ciborium::into_writer(&structure, &mut message).map_err(|_| CorimError::Cbor)?;
    Ok(message)
}

fn header(headers: &Value, label: i128) -> Result<Option<&Value>, CorimError> {
    member(headers, label, "headers")
}

/// What is not to be judged by is not there: a critical header, one that is in both maps, and another
/// content.
fn check(protected: &Value, unprotected: &Value) -> Result<(), CorimError> {
    for label in [
        ALGORITHM,
        CRITICAL,
        CONTENT_TYPE,
        KEY_ID,
        CORIM_META,
        CLAIMS,
    ] {
        let inside = header(protected, label)?.is_some();
        if header(unprotected, label)?.is_some() && (inside || label != KEY_ID) {
            return Err(if inside {
                CorimError::Twice { label }
            } else {
                shape(
                    "alg, crit, content type, corim-meta and claims",
                    "protected headers",
                )
            });
        }
    }
    if header(protected, CRITICAL)?.is_some() {
        return Err(CorimError::Critical);
    }
    match header(protected, CONTENT_TYPE)? {
        Some(Value::Text(text)) if text == RIM => Ok(()),
        Some(_) | None => Err(shape("content type", "application/rim+cbor")),
    }
}

fn algorithm(protected: &Value) -> Result<Algorithm, CorimError> {
    let named = header(protected, ALGORITHM)?;
    match named.and_then(Value::as_integer).map(i128::from) {
        Some(number) => Algorithm::ALL
            .into_iter()
            .find(|known| i128::from(known.number()) == number)
            .ok_or_else(|| CorimError::Algorithm {
                found: number.to_string(),
            }),
        None => Err(CorimError::Algorithm {
            found: "that is not a number".to_owned(),
        }),
    }
}

/// From when until when the signer stands by it.
fn window(protected: &Value) -> Result<Window, CorimError> {
    let mut window = (None, None);
    if let Some(meta) = header(protected, CORIM_META)? {
        let Value::Bytes(bytes) = meta else {
            return Err(shape("corim-meta", "bytes"));
        };
        let meta = decode(bytes)?;
        if let Some(map) = member(&meta, SIGNATURE_VALIDITY, "corim-meta")? {
            window = validity(map, "signature-validity")?;
        }
    }
    if let Some(claims) = header(protected, CLAIMS)? {
        let time = |label| {
            let claim = member(claims, label, "claims")?;
            let wrong = shape("nbf and exp", "whole seconds since 1970");
            claim.map(|moment| seconds(moment).ok_or(wrong)).transpose()
        };
        window.0 = window.0.max(time(NOT_BEFORE)?);
        window.1 = match (window.1, time(EXPIRATION)?) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    Ok(window)
}
