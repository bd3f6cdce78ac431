//! Keys of JWE recipients in JSON (RFC 7517, RFC 7518 section 6), which Go's ocicrypt takes beside PEM and DER.
//!
//! An RSA key goes through PKCS #1, an EC key through SEC 1: what checks those checks these. Members are borrowed from
//! the text, which the caller wipes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::key::{KeyFormatError, PrivateKey, PublicKey};

/// Cap on one member, in bytes: the modulus of RSA-16384.
const MEMBER_BYTES_MAX: usize = 2048;
/// The tag of an uncompressed point in SEC 1.
const UNCOMPRESSED: u8 = 4;
const DER_INTEGER: u8 = 2;
const DER_SEQUENCE: u8 = 0x30;

/// The members that are part of a key; `kid`, `use` and the like do not change it.
#[derive(Deserialize)]
struct Jwk<'a> {
    kty: &'a str,
    crv: Option<&'a str>,
    x: Option<&'a str>,
    y: Option<&'a str>,
    d: Option<&'a str>,
    n: Option<&'a str>,
    e: Option<&'a str>,
    p: Option<&'a str>,
    q: Option<&'a str>,
    dp: Option<&'a str>,
    dq: Option<&'a str>,
    qi: Option<&'a str>,
}

pub(super) fn public(json: &[u8]) -> Result<PublicKey, KeyFormatError> {
    let jwk: Jwk<'_> = serde_json::from_slice(json).map_err(|_| KeyFormatError::Jwk)?;
    if jwk.d.is_some() {
        return Err(KeyFormatError::PrivateJwk);
    }
    let key = match (jwk.kty, jwk.crv) {
        ("RSA", _) => {
            let der = sequence(&[member(jwk.n)?, member(jwk.e)?]);
            rsa::PublicKey::from_pkcs1_der(&der)
                .ok()
                .map(PublicKey::Rsa)
        }
        ("EC", Some(curve)) => {
            let (x, y) = (member(jwk.x)?, member(jwk.y)?);
            let point = [&[UNCOMPRESSED][..], x.as_slice(), y.as_slice()].concat();
            match curve {
                "P-256" => p256::PublicKey::from_sec1_bytes(&point)
                    .ok()
                    .map(PublicKey::P256),
                "P-384" => p384::PublicKey::from_sec1_bytes(&point)
                    .ok()
                    .map(PublicKey::P384),
                "P-521" => p521::PublicKey::from_sec1_bytes(&point)
                    .ok()
                    .map(PublicKey::P521),
                _ => None,
            }
        }
        _ => None,
    };
    key.ok_or_else(|| KeyFormatError::Algorithm("JWK".to_owned()))
}

pub(super) fn private(json: &[u8]) -> Result<PrivateKey, KeyFormatError> {
    let jwk: Jwk<'_> = serde_json::from_slice(json).map_err(|_| KeyFormatError::Jwk)?;
    let key = match (jwk.kty, jwk.crv) {
        ("RSA", _) => {
            let version = Zeroizing::new(vec![0]);
            let mut integers = vec![version];
            for text in [jwk.n, jwk.e, jwk.d, jwk.p, jwk.q, jwk.dp, jwk.dq, jwk.qi] {
                integers.push(member(text)?);
            }
            let der = sequence(&integers);
            let key = rsa::PrivateKey::from_pkcs1_der(&der).ok();
            key.map(|key| PrivateKey::Rsa(Box::new(key)))
        }
        ("EC", Some(curve)) => {
            let d = member(jwk.d)?;
            match curve {
                "P-256" => p256::SecretKey::from_slice(&d).ok().map(PrivateKey::P256),
                "P-384" => p384::SecretKey::from_slice(&d).ok().map(PrivateKey::P384),
                "P-521" => p521::SecretKey::from_slice(&d).ok().map(PrivateKey::P521),
                _ => None,
            }
        }
        _ => None,
    };
    key.ok_or_else(|| KeyFormatError::Algorithm("JWK".to_owned()))
}

fn member(text: Option<&str>) -> Result<Zeroizing<Vec<u8>>, KeyFormatError> {
    let text = text.ok_or(KeyFormatError::Jwk)?;
    if text.len() > MEMBER_BYTES_MAX / 3 * 4 + 4 {
        return Err(KeyFormatError::TooLong);
    }
    // The decoder asks for room in whole groups of three bytes.
    let mut bytes = Zeroizing::new(vec![0; text.len() + 3]);
    let decoded = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes);
    bytes.truncate(decoded.map_err(|_| KeyFormatError::Jwk)?);
    Ok(bytes)
}

/// A DER sequence of positive integers.
fn sequence(integers: &[Zeroizing<Vec<u8>>]) -> Zeroizing<Vec<u8>> {
    // For each integer its tag, its length, and a zero in front.
    let room = integers.iter().map(|bytes| bytes.len() + 5).sum::<usize>();
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    for bytes in integers {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let bytes = &bytes[zeros..];
        let needs_zero = bytes.first().is_none_or(|byte| *byte & 0x80 != 0);
        body.push(DER_INTEGER);
        push_length(&mut body, bytes.len() + usize::from(needs_zero));
        if needs_zero {
            body.push(0);
        }
        body.extend_from_slice(bytes);
    }
    let mut der = Zeroizing::new(Vec::with_capacity(body.len() + 4));
    der.push(DER_SEQUENCE);
    push_length(&mut der, body.len());
    der.extend_from_slice(&body);
    der
}

fn push_length(der: &mut Vec<u8>, length: usize) {
    let bytes = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    match bytes {
        [0, low] if low < 0x80 => der.push(low),
        [0, low] => der.extend_from_slice(&[0x81, low]),
        [high, low] => der.extend_from_slice(&[0x82, high, low]),
    }
}
