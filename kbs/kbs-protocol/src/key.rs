//! The guest's key pair: its public half is bound by the evidence and travels in the token, and a
//! resource is sealed to it.
//!
//! EC on P-256 (what guests make) and P-521 with `ECDH-ES+A256KW`, RSA with `RSA-OAEP-256`. PKCS#1
//! v1.5 is refused by name: it leaks to whoever can ask often.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use p256::elliptic_curve::{
    AffinePoint, CurveArithmetic, FieldBytesSize, Generate, PublicKey, SecretKey,
    sec1::{FromSec1Point, ModulusSize, ToSec1Point},
};
use rsa::{BoxedUint, traits::PublicKeyParts};
use serde::{Deserialize, Serialize};

pub(crate) const ECDH_ES_A256KW: &str = "ECDH-ES+A256KW";
pub(crate) const RSA_OAEP_256: &str = "RSA-OAEP-256";
pub(crate) const P256_CURVE: &str = "P-256";
pub(crate) const P521_CURVE: &str = "P-521";

/// Bits of an RSA key that we make, and the fewest that we accept.
const RSA_BITS: usize = 2048;
/// Bits of the largest RSA key that we accept: larger ones only cost us time.
const RSA_BITS_MAX: usize = 4096;

/// The public half, as a JWK on the wire. Members that are not named here are dropped before the
/// key is hashed, as upstream does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub enum TeePubKey {
    /// A point on a curve, coordinates of full width.
    #[serde(rename = "EC")]
    Ec {
        /// `P-256` or `P-521`.
        crv: String,
        /// `ECDH-ES+A256KW`.
        alg: String,
        /// Base64url without padding.
        x: String,
        /// Base64url without padding.
        y: String,
    },
    /// A modulus and an exponent.
    #[serde(rename = "RSA")]
    Rsa {
        /// `RSA-OAEP-256`.
        alg: String,
        /// Base64url without padding, big endian.
        n: String,
        /// Base64url without padding, big endian.
        e: String,
    },
}

impl TeePubKey {
    /// Checks that a resource can be sealed to this key.
    ///
    /// # Errors
    /// Names the member that is wrong.
    pub fn check(&self) -> Result<(), KeyError> {
        Recipient::try_from(self).map(drop)
    }
}

/// A checked public key.
pub(crate) enum Recipient {
    P256(p256::PublicKey),
    P521(p521::PublicKey),
    Rsa(Box<rsa::PublicKey>),
}

impl TryFrom<&TeePubKey> for Recipient {
    type Error = KeyError;

    fn try_from(key: &TeePubKey) -> Result<Self, KeyError> {
        match key {
            TeePubKey::Ec { crv, alg, x, y } => {
                check_alg(alg, ECDH_ES_A256KW)?;
                match crv.as_str() {
                    P256_CURVE => Ok(Self::P256(point(x, y)?)),
                    P521_CURVE => Ok(Self::P521(point(x, y)?)),
                    _ => Err(KeyError::Curve(printable(crv))),
                }
            }
            TeePubKey::Rsa { alg, n, e } => {
                check_alg(alg, RSA_OAEP_256)?;
                let number = |text| -> Result<BoxedUint, KeyError> {
                    Ok(BoxedUint::from_be_slice_vartime(&decode(
                        text,
                        RSA_BITS_MAX / 8,
                    )?))
                };
                let key =
                    rsa::PublicKey::new(number(n)?, number(e)?).map_err(|_| KeyError::Modulus)?;
                if key.size() < RSA_BITS / 8 {
                    return Err(KeyError::Modulus);
                }
                Ok(Self::Rsa(Box::new(key)))
            }
        }
    }
}

/// Which kind of key pair to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// EC P-256, made in well under a millisecond.
    #[default]
    P256,
    /// EC P-521.
    P521,
    /// RSA of 2048 bits; takes long to make.
    Rsa2048,
}

/// The guest's key pair, wiped when dropped; it has no `Debug`.
#[expect(
    missing_debug_implementations,
    reason = "a secret has no printable form"
)]
pub struct TeeKeyPair {
    pub(crate) private: PrivateKey,
    /// Computed once: it is as much work as an agreement.
    public: TeePubKey,
}

pub(crate) enum PrivateKey {
    P256(p256::SecretKey),
    P521(p521::SecretKey),
    Rsa(Box<rsa::PrivateKey>),
}

