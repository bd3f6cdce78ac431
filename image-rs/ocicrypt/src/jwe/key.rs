//! The keys of JWE recipients, read from files: RSA, and EC on P-256, P-384 and P-521.
//!
//! Public: `PUBLIC KEY` (SPKI) and `RSA PUBLIC KEY` (PKCS #1). Private: `PRIVATE KEY` (PKCS #8), `RSA PRIVATE KEY`
//! (PKCS #1) and `EC PRIVATE KEY` (SEC 1), not encrypted. The same without PEM around them, and JWK.

use p256::pkcs8::{DecodePrivateKey, DecodePublicKey};
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use rsa::traits::PublicKeyParts as _;
use zeroize::Zeroizing;

use super::jwk;

/// Cap on the PEM text of a key, in bytes; RSA-16384 needs about 13 000.
const PEM_BYTES_MAX: usize = 32 * 1024;

/// RSA moduli below this are refused, in bits.
const RSA_BITS_MIN: usize = 2048;

/// Why a key cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFormatError {
    /// A cap.
    #[error("a PEM key is longer than {PEM_BYTES_MAX} bytes")]
    TooLong,
    /// Not PEM.
    #[error("a key is not in PEM format")]
    Pem,
    /// Not PEM, and not DER of a key either.
    #[error(
        "a key is neither PEM nor DER nor JWK of an RSA key or an EC key on P-256, P-384 or P-521"
    )]
    Der,
    /// Not a JWK, or one that misses a member.
    #[error("a JWK is not the JSON of RFC 7517, or has not all members of its key")]
    Jwk,
    /// A private key where a public one is wanted.
    #[error("a recipient's JWK is a private key; give its public half")]
    PrivateJwk,
    /// Shorter than anybody should trust.
    #[error("an RSA key has {0} bits, fewer than {RSA_BITS_MIN}")]
    Weak(usize),
    /// PEM of something else.
    #[error("PEM block {label:?} is not {expected}")]
    Label {
        /// What stands in its first line.
        label: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A key of another algorithm, or a damaged one.
    #[error("PEM block {0:?} holds no RSA key and no EC key on P-256, P-384 or P-521")]
    Algorithm(String),
}

/// A recipient's public key.
#[derive(Debug, Clone)]
pub enum PublicKey {
    /// For `RSA-OAEP`.
    Rsa(rsa::PublicKey),
    /// For `ECDH-ES+A256KW`.
    P256(p256::PublicKey),
    /// For `ECDH-ES+A256KW`.
    P384(p384::PublicKey),
    /// For `ECDH-ES+A256KW`.
    P521(p521::PublicKey),
}

impl PublicKey {
    /// Reads a key in PEM, DER or JWK.
    ///
    /// # Errors
    /// See [`KeyFormatError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyFormatError> {
        let key = match Form::of(bytes) {
            Form::Pem => Self::from_pem(bytes),
            Form::Jwk => jwk::public(bytes),
            Form::Der => Self::from_spki(bytes)
                .or_else(|| rsa::PublicKey::from_pkcs1_der(bytes).ok().map(Self::Rsa))
                .ok_or(KeyFormatError::Der),
        }?;
        match &key {
            Self::Rsa(rsa) => strong(rsa.size()).map(|()| key),
            _ => Ok(key),
        }
    }

    fn from_spki(der: &[u8]) -> Option<Self> {
        let rsa = rsa::PublicKey::from_public_key_der(der).ok().map(Self::Rsa);
        rsa.or_else(|| {
            p256::PublicKey::from_public_key_der(der)
                .ok()
                .map(Self::P256)
        })
        .or_else(|| {
            p384::PublicKey::from_public_key_der(der)
                .ok()
                .map(Self::P384)
        })
        .or_else(|| {
            p521::PublicKey::from_public_key_der(der)
                .ok()
                .map(Self::P521)
        })
    }

    /// Reads a PEM key.
    ///
    /// # Errors
    /// See [`KeyFormatError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyFormatError> {
        let (label, der) = decode(pem)?;
        let key = match label.as_str() {
            "RSA PUBLIC KEY" => rsa::PublicKey::from_pkcs1_der(&der).ok().map(Self::Rsa),
            "PUBLIC KEY" => Self::from_spki(&der),
            _ => {
                return Err(KeyFormatError::Label {
                    label,
                    expected: "a public key",
                });
            }
        };
        key.ok_or(KeyFormatError::Algorithm(label))
    }
}

