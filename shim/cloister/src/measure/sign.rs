//! The owner's key that signs a CoRIM. Both curves sign without chance (RFC 6979), so that the same
//! values make the same document.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::EncodePublicKey as _;
use policies::corim::Algorithm;
use sha2::{Digest, Sha256};

/// A private key on one of two curves.
pub(crate) enum Signer {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signer({})", self.algorithm())
    }
}

impl Signer {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let pem = super::super::key::read_text(path)?;
        Self::from_pem(&pem).with_context(|| {
            format!(
                "{} is no private key in PEM (PKCS#8, not encrypted) on P-256 or P-384: make one with \
                 `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384`",
                path.display()
            )
        })
    }

    fn from_pem(pem: &str) -> Option<Self> {
        use p256::pkcs8::DecodePrivateKey;

        if let Ok(key) = p256::SecretKey::from_pkcs8_pem(pem) {
            return Some(Self::P256(key.into()));
        }
        let key = p384::SecretKey::from_pkcs8_pem(pem).ok()?;
        Some(Self::P384(key.into()))
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256(_) => Algorithm::Es256,
            Self::P384(_) => Algorithm::Es384,
        }
    }

    /// How a broker finds the key: SHA-256 of its SubjectPublicKeyInfo.
    pub(crate) fn key_id(&self) -> anyhow::Result<Vec<u8>> {
        let key = match self {
            Self::P256(key) => key.verifying_key().to_public_key_der(),
            Self::P384(key) => key.verifying_key().to_public_key_der(),
        };
        let key = key.context("write the public key")?;
        Ok(Sha256::digest(key.as_bytes()).to_vec())
    }

    /// The signature as COSE has it: both numbers at full length.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
        }
    }
}
