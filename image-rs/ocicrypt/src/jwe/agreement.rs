//! `ECDH-ES+A256KW` (RFC 7518, sections 4.6 and 4.4): one curve at a time, generic over it.

use aes_kw::{KeyInit, KwAes256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::elliptic_curve::common::Generate;
use p256::elliptic_curve::ecdh::EphemeralSecret;
use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{ECDH_ES_A256KW, JweError, decode, text};
use crate::secret::{KEY_BYTES, NoEntropy};

/// Length in bytes of a wrapped content key: eight more than the key.
const WRAPPED_BYTES: usize = KEY_BYTES + 8;
/// The tag of an uncompressed point in SEC 1.
const UNCOMPRESSED: u8 = 4;

/// The name of a curve in a JWK (RFC 7518, section 6.2.1.1).
pub(super) trait JwkCurve {
    const NAME: &'static str;
}

impl JwkCurve for p256::NistP256 {
    const NAME: &'static str = "P-256";
}

impl JwkCurve for p384::NistP384 {
    const NAME: &'static str = "P-384";
}

impl JwkCurve for p521::NistP521 {
    const NAME: &'static str = "P-521";
}

/// Wraps `content_key` for `recipient`, and writes `alg` and `epk` into `header`.
pub(super) fn seal<C>(
    recipient: &PublicKey<C>,
    content_key: &[u8; KEY_BYTES],
    header: &mut Map<String, Value>,
) -> Result<Vec<u8>, JweError>
where
    C: CurveArithmetic + JwkCurve,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    let ephemeral = EphemeralSecret::<C>::try_generate_from_rng(&mut rand::rngs::SysRng)
        .map_err(|_| NoEntropy)?;
    let shared = ephemeral.diffie_hellman(recipient);
    let point = ephemeral.public_key().as_affine().to_sec1_point(false);
    let coordinates = &point.as_bytes()[1..];
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    header.insert("alg".to_owned(), ECDH_ES_A256KW.into());
    header.insert(
        "epk".to_owned(),
        serde_json::json!({
            "kty": "EC",
            "crv": C::NAME,
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }),
    );
    let kek = derive(shared.raw_secret_bytes(), &[], &[]);
    let mut wrapped = vec![0; WRAPPED_BYTES];
    KwAes256::new((&*kek).into())
        .wrap_key(content_key, &mut wrapped)
        .map_err(|_| JweError::Wrap(ECDH_ES_A256KW))?;
    Ok(wrapped)
}

/// Unwraps the content key; `None` when it was wrapped for another key.
pub(super) fn open<C>(
    key: &SecretKey<C>,
    wrapped: &[u8],
    header: &Map<String, Value>,
) -> Result<Option<Zeroizing<[u8; KEY_BYTES]>>, JweError>
where
    C: CurveArithmetic + JwkCurve,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    let epk = header
        .get("epk")
        .and_then(Value::as_object)
        .ok_or(JweError::Member("epk"))?;
    if text(epk, "kty") != Some("EC") {
        return Err(JweError::Member("epk"));
    }
    if text(epk, "crv") != Some(C::NAME) {
        return Ok(None);
    }
    let mut point = vec![UNCOMPRESSED];
    for name in ["x", "y"] {
        let coordinate = decode(text(epk, name).unwrap_or_default(), "epk")?;
        point.extend_from_slice(&coordinate);
    }
    let epk = PublicKey::<C>::from_sec1_bytes(&point).map_err(|_| JweError::Member("epk"))?;
    let shared = key.diffie_hellman(&epk);
    let apu = decode(text(header, "apu").unwrap_or_default(), "apu")?;
    let apv = decode(text(header, "apv").unwrap_or_default(), "apv")?;
    let kek = derive(shared.raw_secret_bytes(), &apu, &apv);
    if wrapped.len() != WRAPPED_BYTES {
        return Err(JweError::Member("encrypted_key"));
    }
    let mut content_key = Zeroizing::new([0; KEY_BYTES]);
    let opened = KwAes256::new((&*kek).into())
        .unwrap_key(wrapped, content_key.as_mut_slice())
        .is_ok();
    Ok(opened.then_some(content_key))
}

/// The Concat KDF of NIST SP 800-56A for one block of SHA-256, which is all that a 256-bit key needs.
fn derive(shared: &[u8], apu: &[u8], apv: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut hash = Sha256::new();
    hash.update(1_u32.to_be_bytes());
    hash.update(shared);
    for field in [ECDH_ES_A256KW.as_bytes(), apu, apv] {
        // A header of at most 64 KiB holds these fields.
        hash.update(u32::try_from(field.len()).unwrap_or(u32::MAX).to_be_bytes());
        hash.update(field);
    }
    hash.update(256_u32.to_be_bytes());
    Zeroizing::new(hash.finalize().into())
}