/// A recipient's private key.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
#[derive(Clone)]
pub enum PrivateKey {
    /// For `RSA-OAEP` and `RSA-OAEP-256`.
    Rsa(Box<rsa::PrivateKey>),
    /// For `ECDH-ES+A256KW`.
    P256(p256::SecretKey),
    /// For `ECDH-ES+A256KW`.
    P384(p384::SecretKey),
    /// For `ECDH-ES+A256KW`.
    P521(p521::SecretKey),
}

impl PrivateKey {
    /// Reads a key in PEM, DER or JWK.
    ///
    /// # Errors
    /// See [`KeyFormatError`]; no error quotes any of the key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyFormatError> {
        let key = match Form::of(bytes) {
            Form::Pem => Self::from_pem(bytes),
            Form::Jwk => jwk::private(bytes),
            Form::Der => Self::from_pkcs8(bytes)
                .or_else(|| Self::from_pkcs1(bytes))
                .or_else(|| Self::from_sec1(bytes))
                .ok_or(KeyFormatError::Der),
        }?;
        match &key {
            Self::Rsa(rsa) => strong(rsa.size()).map(|()| key),
            _ => Ok(key),
        }
    }

    fn from_pkcs1(der: &[u8]) -> Option<Self> {
        let key = rsa::PrivateKey::from_pkcs1_der(der).ok();
        key.map(|key| Self::Rsa(Box::new(key)))
    }

    fn from_sec1(der: &[u8]) -> Option<Self> {
        let p256 = p256::SecretKey::from_sec1_der(der).ok().map(Self::P256);
        p256.or_else(|| p384::SecretKey::from_sec1_der(der).ok().map(Self::P384))
            .or_else(|| p521::SecretKey::from_sec1_der(der).ok().map(Self::P521))
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let rsa = rsa::PrivateKey::from_pkcs8_der(der).ok();
        rsa.map(|key| Self::Rsa(Box::new(key)))
            .or_else(|| p256::SecretKey::from_pkcs8_der(der).ok().map(Self::P256))
            .or_else(|| p384::SecretKey::from_pkcs8_der(der).ok().map(Self::P384))
            .or_else(|| p521::SecretKey::from_pkcs8_der(der).ok().map(Self::P521))
    }

    /// Reads a PEM key.
    ///
    /// # Errors
    /// See [`KeyFormatError`]; no error quotes any of the key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyFormatError> {
        let (label, der) = decode(pem)?;
        let key = match label.as_str() {
            "RSA PRIVATE KEY" => Self::from_pkcs1(&der),
            "EC PRIVATE KEY" => Self::from_sec1(&der),
            "PRIVATE KEY" => Self::from_pkcs8(&der),
            _ => {
                return Err(KeyFormatError::Label {
                    label,
                    expected: "an unencrypted private key",
                });
            }
        };
        key.ok_or(KeyFormatError::Algorithm(label))
    }
}

/// How a key file is written, by its first bytes.
enum Form {
    Pem,
    Der,
    Jwk,
}

impl Form {
    fn of(bytes: &[u8]) -> Self {
        match bytes.trim_ascii_start() {
            [b'{', ..] => Self::Jwk,
            [b'-', b'-', ..] => Self::Pem,
            _ => Self::Der,
        }
    }
}

fn strong(modulus_bytes: usize) -> Result<(), KeyFormatError> {
    let bits = modulus_bytes * 8;
    (bits >= RSA_BITS_MIN)
        .then_some(())
        .ok_or(KeyFormatError::Weak(bits))
}

