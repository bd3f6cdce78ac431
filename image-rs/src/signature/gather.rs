//! Where signatures are: cosign's tag, the referrers of OCI 1.1, a lookaside, or a registry that keeps simple ones.
//!
//! What is not there is no error; what cannot be read is kept as a candidate with its reason, so that a refusal tells it.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use super::bundle::BUNDLE_TYPE;
use super::cosign::PAYLOAD_TYPE;
use super::document::Signable;
use super::lookaside::Lookaside;
use super::refusal::Reason;
use super::{
    BUNDLE_BYTES_MAX, Found, Kind, PAYLOAD_BYTES_MAX, Requirement, SIGNATURES_MAX, Signatures,
};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, Manifest};
use crate::reference::Reference;
use crate::registry::RegistryError;

/// Cap on the layers of an artifact that holds signatures: some years of signing one image every day.
const LAYERS_MAX: usize = 2048;
/// Cap on the referrers that are looked through.
const REFERRERS_MAX: usize = 256;
/// Digits of a digest in a tag, by the distribution specification.
const TAG_DIGITS: usize = 64;
/// An artifact of cosign's that holds what its tag holds.
const COSIGN_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// An artifact with a signature by notation.
const NOTATION_ARTIFACT: &str = "application/vnd.cncf.notary.signature";

/// The repository of an image, as far as signatures need it.
#[async_trait]
pub trait SignatureStore: Send + Sync {
    /// The manifest under a tag or a digest of the repository; a digest is checked.
    ///
    /// # Errors
    /// When it cannot be told whether there is one.
    async fn manifest(&self, name: &str) -> Result<Option<Bytes>, RegistryError>;

    /// A blob of the repository, of at most `cap` bytes; its digest is checked.
    ///
    /// # Errors
    /// When it cannot be had.
    async fn blob(&self, digest: &Digest, cap: usize) -> Result<Bytes, RegistryError>;

    /// The list of what refers to a manifest; `None` where the registry has no such lists.
    ///
    /// # Errors
    /// When it cannot be told whether there is one.
    async fn referrers(&self, digest: &Digest) -> Result<Option<Bytes>, RegistryError>;

    /// The registry's own list of simple signatures of a manifest; `None` where it keeps none.
    ///
    /// # Errors
    /// When it cannot be told whether there is one.
    async fn simple_signatures(&self, digest: &Digest) -> Result<Option<Bytes>, RegistryError>;

    /// What is at a place of a lookaside, `file://` or `https://`, of at most `cap` bytes.
    ///
    /// # Errors
    /// When it cannot be told whether there is something.
    async fn aside(&self, url: &str, cap: usize) -> Result<Option<Bytes>, RegistryError>;
}

/// A list of referrers. Only types and digests are read: all else is for the one who shows them.
#[derive(Deserialize)]
struct Referrers {
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    #[serde(default)]
    artifact_type: String,
    digest: Digest,
}

