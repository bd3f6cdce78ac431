//! Which documents are needed together, and what they become when they verify.

use std::sync::Arc;

use evidence::{
    Tee,
    snp::{Generation, Product, Tcb},
};
use verifier::{
    snp::{self, Crl, Role, Vek},
    tdx::{self, Ca},
};

use super::{
    document::{Document, Item},
    stored::{Held, signed},
};

/// Bytes that name roots.
pub(super) type Digest = [u8; snp::ROOTS_DIGEST_BYTES];

/// By whose roots documents are verified.
#[derive(Clone)]
pub(super) enum Trust {
    Snp(Arc<snp::Roots>),
    Tdx(Arc<tdx::Roots>),
}

impl Trust {
    pub(super) fn kind(&self) -> Tee {
        match self {
            Self::Snp(roots) => roots.kind(),
            Self::Tdx(roots) => roots.kind(),
        }
    }

    pub(super) fn digest(&self) -> &Digest {
        match self {
            Self::Snp(roots) => roots.digest(),
            Self::Tdx(roots) => roots.digest(),
        }
    }

    /// The documents, if they are their vendor's and belong together.
    pub(super) fn prepare(&self, want: &Want, parts: Vec<Held>) -> Result<Kept, String> {
        let ready = match (self, &parts[..]) {
            (Self::Snp(roots), [held]) => amd(roots, held)?,
            (Self::Tdx(roots), [tcb_info, qe_identity, pck_crl, root_crl]) => {
                let collateral = intel(roots, [tcb_info, qe_identity, pck_crl, root_crl])?;
                if want.documents() != Document::tdx(want.first().simulated, &collateral.needs()) {
                    return Err("it is for other platforms".to_owned());
                }
                Ready::Tdx(Arc::new(collateral))
            }
            _ => return Err("they are of another kind".to_owned()),
        };
        let ends = parts.iter().map(|part| part.until).min().unwrap_or(0);
        let until = match &ready {
            // Those who signed may end before what they signed.
            Ready::Tdx(collateral) => ends.min(collateral.valid_until()),
            Ready::Vek(_) | Ready::Crls(_) => ends,
        };
        Ok(Kept {
            ready,
            parts,
            until,
        })
    }
}

fn amd(roots: &snp::Roots, held: &Held) -> Result<Ready, String> {
    let cause = |failure: snp::SnpFailure| failure.to_string();
    let (document, body) = (held.document(), &held.stored.body);
    match &document.item {
        Item::Vcek { product, .. } => {
            let vek = Vek::prepare(roots, *product, body).map_err(cause)?;
            document.is_of(&vek)?;
            Ok(Ready::Vek(Arc::new(vek)))
        }
        Item::AmdCrl { product } => {
            let crl = Crl::prepare(roots, *product, body).map_err(cause)?;
            if crl.issuer() != Role::Ark {
                return Err(format!("it is the list of the {}", crl.issuer()));
            }
            Ok(Ready::Crls([crl].into()))
        }
        _ => Err("it is no document for SEV-SNP".to_owned()),
    }
}

fn intel(roots: &tdx::Roots, parts: [&Held; 4]) -> Result<tdx::Collateral, String> {
    let [tcb_info, qe_identity, pck_crl, root_crl] = parts;
    let chain = |held: &Held| held.stored.issuer_chain.clone().unwrap_or_default();
    let statement = |held: &Held| signed(held.document(), &held.stored.body);
    let (tcb, qe) = (statement(tcb_info)?, statement(qe_identity)?);
    let parts = tdx::Parts {
        tcb_info_issuer_chain: chain(tcb_info),
        tcb_info: tcb.text,
        tcb_info_signature: tcb.signature,
        qe_identity_issuer_chain: chain(qe_identity),
        qe_identity: qe.text,
        qe_identity_signature: qe.signature,
        pck_crl_issuer_chain: chain(pck_crl),
        pck_crl: pck_crl.stored.body.clone(),
        root_ca_crl: root_crl.stored.body.clone(),
    };
    tdx::Collateral::prepare(roots, parts).map_err(|failure| failure.to_string())
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

    pub(super) fn tdx(simulated: bool, needs: &tdx::Needs) -> Self {
        Self(Document::tdx(simulated, needs).into())
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
        let mut wants = Vec::new();
        for document in documents {
            match document.item {
                Item::Vcek { .. } | Item::AmdCrl { .. } => {
                    wants.push(Self(vec![document.clone()]));
                }
                Item::TcbInfo { fmspc } => {
                    let sets = [Ca::Processor, Ca::Platform].map(|ca| {
                        let needs = tdx::Needs { fmspc, ca };
                        Document::tdx(document.simulated, &needs)
                    });
                    let whole = sets.into_iter();
                    let whole = whole.filter(|set| set.iter().all(|d| documents.contains(d)));
                    wants.extend(whole.map(|set| Self(set.into())));
                }
                Item::QeIdentity | Item::PckCrl { .. } | Item::RootCrl => {}
            }
        }
        wants
    }
}

/// What an attestation needs.
#[derive(Clone)]
pub(super) enum Ready {
    Vek(Arc<Vek>),
    Crls(Arc<[Crl]>),
    Tdx(Arc<tdx::Collateral>),
}

/// Verified documents, and what they became.
pub(super) struct Kept {
    pub(super) ready: Ready,
    pub(super) parts: Vec<Held>,
    /// When the first of them ends, or who signed it.
    pub(super) until: i64,
}

impl Kept {
    pub(super) fn is_current(&self, now: i64) -> bool {
        now <= self.until && self.parts.iter().all(|part| part.is_current(now))
    }
}
