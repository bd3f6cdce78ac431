//! The JWE (RFC 7516, flattened) in which a resource travels.
//!
//! CoCo's client recomputes the associated data by writing the parsed header again, so the header
//! is compact JSON in one order: `alg`, `enc`, `epk` with its own members sorted. We write that
//! order, and as a reader use the header's bytes as they came.

use aes_gcm::{
    Aes256Gcm,
    aead::{Aead, KeyInit, Payload},
};
use aes_kw::KwAes256;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use p256::elliptic_curve::{
    AffinePoint, CurveArithmetic, FieldBytesSize, Generate, PublicKey, SecretKey, ecdh,
    sec1::{FromSec1Point, ModulusSize, ToSec1Point},
};
use rand::Rng;
use ring::{
    agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral},
    rand::SystemRandom,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    KeyError, Secret, TeeKeyPair, TeePubKey,
    key::{
        ECDH_ES_A256KW, P256_CURVE, P521_CURVE, PrivateKey, RSA_OAEP_256, Recipient, coordinates,
        coordinates_of, encode, point,
    },
    limit::{JWE_BYTES, RESOURCE_BYTES},
};

const A256GCM: &str = "A256GCM";
const KEY_BYTES: usize = 32;
const WRAPPED_BYTES: usize = KEY_BYTES + 8;
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// A flattened JWE; every member is base64url without padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwe {
    /// The header.
    pub protected: String,
    /// The content key, wrapped.
    pub encrypted_key: String,
    /// 12 bytes.
    pub iv: String,
    /// The resource.
    pub ciphertext: String,
    /// 16 bytes.
    pub tag: String,
}

/// Seals a resource to a guest's key.
///
/// # Errors
/// When the key is unusable or the resource is larger than its cap.
pub fn seal(to: &TeePubKey, resource: &[u8]) -> Result<Jwe, JweError> {
    if resource.len() > RESOURCE_BYTES {
        return Err(JweError::TooLarge);
    }
    let mut content_key = Zeroizing::new([0; KEY_BYTES]);
    rand::rng().fill_bytes(&mut *content_key);
    let (header, encrypted_key) = match Recipient::try_from(to)? {
        Recipient::P256(key) => wrap_p256(&key, &content_key)?,
        Recipient::P521(key) => wrap_ec(P521_CURVE, &key, &content_key)?,
        Recipient::Rsa(key) => {
            let wrapped = key
                .oaep_encrypt_with_rng::<Sha256, _>(&mut rand::rng(), &*content_key)
                .map_err(|_| JweError::Wrap)?;
            (Header::new(RSA_OAEP_256, None), wrapped)
        }
    };
    let protected = encode(&serde_json::to_vec(&header).map_err(|_| JweError::Header)?);
    let mut iv = [0; IV_BYTES];
    rand::rng().fill_bytes(&mut iv);
    let mut sealed = Aes256Gcm::new((&*content_key).into())
        .encrypt(
            (&iv).into(),
            Payload {
                msg: resource,
                aad: protected.as_bytes(),
            },
        )
        .map_err(|_| JweError::Encrypt)?;
    let tag = sealed.split_off(sealed.len() - TAG_BYTES);
    Ok(Jwe {
        protected,
        encrypted_key: encode(&encrypted_key),
        iv: encode(&iv),
        ciphertext: encode(&sealed),
        tag: encode(&tag),
    })
}

impl TeeKeyPair {
    /// Opens what was sealed to this key pair.
    ///
    /// # Errors
    /// When the JWE is malformed, too large, of another algorithm, for another key or altered.
    pub fn open(&self, jwe: &Jwe) -> Result<Secret, JweError> {
        if jwe.ciphertext.len() > JWE_BYTES {
            return Err(JweError::TooLarge);
        }
        let header: Header = serde_json::from_slice(&decode(&jwe.protected, "protected")?)
            .map_err(|_| JweError::Header)?;
        if header.enc != A256GCM {
            return Err(JweError::Algorithm(header.enc));
        }
        let content_key = self.unwrap(&header, &decode(&jwe.encrypted_key, "encrypted_key")?)?;
        let iv: [u8; IV_BYTES] = decode(&jwe.iv, "iv")?
            .try_into()
            .map_err(|_| JweError::Encoding("iv"))?;
        let tag = decode(&jwe.tag, "tag")?;
        if tag.len() != TAG_BYTES {
            return Err(JweError::Encoding("tag"));
        }
        let mut sealed = decode(&jwe.ciphertext, "ciphertext")?;
        sealed.extend_from_slice(&tag);
        Aes256Gcm::new((&*content_key).into())
            .decrypt(
                (&iv).into(),
                Payload {
                    msg: &sealed,
                    aad: jwe.protected.as_bytes(),
                },
            )
            .map(Secret::from)
            .map_err(|_| JweError::Altered)
    }

