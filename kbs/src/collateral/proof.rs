//! Which documents are needed together, and what they become when they verify.

use std::sync::Arc;

use evidence::{
    Tee,
    snp::{Generation, Product, Tcb},
};
use verifier::snp::{self, Crl, Role, Vek};

use super::{
    document::{Document, Item},
    stored::Held,
};

/// Bytes that name roots.
pub(super) type Digest = [u8; snp::ROOTS_DIGEST_BYTES];

/// By whose roots documents are verified.
#[derive(Clone)]
pub(super) enum Trust {
    Snp(Arc<snp::Roots>),
}

impl Trust {
    pub(super) fn kind(&self) -> Tee {
        match self {
            Self::Snp(roots) => roots.kind(),
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        match self {
            Self::Snp(roots) => roots.digest(),
        }
    }

    /// What the documents are, if they are whole and their vendor's.
    pub(super) fn prepare(&self, want: &Want, parts: &[Held]) -> Result<Ready, String> {
        let cause = |failure: snp::SnpFailure| failure.to_string();
        match (self, &want.documents()[..], parts) {
            (Self::Snp(roots), [document], [held]) => match &document.item {
                Item::Vcek { product, .. } => {
                    let vek = Vek::prepare(roots, *product, &held.stored.body).map_err(cause)?;
                    document.is_of(&vek)?;
                    Ok(Ready::Vek(Arc::new(vek)))
                }
                Item::AmdCrl { product } => {
                    let crl = Crl::prepare(roots, *product, &held.stored.body).map_err(cause)?;
                    if crl.issuer() != Role::Ark {
                        return Err(format!("it is the list of the {}", crl.issuer()));
                    }
                    Ok(Ready::Crls([crl].into()))
                }
                _ => Err("it is no document for SEV-SNP".to_owned()),
            },
            _ => Err("a document is missing".to_owned()),
        }
    }
}

/// Documents that are verified together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Want(Vec<Document>);

impl Want {
    pub(super) fn vcek(simulated: bool, generation: Generation, chip: &[u8], tcb: Tcb) -> Self {
        Self(vec![Document::vcek(simulated, generation, chip, tcb)])
    }

    pub(super) fn amd_crl(simulated: bool, product: Product) -> Self {
        Self(vec![Document::amd_crl(simulated, product)])
    }

    pub(super) fn documents(&self) -> &[Document] {
        &self.0
    }

    /// The document that an error names where it is about all.
    pub(super) fn first(&self) -> &Document {
        &self.0[0]
    }

    /// Whatever can be verified with these documents; some may be left over.
    pub(super) fn all_of(documents: &[Document]) -> Vec<Self> {
        let alone =
            |document: &&Document| matches!(document.item, Item::Vcek { .. } | Item::AmdCrl { .. });
        let alone = documents.iter().filter(alone);
        alone.map(|document| Self(vec![document.clone()])).collect()
    }
}

/// What an attestation needs.
#[derive(Clone)]
pub(super) enum Ready {
    Vek(Arc<Vek>),
    Crls(Arc<[Crl]>),
}

/// Verified documents, and what they became.
pub(super) struct Kept {
    pub(super) ready: Ready,
    pub(super) parts: Vec<Held>,
}

impl Kept {
    pub(super) fn is_current(&self, now: i64) -> bool {
        self.parts.iter().all(|part| part.is_current(now))
    }

    /// When the first of them ends.
    pub(super) fn until(&self) -> i64 {
        self.parts.iter().map(|part| part.until).min().unwrap_or(0)
    }
}
