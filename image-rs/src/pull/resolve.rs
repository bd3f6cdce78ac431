//! From a name to what is to be fetched: the policy's word, the manifest, its signatures, its configuration, its keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::TryFutureExt as _;
use ocicrypt::media_type;

use super::{PullError, Puller, Resolved};
use crate::digest::Digest;
use crate::layer::Plan;
use crate::manifest::{self, CONFIG_BYTES_MAX, Descriptor, Document, ManifestError};
use crate::place::Place;
use crate::reference::Reference;
use crate::registry::RawManifest;
use crate::signature::{self, Documents, Signable};

impl Puller {
    pub(super) async fn resolve_from(&self, image: &Place) -> Result<Resolved, PullError> {
        match image {
            // A name that is refused is not even asked for.
            Place::Registry(_, image) => {
                let _ = self.config.policy.demand(image)?;
            }
            Place::Layout(layout) => self.config.policy.check_layout(&layout.to_string())?,
        }
        let bad = |source| PullError::Manifest {
            image: image.to_string(),
            source,
        };
        let limits = &self.config.limits;
        let read = |raw: &RawManifest| {
            manifest::check_size(&raw.bytes, limits.manifest_bytes).map_err(bad)?;
            let content_type = raw.content_type.as_deref();
            Document::read(&raw.bytes, content_type, limits.layers).map_err(bad)
        };
        let mut raw = image.document(None).await?;
        let reference_digest = raw.digest.clone();
        let top = signable(&raw);
        let manifest = match read(&raw)? {
            Document::Image(manifest) => manifest,
            Document::Index(entries) => {
                let entry = manifest::select(&entries, &self.config.platform).map_err(bad)?;
                raw = image.document(Some(&entry.descriptor.digest)).await?;
                match read(&raw)? {
                    Document::Image(manifest) => manifest,
                    Document::Index(_) => {
                        return Err(bad(ManifestError::MediaType(
                            "an index in an index".to_owned(),
                        )));
                    }
                }
            }
        };
        let taken = (raw.digest != reference_digest).then(|| signable(&raw));
        let documents = Documents::new(top, taken)?;
        let config = image.small_blob(&manifest.config.digest, CONFIG_BYTES_MAX);
        // Side by side; the configuration is not looked at before the signatures are.
        let ((), config) = futures_util::future::try_join(
            self.check_signed(image, &documents),
            config.map_err(PullError::from),
        )
        .await?;
        let (config, diff_ids) =
            manifest::read_config(&config, &manifest, &self.config.platform).map_err(bad)?;
        Ok(Resolved {
            manifest_digest: raw.digest,
            reference_digest,
            manifest,
            config,
            diff_ids,
            documents,
        })
    }

    async fn check_signed(&self, image: &Place, documents: &Documents) -> Result<(), PullError> {
        match image {
            Place::Registry(_, image) => self.check(image, documents).await,
            // Its name is a path, and of that the policy was asked.
            Place::Layout(_) => Ok(()),
        }
    }

    pub(super) async fn check(
        &self,
        image: &Reference,
        documents: &Documents,
    ) -> Result<(), PullError> {
        let demand = self.config.policy.demand(image)?;
        if demand.needs_signatures() {
            let (store, lookaside) = (self.registry.signatures(image), &self.config.lookaside);
            let now = SystemTime::now();
            signature::check(&demand, image, documents, &store, lookaside, now).await?;
        }
        Ok(())
    }

    /// Every layer's plan; the keys of all encrypted layers are fetched in one round.
    pub(super) async fn plan(
        &self,
        image: &Place,
        resolved: &Resolved,
    ) -> Result<Vec<Arc<Plan>>, PullError> {
        let layers = &resolved.manifest.layers;
        let mut kinds = Vec::with_capacity(layers.len());
        for layer in layers {
            let kind = media_type::parse(&layer.media_type).ok_or_else(|| PullError::Manifest {
                image: image.to_string(),
                source: ManifestError::MediaType(layer.media_type.clone()),
            })?;
            kinds.push(kind);
        }
        let sealed = layers.iter().zip(&kinds).filter(|(_, kind)| kind.encrypted);
        let annotations: Vec<&HashMap<String, String>> =
            sealed.map(|(layer, _)| &layer.annotations).collect();
        let mut opened = Vec::new();
        if !annotations.is_empty() {
            let keys = ocicrypt::unwrap_layers(&annotations, self.keys.as_ref()).await;
            opened = keys.map_err(|source| PullError::Keys {
                image: image.to_string(),
                source,
            })?;
        }
        let mut opened = opened.into_iter();
        let plan = |((layer, kind), diff_id): ((&Descriptor, media_type::Layer), &Digest)| {
            Arc::new(Plan {
                digest: layer.digest.clone(),
                size: layer.size,
                diff_id: diff_id.clone(),
                urls: layer.urls.clone(),
                compression: kind.compression,
                decrypt: if kind.encrypted { opened.next() } else { None },
            })
        };
        Ok(layers
            .iter()
            .zip(kinds)
            .zip(&resolved.diff_ids)
            .map(plan)
            .collect())
    }
}

fn signable(raw: &RawManifest) -> Signable {
    Signable {
        digest: raw.digest.clone(),
        bytes: raw.bytes.clone(),
    }
}