    fn unwrap(&self, header: &Header, wrapped: &[u8]) -> Result<ContentKey, JweError> {
        match &self.private {
            PrivateKey::P256(key) => unwrap_ec(P256_CURVE, key, header, wrapped),
            PrivateKey::P521(key) => unwrap_ec(P521_CURVE, key, header, wrapped),
            PrivateKey::Rsa(key) => {
                header.check_alg(RSA_OAEP_256)?;
                let plain = key
                    .oaep_decrypt_with_rng::<Sha256, _>(&mut rand::rng(), wrapped)
                    .map(Zeroizing::new)
                    .map_err(|_| JweError::OtherKey)?;
                let fixed = plain
                    .as_slice()
                    .try_into()
                    .map_err(|_| JweError::OtherKey)?;
                Ok(Zeroizing::new(fixed))
            }
        }
    }
}

type ContentKey = Zeroizing<[u8; KEY_BYTES]>;

/// The header; the order of its members is part of the format.
#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    enc: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epk: Option<Epk>,
}

impl Header {
    fn new(alg: &str, epk: Option<Epk>) -> Self {
        Self {
            alg: alg.to_owned(),
            enc: A256GCM.to_owned(),
            epk,
        }
    }

    fn check_alg(&self, expected: &str) -> Result<(), JweError> {
        if self.alg == expected {
            return Ok(());
        }
        Err(JweError::Algorithm(self.alg.clone()))
    }
}

/// The sender's key, made for one message; members sorted.
#[derive(Serialize, Deserialize)]
struct Epk {
    crv: String,
    kty: String,
    x: String,
    y: String,
}

/// A JWE that could not be made or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// The recipient's key.
    #[error("the recipient's key: {0}")]
    Key(#[from] KeyError),
    /// A member that is not base64url without padding, or of the wrong length.
    #[error("`{0}` is not base64url without padding, or has a wrong length")]
    Encoding(&'static str),
    /// The header is no JSON object with `alg` and `enc`.
    #[error("the protected header cannot be read")]
    Header,
    /// An algorithm that this key does not use.
    #[error("algorithm `{0}` is not the one of this key")]
    Algorithm(String),
    /// Larger than the cap.
    #[error("the resource is larger than {RESOURCE_BYTES} bytes")]
    TooLarge,
    /// The content key could not be wrapped.
    #[error("the content key could not be wrapped")]
    Wrap,
    /// The content could not be encrypted.
    #[error("the content could not be encrypted")]
    Encrypt,
    /// The content key is for somebody else.
    #[error("sealed to another key: the key pair of this attestation differs from the token's")]
    OtherKey,
    /// The tag does not match.
    #[error("the content or its header was altered on the way")]
    Altered,
}

/// The curve of nearly every guest, by the library that is fastest at it.
fn wrap_p256(
    to: &p256::PublicKey,
    content_key: &[u8; KEY_BYTES],
) -> Result<(Header, Vec<u8>), JweError> {
    let ephemeral = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())
        .map_err(|_| JweError::Wrap)?;
    let public = ephemeral.compute_public_key().map_err(|_| JweError::Wrap)?;
    let to = UnparsedPublicKey::new(&ECDH_P256, to.to_sec1_bytes());
    let wrapping_key = agree_ephemeral(ephemeral, &to, concat_kdf).map_err(|_| JweError::Wrap)?;
    wrapped(
        P256_CURVE,
        coordinates_of(public.as_ref()),
        &wrapping_key,
        content_key,
    )
}

fn wrap_ec<C>(
    curve: &str,
    to: &PublicKey<C>,
    content_key: &[u8; KEY_BYTES],
) -> Result<(Header, Vec<u8>), JweError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    let ephemeral = ecdh::EphemeralSecret::<C>::generate_from_rng(&mut rand::rng());
    let wrapping_key = concat_kdf(ephemeral.diffie_hellman(to).raw_secret_bytes());
    let point = coordinates(&ephemeral.public_key());
    wrapped(curve, point, &wrapping_key, content_key)
}

/// The content key under the wrapping key, and the header that tells how it was agreed on.
fn wrapped(
    curve: &str,
    (x, y): (String, String),
    wrapping_key: &ContentKey,
    content_key: &[u8; KEY_BYTES],
) -> Result<(Header, Vec<u8>), JweError> {
    let mut wrapped = vec![0; WRAPPED_BYTES];
    KwAes256::new((&**wrapping_key).into())
        .wrap_key(content_key, &mut wrapped)
        .map_err(|_| JweError::Wrap)?;
    let epk = Epk {
        crv: curve.to_owned(),
        kty: "EC".to_owned(),
        x,
        y,
    };
    Ok((Header::new(ECDH_ES_A256KW, Some(epk)), wrapped))
}