fn decode(pem: &[u8]) -> Result<(String, Zeroizing<Vec<u8>>), KeyFormatError> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(KeyFormatError::TooLong);
    }
    // `openssl ecparam -genkey` writes a block of parameters in front of the key.
    const PARAMETERS_END: &[u8] = b"-----END EC PARAMETERS-----";
    let start = pem
        .windows(PARAMETERS_END.len())
        .position(|window| window == PARAMETERS_END);
    let pem = start.map_or(pem, |start| {
        pem[start + PARAMETERS_END.len()..].trim_ascii_start()
    });
    let (label, der) = pem_rfc7468::decode_vec(pem).map_err(|_| KeyFormatError::Pem)?;
    Ok((label.to_owned(), Zeroizing::new(der)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Private and public half, made for these tests with `openssl`.
    pub(in crate::jwe) const RSA: (&str, &str) = (
        include_str!("../../tests/vectors/rsa.pem"),
        include_str!("../../tests/vectors/rsa.pub.pem"),
    );
    pub(in crate::jwe) const EC_P256: (&str, &str) = (
        include_str!("../../tests/vectors/p256.pem"),
        include_str!("../../tests/vectors/p256.pub.pem"),
    );
    pub(in crate::jwe) const EC_P384: (&str, &str) = (
        include_str!("../../tests/vectors/p384.pem"),
        include_str!("../../tests/vectors/p384.pub.pem"),
    );
    pub(in crate::jwe) const EC_P521: (&str, &str) = (
        include_str!("../../tests/vectors/p521.pem"),
        include_str!("../../tests/vectors/p521.pub.pem"),
    );

    #[test]
    fn a_key_behind_its_parameters_is_the_same_key() {
        let sec1 =
            PrivateKey::from_pem(include_bytes!("../../tests/vectors/p256.sec1.pem")).unwrap();
        let pkcs8 = PrivateKey::from_pem(EC_P256.0.as_bytes()).unwrap();
        let (PrivateKey::P256(sec1), PrivateKey::P256(pkcs8)) = (sec1, pkcs8) else {
            panic!("keys on P-256")
        };
        assert_eq!(sec1.public_key(), pkcs8.public_key());
    }

    /// The members of a JWK, from the halves of its key.
    fn jwk_of(private: &p256::SecretKey) -> (String, String) {
        use base64::Engine as _;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        use p256::elliptic_curve::sec1::ToSec1Point;
        let point = private.public_key().to_sec1_point(false);
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (x, y) = point.as_bytes()[1..].split_at(32);
        let public = format!(
            r#""kty":"EC","crv":"P-256","kid":"k","x":"{}","y":"{}""#,
            coordinate(x),
            coordinate(y)
        );
        let d = coordinate(&private.to_bytes());
        (
            format!("{{{public}}}"),
            format!(r#"{{{public},"d":"{d}"}}"#),
        )
    }

    #[test]
    fn a_key_in_der_or_jwk_is_the_same_key() {
        for (private, public) in [RSA, EC_P256, EC_P384, EC_P521] {
            let (_, der) = decode(private.as_bytes()).unwrap();
            let (_, public_der) = decode(public.as_bytes()).unwrap();
            let key = PrivateKey::from_bytes(&der).unwrap();
            let recipient = PublicKey::from_bytes(&public_der).unwrap();
            let message = crate::jwe::wrap(&[recipient], b"x").unwrap();
            assert_eq!(
                crate::jwe::unwrap(&message, &[key]).unwrap().as_slice(),
                b"x"
            );
        }
        let PrivateKey::P256(key) = PrivateKey::from_pem(EC_P256.0.as_bytes()).unwrap() else {
            panic!("a key on P-256")
        };
        let (public, private) = jwk_of(&key);
        let recipient = PublicKey::from_bytes(public.as_bytes()).unwrap();
        let message = crate::jwe::wrap(&[recipient], b"x").unwrap();
        let key = PrivateKey::from_bytes(private.as_bytes()).unwrap();
        assert!(crate::jwe::unwrap(&message, &[key]).is_ok());
        assert!(matches!(
            PublicKey::from_bytes(private.as_bytes()),
            Err(KeyFormatError::PrivateJwk)
        ));
        for bad in [
            &b""[..],
            b"{}",
            b"{\"kty\":\"oct\"}",
            b"\x30\x03\x02\x01\x00",
            b"text",
        ] {
            assert!(PublicKey::from_bytes(bad).is_err());
            assert!(PrivateKey::from_bytes(bad).is_err());
        }
    }

    /// The RSA key of these tests, as JSON.
    #[test]
    fn an_rsa_key_in_jwk_opens_what_its_public_half_wraps() {
        let jwk = include_str!("../../tests/vectors/rsa.jwk");
        let key = PrivateKey::from_bytes(jwk.as_bytes()).unwrap();
        let mut public: serde_json::Value = serde_json::from_str(jwk).unwrap();
        for name in ["d", "p", "q", "dp", "dq", "qi"] {
            public.as_object_mut().unwrap().remove(name);
        }
        let public = PublicKey::from_bytes(public.to_string().as_bytes()).unwrap();
        let message = crate::jwe::wrap(&[public], b"x").unwrap();
        assert!(crate::jwe::unwrap(&message, &[key]).is_ok());
    }

    #[test]
    fn a_public_key_is_not_taken_for_a_private_one() {
        assert!(matches!(
            PrivateKey::from_pem(RSA.1.as_bytes()),
            Err(KeyFormatError::Label { .. })
        ));
        assert!(matches!(
            PublicKey::from_pem(RSA.0.as_bytes()),
            Err(KeyFormatError::Label { .. })
        ));
        assert!(matches!(
            PublicKey::from_pem(b"no key"),
            Err(KeyFormatError::Pem)
        ));
    }
}
