//! Public keys of signers and logs: ECDSA P-256 and P-384, RSA, Ed25519, as PEM of a `SubjectPublicKeyInfo`.

use ring::signature as rs;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const RSA: &str = "1.2.840.113549.1.1.1";
const ED25519: &str = "1.3.101.112";
/// Cap on a key's PEM, in bytes; an RSA key of 8192 bits has 1.4 KiB.
const PEM_BYTES_MAX: usize = 16 * 1024;

/// A key that verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    kind: Kind,
    /// The point, the `RSAPublicKey` or the 32 bytes.
    bits: Vec<u8>,
    spki: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Rsa,
    Ed25519,
}

impl PublicKey {
    /// Reads `-----BEGIN PUBLIC KEY-----`, and nothing behind it.
    ///
    /// # Errors
    /// What it is instead.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = one_pem(pem, "PUBLIC KEY")?;
        Self::from_spki(&der)
    }

    /// Reads a `SubjectPublicKeyInfo` in DER.
    ///
    /// # Errors
    /// What it is instead.
    pub(crate) fn from_spki(der: &[u8]) -> Result<Self, String> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(der)
            .map_err(|_| "it is not a SubjectPublicKeyInfo".to_owned())?;
        if !rest.is_empty() {
            return Err("something stands behind the key".to_owned());
        }
        let algorithm = info.algorithm.algorithm.to_id_string();
        let curve = info
            .algorithm
            .parameters
            .as_ref()
            .and_then(|any| any.as_oid().ok())
            .map(|oid| oid.to_id_string());
        let kind = match (algorithm.as_str(), curve.as_deref()) {
            (EC, Some(P256)) => Kind::P256,
            (EC, Some(P384)) => Kind::P384,
            (RSA, _) => Kind::Rsa,
            (ED25519, None) => Kind::Ed25519,
            (other, curve) => {
                return Err(format!(
                    "its algorithm {other} {} is not supported: use ECDSA with P-256 or P-384, RSA or Ed25519",
                    curve.unwrap_or_default()
                ));
            }
        };
        Ok(Self {
            kind,
            bits: info.subject_public_key.data.to_vec(),
            spki: der.to_vec(),
        })
    }

    /// Whether `signature` is this key's over `message`. ECDSA is in ASN.1 with SHA-256, or SHA-384 for P-384; RSA is
    /// PKCS #1 v1.5 with SHA-256.
    #[must_use]
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithms: &[&dyn rs::VerificationAlgorithm] = match self.kind {
            Kind::P256 => &[&rs::ECDSA_P256_SHA256_ASN1],
            // cosign hashes with SHA-256 whatever the curve; bundles go by the curve.
            Kind::P384 => &[&rs::ECDSA_P384_SHA384_ASN1, &rs::ECDSA_P384_SHA256_ASN1],
            Kind::Rsa => &[&rs::RSA_PKCS1_2048_8192_SHA256],
            Kind::Ed25519 => &[&rs::ED25519],
        };
        algorithms.iter().any(|algorithm| {
            rs::UnparsedPublicKey::new(*algorithm, &self.bits)
                .verify(message, signature)
                .is_ok()
        })
    }

    /// The `SubjectPublicKeyInfo`.
    #[must_use]
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the `SubjectPublicKeyInfo`: how logs name their keys.
    #[must_use]
    pub(crate) fn id(&self) -> [u8; 32] {
        Sha256::digest(&self.spki).into()
    }
}

/// The DER of the one block in `pem`, which must have the label.
pub(super) fn one_pem(pem: &[u8], label: &str) -> Result<Vec<u8>, String> {
    let mut blocks = all_pem(pem, label, 1)?;
    blocks
        .pop()
        .ok_or_else(|| format!("it has no {label} in PEM"))
}

/// The DER of every block in `pem`, all of which must have the label.
pub(super) fn all_pem(pem: &[u8], label: &str, cap: usize) -> Result<Vec<Vec<u8>>, String> {
    let text = std::str::from_utf8(pem).map_err(|_| format!("it is not a {label} in PEM"))?;
    let end = "-----END ";
    let (mut rest, mut blocks) = (text.trim(), Vec::new());
    while !rest.is_empty() {
        if blocks.len() == cap {
            return Err(format!("it has more than {cap} of {label}"));
        }
        let close = rest
            .find(end)
            .and_then(|at| Some(at + end.len() + rest[at + end.len()..].find("-----")? + 5))
            .ok_or_else(|| format!("it is not a {label} in PEM"))?;
        let block = &rest[..close];
        if block.len() > PEM_BYTES_MAX {
            return Err(format!("a {label} has more than {PEM_BYTES_MAX} bytes"));
        }
        let (found, der) = pem_rfc7468::decode_vec(block.as_bytes())
            .map_err(|error| format!("it is not a {label} in PEM: {error}"))?;
        if found != label {
            return Err(format!("it is a {found} and not a {label}"));
        }
        blocks.push(der);
        rest = rest[close..].trim_start();
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_key_in_pem_is_a_key() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let pem = pair.public_key_pem();
        let key = PublicKey::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(
            key.spki(),
            rcgen::PublicKeyData::subject_public_key_info(&pair)
        );
        let error = PublicKey::from_pem(format!("{pem}{pem}").as_bytes()).unwrap_err();
        assert!(error.contains("more than 1"), "{error}");
        let error = PublicKey::from_pem(pair.serialize_pem().as_bytes()).unwrap_err();
        assert!(error.contains("PRIVATE KEY"), "{error}");
        for bad in [
            "",
            "-----BEGIN PUBLIC KEY-----",
            "-----END -----",
            "----------END x-----é",
        ] {
            assert!(PublicKey::from_pem(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