fn unwrap_ec<C>(
    curve: &str,
    key: &SecretKey<C>,
    header: &Header,
    wrapped: &[u8],
) -> Result<ContentKey, JweError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    header.check_alg(ECDH_ES_A256KW)?;
    let epk = header.epk.as_ref().ok_or(JweError::Header)?;
    if epk.kty != "EC" || epk.crv != curve {
        return Err(JweError::OtherKey);
    }
    if wrapped.len() != WRAPPED_BYTES {
        return Err(JweError::Encoding("encrypted_key"));
    }
    let sender = point::<C>(&epk.x, &epk.y)?;
    let wrapping_key = concat_kdf(key.diffie_hellman(&sender).raw_secret_bytes());
    let mut content_key = Zeroizing::new([0; KEY_BYTES]);
    KwAes256::new((&*wrapping_key).into())
        .unwrap_key(wrapped, &mut *content_key)
        .map_err(|_| JweError::OtherKey)?;
    Ok(content_key)
}

/// RFC 7518 section 4.6: one round of SHA-256, nobody's name, 256 bits.
fn concat_kdf(shared: &[u8]) -> ContentKey {
    const ROUND: u32 = 1;
    const EMPTY: u32 = 0;
    const KEY_BITS: u32 = 256;
    const ALGORITHM_CHARS: u32 = 14;
    const { assert!(ECDH_ES_A256KW.len() == ALGORITHM_CHARS as usize) };
    let mut hash = Sha256::new();
    hash.update(ROUND.to_be_bytes());
    hash.update(shared);
    hash.update(ALGORITHM_CHARS.to_be_bytes());
    hash.update(ECDH_ES_A256KW);
    hash.update(EMPTY.to_be_bytes());
    hash.update(EMPTY.to_be_bytes());
    hash.update(KEY_BITS.to_be_bytes());
    Zeroizing::new(hash.finalize().into())
}

fn decode(text: &str, member: &'static str) -> Result<Vec<u8>, JweError> {
    if text.len() > JWE_BYTES {
        return Err(JweError::TooLarge);
    }
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| JweError::Encoding(member))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyKind;

    #[test]
    fn every_kind_of_key_opens_what_was_sealed_to_it() {
        for kind in [KeyKind::P256, KeyKind::P521] {
            let pair = TeeKeyPair::generate(kind).unwrap();
            for resource in [&b""[..], b"secret", &[7; 100_000]] {
                let jwe = seal(&pair.public(), resource).unwrap();
                assert_eq!(pair.open(&jwe).ok().unwrap().expose(), resource);
            }
        }
    }

    #[test]
    fn rsa_opens_what_was_sealed_to_it() {
        let pair = TeeKeyPair::generate(KeyKind::Rsa2048).unwrap();
        pair.public().check().unwrap();
        let jwe = seal(&pair.public(), b"secret").unwrap();
        assert_eq!(pair.open(&jwe).ok().unwrap().expose(), b"secret");
    }

    #[test]
    fn the_header_is_written_in_the_order_that_peers_recompute() {
        let pair = TeeKeyPair::generate(KeyKind::P256).unwrap();
        let jwe = seal(&pair.public(), b"x").unwrap();
        let header = String::from_utf8(decode(&jwe.protected, "protected").unwrap()).unwrap();
        let start =
            r#"{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":""#;
        assert!(header.starts_with(start), "{header}");
        let again: Header = serde_json::from_str(&header).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), header);
    }

    #[test]
    fn another_key_and_altered_parts_are_told_apart() {
        let pair = TeeKeyPair::generate(KeyKind::P256).unwrap();
        let other = TeeKeyPair::generate(KeyKind::P256).unwrap();
        let jwe = seal(&pair.public(), b"secret").unwrap();
        assert_eq!(other.open(&jwe).err(), Some(JweError::OtherKey));
        let mut altered = jwe.clone();
        altered.tag = encode(&[0; TAG_BYTES]);
        assert_eq!(pair.open(&altered).err(), Some(JweError::Altered));
        let mut rewritten = jwe.clone();
        let header = String::from_utf8(decode(&jwe.protected, "protected").unwrap()).unwrap();
        rewritten.protected = encode(header.replace(':', ": ").as_bytes());
        assert_eq!(pair.open(&rewritten).err(), Some(JweError::Altered));
        let mut padded = jwe;
        padded.iv.push('=');
        assert_eq!(pair.open(&padded).err(), Some(JweError::Encoding("iv")));
    }

    /// The value was computed apart, with Python's `hashlib`, over RFC 7518's concatenation.
    #[test]
    fn the_derivation_is_the_standards() {
        const EXPECTED: [u8; KEY_BYTES] = [
            0x09, 0xea, 0xf6, 0x48, 0x4c, 0xfc, 0x1e, 0x85, 0x26, 0x4c, 0x52, 0x37, 0x4d, 0xa6,
            0xb2, 0x5d, 0x5e, 0x81, 0x97, 0x88, 0x51, 0x99, 0x70, 0x21, 0x11, 0x56, 0xdf, 0xfc,
            0xf4, 0xce, 0x63, 0x84,
        ];
        assert_eq!(*concat_kdf(&[9; 32]), EXPECTED);
    }
}
