//! What a signature can be for: the manifest that a name led to, and the one that was taken from it.

use bytes::Bytes;

use super::refusal::Reason;
use crate::digest::Digest;
use crate::manifest::{Document, ManifestError};

/// One manifest or index, with the digest that it was asked for by.
#[derive(Debug, Clone)]
pub struct Signable {
    /// The digest.
    pub digest: Digest,
    /// The exact bytes.
    pub bytes: Bytes,
}

/// The manifest of an image; where the name led to an index, the index too. A signature for either counts: the index's
/// because the manifest is one of those that it lists.
#[derive(Debug, Clone)]
pub struct Documents(Vec<Signable>);

/// Documents that do not belong together.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// Other bytes than the digest's.
    #[error("the manifest {expected} has the digest {found}")]
    Digest {
        /// What it should have.
        expected: Digest,
        /// What it has.
        found: Digest,
    },
    /// Not one of the index's.
    #[error("the manifest {manifest} is not in the index {index}")]
    NotListed {
        /// The manifest.
        manifest: Digest,
        /// The index.
        index: Digest,
    },
    /// No index.
    #[error(transparent)]
    Index(#[from] ManifestError),
}

impl Documents {
    /// What the name led to, and what was taken from it if that is an index.
    ///
    /// # Errors
    /// When the digests are wrong, or the second is not in the first.
    pub fn new(top: Signable, taken: Option<Signable>) -> Result<Self, DocumentsError> {
        for it in [Some(&top), taken.as_ref()].into_iter().flatten() {
            it.digest
                .check(&it.bytes)
                .map_err(|found| DocumentsError::Digest {
                    expected: it.digest.clone(),
                    found,
                })?;
        }
        if let Some(taken) = &taken {
            // Layers have a cap of their own; here none are read.
            let listed = match Document::read(&top.bytes, None, usize::MAX)? {
                Document::Index(entries) => entries
                    .iter()
                    .any(|entry| entry.descriptor.digest == taken.digest),
                Document::Image(_) => false,
            };
            if !listed {
                return Err(DocumentsError::NotListed {
                    manifest: taken.digest.clone(),
                    index: top.digest,
                });
            }
        }
        Ok(Self([Some(top), taken].into_iter().flatten().collect()))
    }

    /// Each, in the order in which signatures are looked for.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Signable> {
        self.0.iter()
    }

    /// The bytes that have the digest; its algorithm need not be the one that we asked by.
    pub(super) fn check(&self, signed: &Digest) -> Result<&[u8], Reason> {
        let mut documents = self.0.iter();
        documents
            .find(|document| signed.check(&document.bytes).is_ok())
            .map(|document| document.bytes.as_ref())
            .ok_or_else(|| Reason::Digest {
                signed: signed.clone(),
            })
    }
}
