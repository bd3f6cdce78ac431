//! Signatures of images: who says that these bytes are what the owner wants to run.
//!
//! ```text
//! manifest known ─► gather: cosign's tag, referrers, lookaside ─► judge, requirement by requirement ─► Ok │ Refusal
//!                   (SignatureStore: the only part that waits)     (pure: the time is a parameter)
//! ```
//!
//! The registry, its mirrors and the host are not trusted: what they serve is only ever a candidate. A requirement is
//! met when one candidate is by the right author, for the digest of the index that the name led to or of the manifest
//! that was taken from it, and for a name that the policy admits for the name that the owner wrote. When none is, the
//! refusal says for each of them why not.
//!
//! Not verified here are notation's signatures (no library that is kept serves without a second crypto stack) and
//! timestamps by RFC 3161; both are named where they are met.

mod bundle;
mod certificate;
mod cosign;
mod der;
mod document;
mod gather;
mod gpg;
mod key;
mod lookaside;
mod merkle;
mod payload;
mod refusal;
mod rekor;
mod sct;
mod sigstore;

pub(crate) use certificate::{CertificateAuthority, Subject};
pub use document::{Documents, DocumentsError, Signable};
pub use gather::SignatureStore;
pub(crate) use gpg::{Keyring, SignedBy};
pub(crate) use key::PublicKey;
pub use lookaside::{Lookaside, LookasideError};
pub use refusal::{Reason, Refusal, Unmet};
pub(crate) use sigstore::{Author, SigstoreSigned};

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::policy::{Demand, PolicyError};
use crate::reference::Reference;

/// Cap on the signatures of one kind that are looked at.
pub const SIGNATURES_MAX: usize = 32;
/// Cap on a payload of cosign's, or a signature by GPG, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Cap on a sigstore bundle, in bytes.
pub const BUNDLE_BYTES_MAX: usize = 512 * 1024;

/// One requirement of a policy, with its keys.
#[derive(Debug, Clone)]
pub(crate) enum Requirement {
    Accept,
    Reject,
    /// `signedBaseLayer`, which nobody implements: it refuses, as it does in containers/image.
    BaseLayer,
    SignedBy(SignedBy),
    Sigstore(Box<SigstoreSigned>),
}

impl Requirement {
    /// Whether no image can ever meet it.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Reject | Self::BaseLayer)
    }
}

/// Something that may be a signature.
#[derive(Debug)]
struct Found {
    /// Where it stands, for an error.
    origin: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Cosign {
        payload: Bytes,
        annotations: HashMap<String, String>,
    },
    Bundle(Bytes),
    Gpg(Bytes),
    /// It is there, and could not be read or is of a kind that we do not verify.
    Unread(Reason),
}

/// All that was found, by the requirement that it can meet.
#[derive(Debug, Default)]
struct Signatures {
    sigstore: Vec<Found>,
    simple: Vec<Found>,
}

/// Checks that every requirement on `image` is met, by signatures of `documents` that `store` has, at `now`.
///
/// # Errors
/// [`PolicyError::Unsigned`] with a reason for every signature that was looked at.
pub async fn check(
    demand: &Demand<'_>,
    image: &Reference,
    documents: &Documents,
    store: &dyn SignatureStore,
    lookaside: &Lookaside,
    now: SystemTime,
) -> Result<(), PolicyError> {
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut signatures = Signatures::default();
    let mut missing: Vec<&Requirement> = demand.requirements.iter().collect();
    missing.retain(|requirement| !matches!(requirement, Requirement::Accept));
    // The index first: where it is signed, nobody need be asked about the manifest.
    for document in documents.iter() {
        if missing.is_empty() {
            return Ok(());
        }
        gather::gather(&missing, image, document, store, lookaside, &mut signatures).await;
        missing
            .retain(|requirement| judge(requirement, image, documents, &signatures, now).is_err());
    }
    let unmet: Vec<Unmet> = missing
        .into_iter()
        .filter_map(|it| judge(it, image, documents, &signatures, now).err())
        .collect();
    if unmet.is_empty() {
        return Ok(());
    }
    Err(PolicyError::Unsigned(Box::new(Refusal {
        image: image.to_string(),
        scope: demand.scope.to_owned(),
        unmet,
    })))
}

fn judge(
    requirement: &Requirement,
    image: &Reference,
    documents: &Documents,
    signatures: &Signatures,
    now: u64,
) -> Result<(), Unmet> {
    type Judge<'a> = Box<dyn Fn(&Found) -> Result<(), Reason> + 'a>;
    let (name, found, judge): (_, _, Judge<'_>) = match requirement {
        Requirement::Accept => return Ok(()),
        Requirement::Reject | Requirement::BaseLayer => {
            return Err(Unmet {
                requirement: "reject",
                reasons: Vec::new(),
            });
        }
        Requirement::SignedBy(required) => (
            "signedBy",
            &signatures.simple,
            Box::new(|found| required.judge(found, image, documents, now)),
        ),
        Requirement::Sigstore(required) => (
            "sigstoreSigned",
            &signatures.sigstore,
            Box::new(|found| required.judge(found, image, documents, now)),
        ),
    };
    let mut reasons = Vec::new();
    for found in found {
        match judge(found) {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push((found.origin.clone(), reason)),
        }
    }
    Err(Unmet {
        requirement: name,
        reasons,
    })
}
