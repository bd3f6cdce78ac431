//! Pulling: from a name to a root file system that appears at once, whole and verified, or not at all.

mod anew;
mod error;
mod progress;
mod run;
mod shared;
mod space;
mod stage;

pub use error::PullError;
pub use progress::{LayerProgress, Progress, PullPhase};
pub use shared::Shared;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::TryFutureExt as _;
use oci_spec::image::ImageConfiguration;
use ocicrypt::KeySource;
use ocicrypt::media_type;
use tokio::sync::{mpsc, watch};

use crate::digest::Digest;
use crate::layer::Plan;
use crate::manifest::{
    self, CONFIG_BYTES_MAX, Descriptor, Document, Manifest, ManifestError, Platform,
};
use crate::place::Place;
use crate::policy::Policy;
use crate::reference::Reference;
use crate::registry::{RawManifest, Registry};
use crate::signature::{self, Documents, Lookaside, Signable};
use crate::unpack::{Devices, Limits, Options, Ownership, Trusted, Usage};
use progress::Teller;
use run::Pull;
use stage::Stage;

/// Layers at once: enough for one to be on its way while another is decoded, and little enough for a small guest.
const LAYERS_AT_ONCE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);

/// How images are pulled.
#[derive(Debug, Clone)]
pub struct PullConfig {
    /// Which images may be pulled. There is no default: in a TEE, no policy must be [`Policy::reject`].
    pub policy: Policy,
    /// Whom an image must be for.
    pub platform: Platform,
    /// The caps.
    pub limits: Limits,
    /// Layers at once. Each takes two threads, and memory for its window and what is on its way, mostly up to 12 MiB.
    pub concurrency: NonZeroUsize,
    /// Device nodes.
    pub devices: Devices,
    /// Owners.
    pub ownership: Ownership,
    /// `trusted.*` attributes.
    pub trusted: Trusted,
    /// What to change when there is no room, in the words of the one who configures it.
    pub space_setting: String,
    /// Where simple signatures are kept, for a policy that asks for some.
    pub lookaside: Lookaside,
}

impl PullConfig {
    /// For this machine, with the default caps, and owners kept.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            platform: Platform::host(),
            limits: Limits::default(),
            concurrency: LAYERS_AT_ONCE,
            devices: Devices::Create,
            ownership: Ownership::Keep,
            trusted: Trusted::Keep,
            space_setting: "the memory of the VM (default_memory)".to_owned(),
            lookaside: Lookaside::default(),
        }
    }
}

/// How long the phases took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Manifest and configuration.
    pub resolve: Duration,
    /// The keys of encrypted layers.
    pub keys: Duration,
    /// All layers, and their merge as far as it ran beside them.
    pub layers: Duration,
    /// What was left of the merge, and the rename.
    pub publish: Duration,
}

/// An image that stands.
#[derive(Debug)]
pub struct Pulled {
    /// The digest of the manifest for this platform, over its exact bytes.
    pub manifest_digest: Digest,
    /// The digest that the name led to: the index's, where there is one.
    pub reference_digest: Digest,
    /// The configuration.
    pub config: ImageConfiguration,
    /// The root file system: the directory that was asked for.
    pub rootfs: PathBuf,
    /// How many of its layers were encrypted.
    pub encrypted_layers: usize,
    /// Compressed bytes of all its layers.
    pub compressed_bytes: u64,
    /// How long it took.
    pub timings: Timings,
}

/// An image whose manifest and configuration are known and fit each other.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The digest of the manifest for this platform.
    pub manifest_digest: Digest,
    /// The digest that the name led to.
    pub reference_digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration.
    pub config: ImageConfiguration,
    /// `rootfs.diff_ids`.
    pub diff_ids: Vec<Digest>,
    /// What signatures of it are for.
    pub documents: Documents,
}

/// Pulls images.
#[expect(
    missing_debug_implementations,
    reason = "holds credentials and a source of keys"
)]
#[derive(Clone)]
pub struct Puller {
    config: Arc<PullConfig>,
    registry: Registry,
    keys: Arc<dyn KeySource>,
    shared: Shared,
}

impl Puller {
    /// A puller; clones share connections, and layers that are on their way.
    #[must_use]
    pub fn new(config: PullConfig, registry: Registry, keys: Arc<dyn KeySource>) -> Self {
        Self {
            shared: Shared::new(config.concurrency),
            config: Arc::new(config),
            registry,
            keys,
        }
    }

    /// The same, but shares with all that have `shared`: the pullers of one pod, whatever their images need.
    #[must_use]
    pub fn sharing(self, shared: &Shared) -> Self {
        Self {
            shared: shared.clone(),
            ..self
        }
    }