/// The answer of a registry that keeps simple signatures.
#[derive(Deserialize)]
struct SimpleList {
    signatures: Vec<SimpleItem>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SimpleItem {
    schema_version: u32,
    #[serde(rename = "type")]
    kind: String,
    content: String,
}

/// Looks for signatures of `document`, of the kinds that `missing` can be met by.
pub(super) async fn gather(
    missing: &[&Requirement],
    image: &Reference,
    document: &Signable,
    store: &dyn SignatureStore,
    lookaside: &Lookaside,
    found: &mut Signatures,
) {
    let wants = |which: fn(&Requirement) -> bool| missing.iter().any(|it| which(it));
    if wants(|it| matches!(it, Requirement::Sigstore(_))) {
        let digest = &document.digest;
        let (tag, referrers) =
            futures_util::future::join(cosign_tag(store, digest), referrers(store, digest)).await;
        found.sigstore.extend(tag);
        found.sigstore.extend(referrers);
    }
    if wants(|it| matches!(it, Requirement::SignedBy(_))) {
        let simple = match lookaside.place(image, &document.digest) {
            Some(place) => aside(store, &place).await,
            None => extension(store, &document.digest).await,
        };
        found.simple.extend(simple);
    }
}

/// `sha256-….sig`, and what it holds.
async fn cosign_tag(store: &dyn SignatureStore, digest: &Digest) -> Vec<Found> {
    let tag = format!("{}.sig", tag_of(digest));
    match store.manifest(&tag).await {
        Ok(Some(manifest)) => layers(store, &tag, &manifest).await,
        Ok(None) => Vec::new(),
        Err(error) => vec![unfetched(&tag, &error)],
    }
}

/// How a digest is written where a tag must stand; a longer hash is cut, so that it is one.
fn tag_of(digest: &Digest) -> String {
    let hex: String = digest.hex().chars().take(TAG_DIGITS).collect();
    format!("{}-{hex}", digest.algorithm().name())
}

async fn referrers(store: &dyn SignatureStore, digest: &Digest) -> Vec<Found> {
    let origin = format!("referrers of {digest}");
    let list = match store.referrers(digest).await {
        // Where the registry has no lists, whoever pushes keeps one under a tag.
        Ok(None) => store.manifest(&tag_of(digest)).await,
        other => other,
    };
    let list = match list {
        Ok(Some(list)) => list,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![unfetched(&origin, &error)],
    };
    let list: Referrers = match serde_json::from_slice(&list) {
        Ok(list) => list,
        Err(error) => return vec![unread(&origin, Reason::format("the list", error))],
    };
    if list.manifests.len() > REFERRERS_MAX {
        let found = list.manifests.len();
        return vec![too_many(&origin, "referrers", found, REFERRERS_MAX)];
    }
    let mut all = Vec::new();
    for referrer in list.manifests {
        let origin = format!("referrer {}", referrer.digest);
        let may_be = match referrer.artifact_type.as_str() {
            BUNDLE_TYPE | COSIGN_ARTIFACT | "" => true,
            NOTATION_ARTIFACT => {
                let reason = Reason::Unsupported("a signature by notation".to_owned());
                all.push(unread(&origin, reason));
                false
            }
            _ => false,
        };
        if !may_be {
            continue;
        }
        if all.len() >= SIGNATURES_MAX {
            all.push(too_many(
                &origin,
                "signatures",
                all.len() + 1,
                SIGNATURES_MAX,
            ));
            break;
        }
        match store.manifest(&referrer.digest.to_string()).await {
            Ok(Some(manifest)) => all.extend(layers(store, &origin, &manifest).await),
            Ok(None) => all.push(unread(&origin, Reason::Fetch("it is gone".to_owned()))),
            Err(error) => all.push(unfetched(&origin, &error)),
        }
    }
    all
}

/// The signatures that an artifact holds as layers. Cosign appends each new one, so the last are the newest; of very
/// many only they are looked at.
async fn layers(store: &dyn SignatureStore, origin: &str, manifest: &[u8]) -> Vec<Found> {
    let layers = match Document::read(manifest, None, LAYERS_MAX) {
        Ok(Document::Image(Manifest { layers, .. })) => layers,
        Ok(Document::Index(_)) => {
            return vec![unread(origin, Reason::format("it", "it is an index"))];
        }
        Err(error) => return vec![unread(origin, Reason::format("its manifest", error))],
    };
    // Artifacts without a type are looked into, and are mostly something else.
    let is_signature =
        |layer: &Descriptor| [PAYLOAD_TYPE, BUNDLE_TYPE].contains(&layer.media_type.as_str());
    let layers: Vec<_> = layers
        .iter()
        .enumerate()
        .filter(|(_, layer)| is_signature(layer))
        .collect();
    let skipped = layers.len().saturating_sub(SIGNATURES_MAX);
    let mut found = Vec::new();
    if skipped > 0 {
        let reason = Reason::NotLookedAt {
            skipped,
            found: layers.len(),
        };
        found.push(unread(origin, reason));
    }
    for (index, layer) in layers.into_iter().skip(skipped) {
        let origin = format!("{origin}, layer {index}");
        let kind = match layer.media_type.as_str() {
            PAYLOAD_TYPE => {
                blob(store, layer, PAYLOAD_BYTES_MAX)
                    .await
                    .map(|payload| Kind::Cosign {
                        payload,
                        annotations: layer.annotations.clone(),
                    })
            }
            _ => blob(store, layer, BUNDLE_BYTES_MAX).await.map(Kind::Bundle),
        };
        found.push(Found {
            origin,
            kind: kind.unwrap_or_else(Kind::Unread),
        });
    }
    found
}

async fn blob(store: &dyn SignatureStore, layer: &Descriptor, cap: usize) -> Result<Bytes, Reason> {
    if layer.size > cap as u64 {
        return Err(Reason::TooMany {
            what: "its bytes".to_owned(),
            found: usize::try_from(layer.size).unwrap_or(usize::MAX),
            cap,
        });
    }
    store
        .blob(&layer.digest, cap)
        .await
        .map_err(|error| Reason::Fetch(error.to_string()))
}

/// `signature-1`, `signature-2`, … until there is none.
async fn aside(store: &dyn SignatureStore, place: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for number in 1..=SIGNATURES_MAX + 1 {
        let url = format!("{place}/signature-{number}");
        if number > SIGNATURES_MAX {
            found.push(too_many(place, "signatures", number, SIGNATURES_MAX));
            break;
        }
        match store.aside(&url, PAYLOAD_BYTES_MAX).await {
            Ok(Some(blob)) => found.push(Found {
                origin: url,
                kind: Kind::Gpg(blob),
            }),
            Ok(None) => break,
            Err(error) => {
                found.push(unfetched(&url, &error));
                break;
            }
        }
    }
    found
}

/// The list of a registry that has the extension for simple signatures.
async fn extension(store: &dyn SignatureStore, digest: &Digest) -> Vec<Found> {
    let origin = format!("signatures of {digest} at the registry");
    let list = match store.simple_signatures(digest).await {
        Ok(Some(list)) => list,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![unfetched(&origin, &error)],
    };
    let list: SimpleList = match serde_json::from_slice(&list) {
        Ok(list) => list,
        Err(error) => return vec![unread(&origin, Reason::format("the list", error))],
    };
    if list.signatures.len() > SIGNATURES_MAX {
        let found = list.signatures.len();
        return vec![too_many(&origin, "signatures", found, SIGNATURES_MAX)];
    }
    let item = |(index, item): (usize, SimpleItem)| {
        let kind = match STANDARD.decode(&item.content) {
            _ if item.schema_version != 2 || item.kind != "atomic" => Kind::Unread(
                Reason::Unsupported(format!("a signature of type {:?}", item.kind)),
            ),
            Ok(blob) if blob.len() <= PAYLOAD_BYTES_MAX => Kind::Gpg(blob.into()),
            Ok(blob) => Kind::Unread(Reason::TooMany {
                what: "its bytes".to_owned(),
                found: blob.len(),
                cap: PAYLOAD_BYTES_MAX,
            }),
            Err(error) => Kind::Unread(Reason::format("its content", error)),
        };
        Found {
            origin: format!("{origin}, {}", index + 1),
            kind,
        }
    };
    list.signatures.into_iter().enumerate().map(item).collect()
}

fn unread(origin: &str, reason: Reason) -> Found {
    Found {
        origin: origin.to_owned(),
        kind: Kind::Unread(reason),
    }
}

fn unfetched(origin: &str, error: &RegistryError) -> Found {
    unread(origin, Reason::Fetch(error.to_string()))
}

fn too_many(origin: &str, what: &str, found: usize, cap: usize) -> Found {
    unread(
        origin,
        Reason::TooMany {
            what: format!("the number of {what}"),
            found,
            cap,
        },
    )
}
