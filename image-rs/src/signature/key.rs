//! Public keys of signers and logs: ECDSA P-256 and P-384, RSA, Ed25519, as PEM of a `SubjectPublicKeyInfo`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature as rs;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const RSA: &str = "1.2.840.113549.1.1.1";
const ED25519: &str = "1.3.101.112";
/// Cap on a block of PEM, in bytes; an RSA key of 8192 bits has 1.4 KiB.
const PEM_BYTES_MAX: usize = 16 * 1024;
/// How much of another label is told, in characters.
const LABEL_SHOWN: usize = 40;

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

    /// The four bytes by which a signed note names the key of `signer`.
    pub(crate) fn note_hint(&self, signer: &str) -> [u8; 4] {
        const ED25519_NOTE: u8 = 1;
        let hash: [u8; 32] = match self.kind {
            Kind::Ed25519 => Sha256::new()
                .chain_update(signer)
                .chain_update([b'\n', ED25519_NOTE])
                .chain_update(&self.bits)
                .finalize()
                .into(),
            Kind::P256 | Kind::P384 | Kind::Rsa => self.id(),
        };
        [hash[0], hash[1], hash[2], hash[3]]
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

/// The DER of every block in `pem`, all of which must have the label. Lines may have any length, as Go takes them.
pub(super) fn all_pem(pem: &[u8], label: &str, cap: usize) -> Result<Vec<Vec<u8>>, String> {
    let bad = || format!("it is not a {label} in PEM");
    let text = std::str::from_utf8(pem).map_err(|_| bad())?;
    let (mut rest, mut blocks) = (text.trim(), Vec::new());
    while !rest.is_empty() {
        if blocks.len() == cap {
            return Err(format!("it has more than {cap} of {label}"));
        }
        let (found, base64, next) = block(rest).ok_or_else(bad)?;
        if found != label {
            let found: String = found.chars().take(LABEL_SHOWN).collect();
            return Err(format!("it is a {found} and not a {label}"));
        }
        if base64.len() > PEM_BYTES_MAX {
            return Err(format!("a {label} has more than {PEM_BYTES_MAX} bytes"));
        }
        blocks.push(decode(base64).ok_or_else(bad)?);
        rest = next.trim_start();
    }
    Ok(blocks)
}

/// The DER of a single block, whatever its label is.
pub(super) fn any_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let (_, base64, rest) = block(std::str::from_utf8(pem).ok()?.trim())?;
    if rest.trim().is_empty() {
        decode(base64)
    } else {
        None
    }
}

/// The label and the base64 of the first block, and what follows it. Text before it is a comment, as in files of
/// authorities.
fn block(text: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) = text.split_once("-----BEGIN ")?;
    let (label, rest) = rest.split_once("-----")?;
    let (base64, rest) = rest.split_once("-----END ")?;
    let rest = rest.strip_prefix(label)?.strip_prefix("-----")?;
    Some((label, base64, rest))
}

fn decode(base64: &str) -> Option<Vec<u8>> {
    let base64: String = base64.split_ascii_whitespace().collect();
    STANDARD.decode(base64).ok()
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
        let one_line = pem.replace('\n', "").replace("KEY-----", "KEY-----\n");
        assert_eq!(PublicKey::from_pem(one_line.as_bytes()).unwrap(), key);
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
