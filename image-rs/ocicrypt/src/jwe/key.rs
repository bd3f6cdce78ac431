//! The keys of JWE recipients, read from PEM: RSA, and EC on P-256, P-384 and P-521.
//!
//! Public: `PUBLIC KEY` (SPKI) and `RSA PUBLIC KEY` (PKCS #1). Private: `PRIVATE KEY` (PKCS #8), `RSA PRIVATE KEY`
//! (PKCS #1) and `EC PRIVATE KEY` (SEC 1), not encrypted.

use p256::pkcs8::{DecodePrivateKey, DecodePublicKey};
use rsa::pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey};
use zeroize::Zeroizing;

/// Cap on the PEM text of a key, in bytes; RSA-16384 needs about 13 000.
const PEM_BYTES_MAX: usize = 32 * 1024;

/// Why a key cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyFormatError {
    /// A cap.
    #[error("a PEM key is longer than {PEM_BYTES_MAX} bytes")]
    TooLong,
    /// Not PEM.
    #[error("a key is not in PEM format")]
    Pem,
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
    /// Reads a PEM key.
    ///
    /// # Errors
    /// See [`KeyFormatError`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyFormatError> {
        let (label, der) = decode(pem)?;
        let key = match label.as_str() {
            "RSA PUBLIC KEY" => rsa::PublicKey::from_pkcs1_der(&der).ok().map(Self::Rsa),
            "PUBLIC KEY" => (rsa::PublicKey::from_public_key_der(&der)
                .ok()
                .map(Self::Rsa))
            .or_else(|| {
                p256::PublicKey::from_public_key_der(&der)
                    .ok()
                    .map(Self::P256)
            })
            .or_else(|| {
                p384::PublicKey::from_public_key_der(&der)
                    .ok()
                    .map(Self::P384)
            })
            .or_else(|| {
                p521::PublicKey::from_public_key_der(&der)
                    .ok()
                    .map(Self::P521)
            }),
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
    /// Reads a PEM key.
    ///
    /// # Errors
    /// See [`KeyFormatError`]; no error quotes any of the key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyFormatError> {
        let (label, der) = decode(pem)?;
        let key = match label.as_str() {
            "RSA PRIVATE KEY" => rsa::PrivateKey::from_pkcs1_der(&der)
                .ok()
                .map(|key| Self::Rsa(Box::new(key))),
            "EC PRIVATE KEY" => (p256::SecretKey::from_sec1_der(&der).ok().map(Self::P256))
                .or_else(|| p384::SecretKey::from_sec1_der(&der).ok().map(Self::P384))
                .or_else(|| p521::SecretKey::from_sec1_der(&der).ok().map(Self::P521)),
            "PRIVATE KEY" => (rsa::PrivateKey::from_pkcs8_der(&der)
                .ok()
                .map(|key| Self::Rsa(Box::new(key))))
            .or_else(|| p256::SecretKey::from_pkcs8_der(&der).ok().map(Self::P256))
            .or_else(|| p384::SecretKey::from_pkcs8_der(&der).ok().map(Self::P384))
            .or_else(|| p521::SecretKey::from_pkcs8_der(&der).ok().map(Self::P521)),
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
