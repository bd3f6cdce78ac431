//! Who signs reference values: public keys that the configuration names, and the check of a CoRIM
//! under them.

use std::{io, path::PathBuf};

use policies::{
    corim::{Algorithm, Corim, CorimError, SignedCorim},
    reference::{Provenance, ReferenceValue},
};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use sha2::{Digest, Sha256};

use crate::{config, file};

/// Keys that may be configured.
const SIGNERS: usize = 64;
/// Bytes of a key's id that an error shows.
const SHOWN: usize = 32;

/// What stands in front of the key itself in a SubjectPublicKeyInfo (RFC 5480, RFC 8410): each kind of
/// key has one form.
const KINDS: [(Algorithm, &[u8], usize); 3] = [
    (
        Algorithm::Es256,
        &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ],
        65,
    ),
    (
        Algorithm::Es384,
        &[
            0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x05, 0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
        ],
        97,
    ),
    (
        Algorithm::EdDsa,
        &[
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ],
        32,
    ),
];

/// Whose reference values are taken.
pub(crate) struct Signers {
    keys: Vec<Signer>,
    accept_unsigned: bool,
}

struct Signer {
    algorithm: Algorithm,
    /// SHA-256 of the SubjectPublicKeyInfo.
    id: [u8; 32],
    key: Vec<u8>,
}

impl Signers {
    /// Reads the keys.
    pub(crate) fn read(config: &config::Reference) -> Result<Self, SignerError> {
        let mut keys = Vec::new();
        for path in &config.signers {
            let failed = |source| SignerError::Read {
                path: path.clone(),
                source,
            };
            let no_key = || SignerError::Key { path: path.clone() };
            let pem = file::read(path, file::SMALL).map_err(failed)?;
            let before = keys.len();
            for found in SubjectPublicKeyInfoDer::pem_slice_iter(&pem) {
                let found = found.map_err(|_| no_key())?;
                keys.push(Signer::new(&found).ok_or_else(no_key)?);
            }
            if keys.len() == before {
                return Err(no_key());
            }
        }
        if keys.len() > SIGNERS {
            return Err(SignerError::Many);
        }
        Ok(Self {
            keys,
            accept_unsigned: config.accept_unsigned_corim,
        })
    }

    /// The reference values of a CoRIM that one of the keys signed; or that nobody signed, where that
    /// is accepted here or by `holder`, who brought it.
    pub(crate) fn reference_values(
        &self,
        bytes: &[u8],
        holder: &str,
        accept_unsigned: bool,
    ) -> Result<Vec<ReferenceValue>, SignatureError> {
        match Corim::read(bytes)? {
            Corim::Signed(signed) => signed.reference_values(|signed| self.check(signed)),
            Corim::Unsigned(manifest) if accept_unsigned || self.accept_unsigned => {
                let provenance = Provenance::Unsigned(holder.to_owned());
                Ok(manifest.reference_values(&provenance)?)
            }
            Corim::Unsigned(_) => Err(SignatureError::Unsigned),
        }
    }

    /// The id of the key that signed.
    fn check(&self, corim: &SignedCorim) -> Result<String, SignatureError> {
        let fitting = || {
            self.keys
                .iter()
                .filter(|key| key.algorithm == corim.algorithm)
        };
        let named = fitting().find(|key| key.is(&corim.key_id));
        let signed = match named {
            Some(key) => Some(key).filter(|key| key.signed(corim)),
            // Signers have names of their own for their keys.
            None => fitting().find(|key| key.signed(corim)),
        };
        if let Some(key) = signed {
            return Ok(hex::encode(key.id));
        }
        let shown = hex::encode(&corim.key_id[..corim.key_id.len().min(SHOWN)]);
        let unknown = named.is_none() && (fitting().next().is_none() || !shown.is_empty());
        if unknown {
            return Err(SignatureError::Unknown {
                algorithm: corim.algorithm,
                key_id: shown,
            });
        }
        Err(SignatureError::Wrong)
    }
}

impl Signer {
    fn new(spki: &[u8]) -> Option<Self> {
        KINDS.iter().find_map(|(algorithm, start, length)| {
            let key = spki.strip_prefix(*start)?;
            let uncompressed = *algorithm == Algorithm::EdDsa || key.first() == Some(&4);
            (key.len() == *length && uncompressed).then(|| Self {
                algorithm: *algorithm,
                id: Sha256::digest(spki).into(),
                key: key.to_vec(),
            })
        })
    }

    /// Whether a key id in a CoRIM is this key's: the digest itself, or its hex.
    fn is(&self, key_id: &[u8]) -> bool {
        key_id == self.id || key_id == hex::encode(self.id).as_bytes()
    }

    fn signed(&self, corim: &SignedCorim) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.algorithm {
            Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED,
            Algorithm::Es384 => &ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDsa => &ED25519,
        };
        UnparsedPublicKey::new(algorithm, &self.key)
            .verify(&corim.message, &corim.signature)
            .is_ok()
    }
}

/// A key of the configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// It cannot be read.
    #[error("[reference] signers: read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a key, or one of another kind.
    #[error(
        "[reference] signers: {path} is no public key in PEM of P-256, P-384 or Ed25519",
        path = path.display()
    )]
    Key {
        /// The file.
        path: PathBuf,
    },
    /// Too many.
    #[error("[reference] signers: more than {SIGNERS} keys")]
    Many,
}

/// A CoRIM whose values are not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SignatureError {
    /// It cannot be read.
    #[error(transparent)]
    Corim(#[from] CorimError),
    /// Nobody signed it, and nobody said that it may be taken.
    #[error(
        "CoRIM is not signed: say `accept_unsigned` (`--accept-unsigned`) to take it as its holder's word"
    )]
    Unsigned,
    /// Signed by a key that is not configured.
    #[error(
        "CoRIM is signed with {algorithm} by a key (id `{key_id}`) that is none of [reference] signers: add the signer's public key there"
    )]
    Unknown {
        /// How.
        algorithm: Algorithm,
        /// Its id in the CoRIM, in hex; empty where it has none.
        key_id: String,
    },
    /// Altered, or signed by another key than it says.
    #[error(
        "CoRIM's signature does not verify under [reference] signers: it was altered, or another key made it"
    )]
    Wrong,
}

#[cfg(test)]
mod tests;
