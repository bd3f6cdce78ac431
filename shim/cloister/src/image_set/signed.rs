//! `manifest.sig`: who answers for an image. The signature is over the manifest's bytes, and the manifest has
//! the digest of every file.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use guest_image::manifest::{FILE, Manifest};
use p256::ecdsa::signature::Verifier;
use p256::pkcs8::{DecodePublicKey, EncodePublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::measure::{Signer, read_file};

/// The signature's file, beside the manifest.
const SIGNATURE: &str = "manifest.sig";
/// The version of its format.
const VERSION: u32 = 1;
/// What is signed before the manifest's bytes, so that a signature is good for nothing else.
const CONTEXT: &[u8] = b"cloister guest image manifest v1\n";
/// Bytes of a manifest, and of a signature's file.
const MANIFEST_BYTES: usize = 1 << 20;
const SIGNATURE_BYTES: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    version: u32,
    /// `ES256` or `ES384`.
    algorithm: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo, in hex.
    key_id: String,
    /// Both numbers at full length, in base64.
    signature: String,
}

/// The owner's public key.
enum Key {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
}

/// Signs the manifest of an image whose files are those of it, with another number where one is given; gives
/// the signature's path.
pub(super) fn sign(dir: &Path, key: &Path, number: Option<u64>) -> anyhow::Result<PathBuf> {
    let signer = Signer::read(key)?;
    let mut manifest = bytes(dir)?;
    let mut parsed = Manifest::parse(dir, &manifest)?;
    parsed.verify(dir)?;
    if let Some(number) = number.filter(|number| *number != parsed.number) {
        parsed.number = number;
        manifest = super::put(dir, &parsed)?;
    }
    let signature = Signature {
        version: VERSION,
        algorithm: signer.algorithm().to_string(),
        key_id: hex::encode(signer.key_id()?),
        signature: STANDARD.encode(signer.sign(&message(&manifest))),
    };
    let path = dir.join(SIGNATURE);
    let text = serde_json::to_string_pretty(&signature).context("write JSON")? + "\n";
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The manifest of an image that the owner signed and whose files are those of it: the bytes that were verified are
/// the ones that are parsed, whatever becomes of the file.
pub(super) fn verify(dir: &Path, key: &Path) -> anyhow::Result<Manifest> {
    let key = Key::read(key)?;
    let path = dir.join(SIGNATURE);
    let text = read_file(&path, SIGNATURE_BYTES)
        .context("it is not signed; `cloister image-set sign` does it")?;
    let signature: Signature = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no signature of a manifest", path.display()))?;
    let found = signature.version;
    ensure!(
        found == VERSION,
        "{} is of version {found}, and this program knows version {VERSION}",
        path.display()
    );
    let id = hex::encode(key.id()?);
    ensure!(
        signature.key_id == id && signature.algorithm == key.algorithm(),
        "it is signed by the {} key {}, and not by {id}",
        shown(&signature.algorithm),
        shown(&signature.key_id)
    );
    let numbers = STANDARD.decode(&signature.signature);
    let numbers = numbers.context("the signature is not base64")?;
    let manifest = bytes(dir)?;
    ensure!(
        key.verifies(&message(&manifest), &numbers),
        "the signature is not of this manifest"
    );
    let manifest = Manifest::parse(dir, &manifest)?;
    manifest.verify(dir)?;
    Ok(manifest)
}

/// The manifest's bytes.
fn bytes(dir: &Path) -> anyhow::Result<Vec<u8>> {
    read_file(&dir.join(FILE), MANIFEST_BYTES)
}

fn message(manifest: &[u8]) -> Vec<u8> {
    [CONTEXT, manifest].concat()
}

/// Text of another's, short and printable.
fn shown(text: &str) -> String {
    let plain = text.chars().filter(char::is_ascii_alphanumeric);
    plain.take(64).collect()
}

impl Key {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let pem = read_file(path, SIGNATURE_BYTES)?;
        let pem = String::from_utf8_lossy(&pem);
        if let Ok(key) = p256::PublicKey::from_public_key_pem(&pem) {
            return Ok(Self::P256(key.into()));
        }
        match p384::PublicKey::from_public_key_pem(&pem) {
            Ok(key) => Ok(Self::P384(key.into())),
            Err(_) => bail!(
                "{} is no public key in PEM on P-256 or P-384: `openssl pkey -pubout` makes one of a private key",
                path.display()
            ),
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::P256(_) => "ES256",
            Self::P384(_) => "ES384",
        }
    }

    fn id(&self) -> anyhow::Result<Vec<u8>> {
        let key = match self {
            Self::P256(key) => key.to_public_key_der(),
            Self::P384(key) => key.to_public_key_der(),
        };
        let key = key.context("write the public key")?;
        Ok(Sha256::digest(key.as_bytes()).to_vec())
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::P256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
            Self::P384(key) => p384::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(message, &signature).is_ok()),
        }
    }
}
