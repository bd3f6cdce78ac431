//! The ID block: what the owner signs so that the security processor starts nothing but one digest
//! under one policy, and says in each report who signed (56860, 8.18, "SNP_LAUNCH_FINISH").
//!
//! QEMU takes both structures in base64, as `id-block` and `id-auth`.

use std::fmt;

use p384::{
    SecretKey,
    ecdsa::{Signature, SigningKey, signature::Signer},
    pkcs8::DecodePrivateKey,
};
use sha2::{Digest, Sha384};

use super::LaunchDigest;

/// Bytes of an ID block.
pub const ID_BLOCK_BYTES: usize = 96;
/// Bytes of the ID authentication information.
pub const ID_AUTH_BYTES: usize = 4096;
/// Bytes of a key's PEM.
const PEM_BYTES: usize = 16 * 1024;

/// The version of the block.
const VERSION: u32 = 1;
/// ECDSA on P-384 with SHA-384.
const ALGORITHM: u32 = 1;
/// P-384.
const CURVE: u32 = 2;
/// Bytes of a number in a key or a signature, the least first.
const NUMBER: usize = 72;
const SIGNATURE_BYTES: usize = 512;
const KEY_BYTES: usize = 1028;

/// Where the parts of the authentication information begin.
const BLOCK_SIGNATURE: usize = 0x40;
const ID_KEY: usize = BLOCK_SIGNATURE + SIGNATURE_BYTES;
const KEY_SIGNATURE: usize = 0x680;
const AUTHOR_KEY: usize = KEY_SIGNATURE + SIGNATURE_BYTES;

/// What may start, and what the owner calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdBlock {
    /// The digest that the launch must have.
    pub digest: LaunchDigest,
    /// The owner's name for a family of guests.
    pub family_id: [u8; 16],
    /// The owner's name for this one.
    pub image_id: [u8; 16],
    /// The owner's number, which rises with each guest that must not be replaced by an older one.
    pub guest_svn: u32,
    /// The policy that the launch must have.
    pub policy: u64,
}

/// The ID block's signature and the keys.
#[derive(Clone, PartialEq, Eq)]
pub struct IdAuth(Box<[u8; ID_AUTH_BYTES]>);

impl fmt::Debug for IdAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdAuth")
    }
}

/// A private key on P-384 that signs ID blocks, or other such keys.
pub struct IdKey(SigningKey);

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdKey({})", hex::encode(self.digest().0))
    }
}

/// How a report names a key: SHA-384 of its structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest(pub [u8; 48]);

/// A key that cannot sign an ID block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdKeyError {
    /// Of another form.
    #[error(
        "the key is not one private key in PEM (PRIVATE KEY or EC PRIVATE KEY, not encrypted): make one \
         with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384`"
    )]
    Pem,
    /// Of another curve.
    #[error("the key is not on P-384, the one curve that SNP takes for ID blocks")]
    Curve,
}

impl IdKey {
    /// Reads a key in PEM.
    ///
    /// # Errors
    /// When it is none, or of another curve.
    pub fn from_pem(pem: &str) -> Result<Self, IdKeyError> {
        if pem.len() > PEM_BYTES {
            return Err(IdKeyError::Pem);
        }
        let (label, der) = pem_rfc7468::decode_vec(pem.as_bytes()).map_err(|_| IdKeyError::Pem)?;
        let der = zeroize::Zeroizing::new(der);
        let key = match label {
            "PRIVATE KEY" => SecretKey::from_pkcs8_der(&der).map_err(|_| IdKeyError::Curve),
            "EC PRIVATE KEY" => SecretKey::from_sec1_der(&der).map_err(|_| IdKeyError::Curve),
            _ => Err(IdKeyError::Pem),
        };
        Ok(Self(key?.into()))
    }

    /// How reports name the key.
    #[must_use]
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha384::digest(self.public()).into())
    }

    fn public(&self) -> [u8; KEY_BYTES] {
        let point = self.0.verifying_key().to_sec1_point(false);
        let mut key = [0; KEY_BYTES];
        key[..4].copy_from_slice(&CURVE.to_le_bytes());
        // 0x04, X, Y; a key is never the point without coordinates.
        let numbers = point.as_bytes().get(1..).unwrap_or_default();
        for (at, number) in [4, 4 + NUMBER].into_iter().zip(numbers.chunks(48)) {
            reversed(&mut key[at..at + NUMBER], number);
        }
        key
    }

    /// The signature; the same key and bytes have the same one (RFC 6979).
    fn sign(&self, bytes: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let made: Signature = self.0.sign(bytes);
        let mut signature = [0; SIGNATURE_BYTES];
        let numbers = made.to_bytes();
        for (at, number) in [0, NUMBER].into_iter().zip(numbers.chunks(48)) {
            reversed(&mut signature[at..at + NUMBER], number);
        }
        signature
    }
}

/// A number with its least byte first.
fn reversed(field: &mut [u8], number: &[u8]) {
    for (to, from) in field.iter_mut().zip(number.iter().rev()) {
        *to = *from;
    }
}

impl IdBlock {
    /// The block of a digest under a policy, with no names and number 0.
    #[must_use]
    pub const fn new(digest: LaunchDigest, policy: u64) -> Self {
        Self {
            digest,
            family_id: [0; 16],
            image_id: [0; 16],
            guest_svn: 0,
            policy,
        }
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; ID_BLOCK_BYTES] {
        let mut bytes = [0; ID_BLOCK_BYTES];
        bytes[..48].copy_from_slice(&self.digest.0);
        bytes[48..64].copy_from_slice(&self.family_id);
        bytes[64..80].copy_from_slice(&self.image_id);
        bytes[80..84].copy_from_slice(&VERSION.to_le_bytes());
        bytes[84..88].copy_from_slice(&self.guest_svn.to_le_bytes());
        bytes[88..].copy_from_slice(&self.policy.to_le_bytes());
        bytes
    }

    /// Signs the block; an author's key vouches for the ID key where there is one.
    #[must_use]
    pub fn sign(&self, id: &IdKey, author: Option<&IdKey>) -> IdAuth {
        let mut auth = Box::new([0; ID_AUTH_BYTES]);
        let mut put = |at: usize, part: &[u8]| auth[at..at + part.len()].copy_from_slice(part);
        let public = id.public();
        put(0, &ALGORITHM.to_le_bytes());
        put(BLOCK_SIGNATURE, &id.sign(&self.to_bytes()));
        put(ID_KEY, &public);
        if let Some(author) = author {
            put(4, &ALGORITHM.to_le_bytes());
            put(KEY_SIGNATURE, &author.sign(&public));
            put(AUTHOR_KEY, &author.public());
        }
        IdAuth(auth)
    }
}

impl IdAuth {
    /// The structure's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0[..]
    }
}