    /// Pulls `image` into `target`, which must not exist; its parent must, and holds the work meanwhile.
    ///
    /// # Errors
    /// See [`PullError`]. After an error, or when the future is dropped, nothing is left.
    pub async fn pull(&self, image: &Reference, target: &Path) -> Result<Pulled, PullError> {
        self.pull_from(&self.place(image), target).await
    }

    /// As [`Puller::pull`], and tells how far it is. The last end of `progress` goes with the last that the pull has
    /// on the disk: who drops the future, and waits for the channel to close, finds nothing left.
    ///
    /// # Errors
    /// As [`Puller::pull`].
    pub async fn pull_watched(
        &self,
        image: &Reference,
        target: &Path,
        progress: watch::Sender<Progress>,
    ) -> Result<Pulled, PullError> {
        self.pull_told(&self.place(image), target, &Teller::new(progress))
            .await
    }

    /// As [`Puller::pull`], from wherever the image is.
    ///
    /// # Errors
    /// As [`Puller::pull`].
    pub async fn pull_from(&self, image: &Place, target: &Path) -> Result<Pulled, PullError> {
        let (progress, _) = watch::channel(Progress::default());
        self.pull_told(image, target, &Teller::new(progress)).await
    }

    async fn pull_told(
        &self,
        image: &Place,
        target: &Path,
        teller: &Teller,
    ) -> Result<Pulled, PullError> {
        let start = Instant::now();
        let resolved = self.resolve_from(image).await?;
        let mut timings = Timings {
            resolve: start.elapsed(),
            ..Timings::default()
        };
        let space = self.config.check_space(image, &resolved.manifest, target)?;

        teller.phase(PullPhase::Keys);
        let start = Instant::now();
        let plans = self.plan(image, &resolved).await?;
        timings.keys = start.elapsed();
        let encrypted_layers = plans.iter().filter(|plan| plan.decrypt.is_some()).count();

        teller.layers(&plans);
        teller.phase(PullPhase::Layers);
        let (alive, mut all_gone) = mpsc::channel(1);
        let pull = Pull {
            image: image.clone(),
            shared: self.shared.clone(),
            stage: Arc::new(Stage::new(target)?),
            options: self.options(),
            usage: Arc::new(Usage::default()),
            space,
            teller: teller.clone(),
            _alive: alive,
        };
        let result = match pull.run(plans, &mut timings).await {
            Ok(()) => {
                let start = Instant::now();
                let result = pull.stage.publish(target);
                timings.publish += start.elapsed();
                result
            }
            Err(error) => Err(pull.name_want_of_space(&self.config, error)),
        };
        // Threads that still decode end with their pieces; then, and before we return, the stage is gone.
        drop(pull);
        let _ = all_gone.recv().await;
        result?;
        teller.phase(PullPhase::Done);
        Ok(Pulled {
            manifest_digest: resolved.manifest_digest,
            reference_digest: resolved.reference_digest,
            config: resolved.config,
            rootfs: target.to_owned(),
            encrypted_layers,
            compressed_bytes: space.compressed,
            timings,
        })
    }

    /// Decides on `image` by the policy, by its signatures where the policy asks for some, and fetches its manifest and
    /// configuration, but no layer.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn resolve(&self, image: &Reference) -> Result<Resolved, PullError> {
        self.resolve_from(&self.place(image)).await
    }

    fn place(&self, image: &Reference) -> Place {
        Place::Registry(self.registry.clone(), image.clone())
    }

    async fn resolve_from(&self, image: &Place) -> Result<Resolved, PullError> {
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
            Place::Registry(_, image) => self.check_signatures(image, documents).await,
            // Its name is a path, and of that the policy was asked.
            Place::Layout(_) => Ok(()),
        }
    }

    /// Whether the policy's demand on `image` is met by the signatures of its manifest. Part of [`Puller::resolve`]; to be
    /// asked again for an image that a cache already has.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn check_signatures(
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
    async fn plan(&self, image: &Place, resolved: &Resolved) -> Result<Vec<Plan>, PullError> {
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
        let plan = |((layer, kind), diff_id): ((&Descriptor, media_type::Layer), &Digest)| Plan {
            digest: layer.digest.clone(),
            size: layer.size,
            diff_id: diff_id.clone(),
            urls: layer.urls.clone(),
            compression: kind.compression,
            decrypt: if kind.encrypted { opened.next() } else { None },
        };
        Ok(layers
            .iter()
            .zip(kinds)
            .zip(&resolved.diff_ids)
            .map(plan)
            .collect())
    }

    fn options(&self) -> Arc<Options> {
        let config = &self.config;
        Arc::new(Options {
            limits: config.limits.clone(),
            devices: config.devices,
            ownership: config.ownership,
            trusted: config.trusted,
        })
    }
}

fn signable(raw: &RawManifest) -> Signable {
    Signable {
        digest: raw.digest.clone(),
        bytes: raw.bytes.clone(),
    }
}
