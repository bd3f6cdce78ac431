//! Pulling: from a name to a root file system that appears at once, whole and verified, or not at all.

mod anew;
mod config;
mod error;
mod image;
mod kept;
mod progress;
mod resolve;
mod run;
mod shared;
mod space;
mod stacked;
mod stage;

pub use config::PullConfig;
pub use error::PullError;
pub use image::{Pulled, Resolved, Timings};
pub use kept::Layers;
pub use progress::{LayerProgress, Progress, PullPhase};
pub use shared::Shared;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use ocicrypt::KeySource;
use tokio::sync::{mpsc, watch};

use crate::digest::Digest;
use crate::layer::Plan;
use crate::manifest::Manifest;
use crate::place::Place;
use crate::reference::Reference;
use crate::registry::Registry;
use crate::signature::Documents;
use crate::unpack::Usage;
use progress::Teller;
use run::Pull;
use space::Space;
use stage::Stage;

/// What comes of a pull. In a box: each crate that awaits an `async fn` compiles it anew, and these have the registry,
/// its signatures and all layers below them.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, PullError>>;

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
    pub fn pull<'a>(&'a self, image: &'a Reference, target: &'a Path) -> Answer<'a, Pulled> {
        let (progress, _) = watch::channel(Progress::default());
        self.pull_watched(image, target, progress)
    }

    /// As [`Puller::pull`], and tells how far it is. The last end of `progress` goes with the last that the pull has
    /// on the disk: who drops the future, and waits for the channel to close, finds nothing left.
    ///
    /// # Errors
    /// As [`Puller::pull`].
    pub fn pull_watched<'a>(
        &'a self,
        image: &Reference,
        target: &'a Path,
        progress: watch::Sender<Progress>,
    ) -> Answer<'a, Pulled> {
        let place = self.place(image);
        Box::pin(async move {
            let teller = Teller::new(progress);
            self.pull_told(&place, target, &teller).await
        })
    }

    /// As [`Puller::pull`], from wherever the image is.
    ///
    /// # Errors
    /// As [`Puller::pull`].
    pub fn pull_from<'a>(&'a self, image: &'a Place, target: &'a Path) -> Answer<'a, Pulled> {
        Box::pin(async move {
            let (progress, _) = watch::channel(Progress::default());
            self.pull_told(image, target, &Teller::new(progress)).await
        })
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
        let space = self.room(image, &resolved.manifest, target).await?;

        teller.phase(PullPhase::Keys);
        let start = Instant::now();
        let plans = self.plan(image, &resolved).await?;
        timings.keys = start.elapsed();
        let encrypted_layers = plans.iter().filter(|plan| plan.decrypt.is_some()).count();

        let layers = loop {
            let work = Work {
                image,
                target,
                plans: &plans,
                space,
                teller,
            };
            match self.layers(work, &mut timings).await {
                Err(error) if self.makes_room(&error, &plans).await => {}
                layers => break layers?,
            }
        };
        teller.phase(PullPhase::Done);
        Ok(Pulled {
            manifest_digest: resolved.manifest_digest,
            reference_digest: resolved.reference_digest,
            config: resolved.config,
            rootfs: target.to_owned(),
            layers,
            encrypted_layers,
            compressed_bytes: space.compressed,
            timings,
        })
    }

    /// All layers, and the image under its name.
    async fn layers(&self, work: Work<'_>, timings: &mut Timings) -> Result<Layers, PullError> {
        work.teller.layers(work.plans);
        work.teller.phase(PullPhase::Layers);
        let (alive, mut all_gone) = mpsc::channel(1);
        let pull = Pull {
            image: work.image.clone(),
            shared: self.shared.clone(),
            stage: Arc::new(Stage::new(work.target)?),
            options: self.config.options(),
            usage: Arc::new(Usage::default()),
            space: work.space,
            teller: work.teller.clone(),
            windows: Arc::default(),
            _alive: alive,
        };
        let result = self.run(&pull, &work, timings).await;
        let result = result.map_err(|error| pull.name_want_of_space(&self.config, error));
        // Threads that still decode end with their pieces; then, and before we return, the stage is gone.
        drop(pull);
        let _ = all_gone.recv().await;
        result
    }

    async fn run(
        &self,
        pull: &Pull,
        work: &Work<'_>,
        timings: &mut Timings,
    ) -> Result<Layers, PullError> {
        let stacked = match self.shared.kept() {
            Some(kept) => Some((kept, pull.run_stacked(kept, work.plans, timings).await?)),
            None => {
                pull.run(work.plans, timings).await?;
                None
            }
        };
        let start = Instant::now();
        pull.stage.publish(work.target)?;
        timings.publish += start.elapsed();
        Ok(stacked.map_or_else(Layers::default, |(kept, stacked)| {
            kept.hold(&stacked.all);
            stacked.below
        }))
    }

    /// The room that there is for an image. What makes way for it may have many files.
    async fn room(
        &self,
        image: &Place,
        manifest: &Manifest,
        target: &Path,
    ) -> Result<Space, PullError> {
        let (config, kept) = (self.config.clone(), self.shared.kept().cloned());
        let (image, manifest) = (image.clone(), manifest.clone());
        let place = target.to_owned();
        let checked = move || config.check_space(&image, &manifest, &place, kept.as_deref());
        let checked = tokio::task::spawn_blocking(checked).await;
        checked.map_err(|error| stage::broken(target, &error))?
    }

    /// Whether there is room now where there was none, because layers are gone that nobody uses.
    async fn makes_room(&self, error: &PullError, plans: &[Arc<Plan>]) -> bool {
        let Some(kept) = self.shared.kept().filter(|_| error.is_want_of_space()) else {
            return false;
        };
        let kept = kept.clone();
        let wanted: Vec<Digest> = plans.iter().map(|plan| plan.digest.clone()).collect();
        let evicted = move || {
            let mut some = false;
            while kept.evict(&wanted) {
                some = true;
            }
            some
        };
        tokio::task::spawn_blocking(evicted).await.unwrap_or(false)
    }

    /// Decides on `image` by the policy, by its signatures where the policy asks for some, and fetches its manifest and
    /// configuration, but no layer.
    ///
    /// # Errors
    /// See [`PullError`].
    pub fn resolve(&self, image: &Reference) -> Answer<'_, Resolved> {
        let place = self.place(image);
        Box::pin(async move { self.resolve_from(&place).await })
    }

    /// Whether the policy's demand on `image` is met by the signatures of its manifest. Part of [`Puller::resolve`]; to be
    /// asked again for an image that a cache already has.
    ///
    /// # Errors
    /// See [`PullError`].
    pub fn check_signatures<'a>(
        &'a self,
        image: &'a Reference,
        documents: &'a Documents,
    ) -> Answer<'a, ()> {
        Box::pin(self.check(image, documents))
    }

    fn place(&self, image: &Reference) -> Place {
        Place::Registry(self.registry.clone(), image.clone())
    }
}

/// One image's layers, to be brought to its target.
struct Work<'a> {
    image: &'a Place,
    target: &'a Path,
    plans: &'a [Arc<Plan>],
    space: Space,
    teller: &'a Teller,
}