impl TeeKeyPair {
    /// A new key pair.
    ///
    /// # Errors
    /// When RSA finds no primes.
    pub fn generate(kind: KeyKind) -> Result<Self, KeyError> {
        let mut rng = rand::rng();
        let private = match kind {
            KeyKind::P256 => PrivateKey::P256(SecretKey::generate_from_rng(&mut rng)),
            KeyKind::P521 => PrivateKey::P521(SecretKey::generate_from_rng(&mut rng)),
            KeyKind::Rsa2048 => PrivateKey::Rsa(Box::new(
                rsa::PrivateKey::new(&mut rng, RSA_BITS).map_err(|_| KeyError::Generate)?,
            )),
        };
        let public = private.public();
        Ok(Self { private, public })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> TeePubKey {
        self.public.clone()
    }
}

impl PrivateKey {
    fn public(&self) -> TeePubKey {
        match self {
            Self::P256(key) => ec(P256_CURVE, &key.public_key()),
            Self::P521(key) => ec(P521_CURVE, &key.public_key()),
            Self::Rsa(key) => TeePubKey::Rsa {
                alg: RSA_OAEP_256.to_owned(),
                n: encode(&key.n().to_be_bytes_trimmed_vartime()),
                e: encode(&key.e().to_be_bytes_trimmed_vartime()),
            },
        }
    }
}

/// A key that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A curve other than the two.
    #[error("curve `{0}` is not supported: use `P-256` or `P-521`")]
    Curve(String),
    /// An algorithm that does not go with the key, or is not safe.
    #[error("algorithm `{found}` is not supported: use `{expected}`")]
    Algorithm {
        /// What the key said.
        found: String,
        /// What goes with its type.
        expected: &'static str,
    },
    /// Not base64url without padding, or of another length.
    #[error("a coordinate or number is not base64url without padding, of full width")]
    Encoding,
    /// Not on the curve.
    #[error("the point is not on the curve")]
    Point,
    /// An RSA key that is malformed, short or too long.
    #[error("the RSA key is malformed, or not of {RSA_BITS} to {RSA_BITS_MAX} bits")]
    Modulus,
    /// No primes were found.
    #[error("no RSA key could be made")]
    Generate,
}

/// Coordinates in base64url of a public key.
pub(crate) fn coordinates<C>(key: &PublicKey<C>) -> (String, String)
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    coordinates_of(key.to_sec1_point(false).as_bytes())
}

/// The same of a point in its uncompressed form.
pub(crate) fn coordinates_of(point: &[u8]) -> (String, String) {
    let point = point.get(1..).unwrap_or_default();
    let (x, y) = point.split_at(point.len() / 2);
    (encode(x), encode(y))
}

/// The public key at these coordinates; both must have the full width.
pub(crate) fn point<C>(x: &str, y: &str) -> Result<PublicKey<C>, KeyError>
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    const UNCOMPRESSED: u8 = 4;
    const WIDEST: usize = 66;
    let (x, y) = (decode(x, WIDEST)?, decode(y, WIDEST)?);
    if x.len() != y.len() {
        return Err(KeyError::Encoding);
    }
    let bytes = [&[UNCOMPRESSED][..], &x, &y].concat();
    PublicKey::from_sec1_bytes(&bytes).map_err(|_| KeyError::Point)
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn ec<C>(curve: &str, key: &PublicKey<C>) -> TeePubKey
where
    C: CurveArithmetic,
    FieldBytesSize<C>: ModulusSize,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
{
    let (x, y) = coordinates(key);
    TeePubKey::Ec {
        crv: curve.to_owned(),
        alg: ECDH_ES_A256KW.to_owned(),
        x,
        y,
    }
}

fn check_alg(found: &str, expected: &'static str) -> Result<(), KeyError> {
    if found == expected {
        return Ok(());
    }
    Err(KeyError::Algorithm {
        found: printable(found),
        expected,
    })
}

fn decode(text: &str, most: usize) -> Result<Vec<u8>, KeyError> {
    if text.len() > most.div_ceil(3) * 4 {
        return Err(KeyError::Encoding);
    }
    BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| KeyError::Encoding)
}

fn printable(text: &str) -> String {
    const SHOWN: usize = 32;
    text.chars()
        .filter(|c| !c.is_control())
        .take(SHOWN)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_halves_are_full_width_and_check() {
        for (kind, width) in [(KeyKind::P256, 43), (KeyKind::P521, 88)] {
            for _ in 0..8 {
                let public = TeeKeyPair::generate(kind).unwrap().public();
                public.check().unwrap();
                let TeePubKey::Ec { x, y, .. } = &public else {
                    panic!("not EC")
                };
                assert_eq!((x.len(), y.len()), (width, width));
            }
        }
    }

    #[test]
    fn unusable_keys_are_named() {
        let good = TeeKeyPair::generate(KeyKind::P256).unwrap().public();
        let TeePubKey::Ec { crv, alg, x, y } = good else {
            panic!("not EC")
        };
        let key = |crv: &str, alg: &str, x: &str, y: &str| TeePubKey::Ec {
            crv: crv.into(),
            alg: alg.into(),
            x: x.into(),
            y: y.into(),
        };
        let failure = |key: TeePubKey| key.check().unwrap_err();
        assert_eq!(
            failure(key("P-384", &alg, &x, &y)),
            KeyError::Curve("P-384".into())
        );
        assert!(matches!(
            failure(key(&crv, "ECDH-ES", &x, &y)),
            KeyError::Algorithm { .. }
        ));
        assert_eq!(failure(key(&crv, &alg, &x, &x)), KeyError::Point);
        assert_eq!(failure(key(&crv, &alg, &x, "AA")), KeyError::Encoding);
        let padded = format!("{x}=");
        assert_eq!(failure(key(&crv, &alg, &padded, &y)), KeyError::Encoding);
        let rsa = TeePubKey::Rsa {
            alg: "RSA1_5".into(),
            n: "AQAB".into(),
            e: "AQAB".into(),
        };
        assert!(matches!(failure(rsa), KeyError::Algorithm { .. }));
        let short = TeePubKey::Rsa {
            alg: RSA_OAEP_256.into(),
            n: "AQAB".into(),
            e: "AQAB".into(),
        };
        assert_eq!(failure(short), KeyError::Modulus);
    }
}
