//! The layers of one image where they are kept for the images that come after it.
//!
//! ```text
//! each layer:  found ──────────────────────────────────┐
//!              joined to another pull that fetches it ──┼─► the overlay's lower directories, and a top of their own
//!              fetched, checked, unpacked ──────────────┘     (or merged from copies, where no overlay can say it)
//! ```
//!
//! A layer that this pull fetched goes with it when it fails, unless another pull has it by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::kept::{Kept, Layer, Layers};
use super::progress::PullPhase;
use super::run::Pull;
use super::shared::{Joined, LayerKey, Lead, Part};
use super::{PullError, Timings, stage};
use crate::layer::{LayerError, Plan};
use crate::unpack::{
    Journal, Root, Size, Tree, Usage, copy_layer, make_lower, stack, unmake_lower,
};

/// What an image is made of.
pub(super) struct Stacked {
    /// Those below the image's own directory.
    pub(super) below: Layers,
    /// All of them.
    pub(super) all: Vec<Arc<Layer>>,
}

impl Pull {
    /// All layers side by side, then the image's own directory above them.
    pub(super) async fn run_stacked(
        &self,
        kept: &Arc<Kept>,
        plans: &[Arc<Plan>],
        timings: &mut Timings,
    ) -> Result<Stacked, PullError> {
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for (index, plan) in plans.iter().cloned().enumerate() {
            let (pull, kept, wanted) = (self.clone(), kept.clone(), self.shared.want());
            tasks.spawn(async move {
                let layer = pull.kept_layer(&kept, index, plan).await;
                drop(wanted);
                (index, layer)
            });
        }
        let mut layers = BTreeMap::new();
        while let Some(done) = tasks.join_next().await {
            let (index, layer) = done.map_err(|error| self.stage.broken(&error))?;
            layers.insert(index, layer?);
        }
        timings.layers += start.elapsed();
        self.teller.phase(PullPhase::Publish);
        let start = Instant::now();
        let (pull, layers) = (self.clone(), layers.into_values().collect());
        let stacked = tokio::task::spawn_blocking(move || {
            let stacked = pull.stack(layers);
            // The pull goes last, for those who wait for its end.
            (stacked, pull)
        });
        let (stacked, _) = stacked.await.map_err(|error| self.stage.broken(&error))?;
        timings.publish += start.elapsed();
        stacked
    }

    async fn kept_layer(
        &self,
        kept: &Arc<Kept>,
        index: usize,
        plan: Arc<Plan>,
    ) -> Result<Arc<Layer>, PullError> {
        let key = LayerKey::new(&plan, &self.options);
        loop {
            let layer = match self.shared.part(key.clone()) {
                // Who led before told of the layer while it led, so it is known by now.
                Part::Lead(lead) => match kept.find(&key) {
                    Some(layer) => layer,
                    None => return self.lead_kept(kept, index, plan, lead).await,
                },
                Part::Join(joined) => match self.wait_for(index, joined).await {
                    Some(layer) => layer,
                    // It failed, or was cancelled.
                    None => continue,
                },
            };
            let counted = self.usage.add_size(layer.size, &self.options.limits);
            counted.map_err(|error| {
                self.layer_failed(index, plan.digest.clone(), LayerError::Unpack(error))
            })?;
            self.teller.layer_done(index);
            return Ok(layer);
        }
    }

    async fn wait_for(&self, index: usize, mut joined: Joined) -> Option<Arc<Layer>> {
        loop {
            let flight = joined.borrow_and_update().clone();
            if flight.layer.is_some() {
                return flight.layer;
            }
            self.teller.fetched(index, flight.fetched);
            joined.changed().await.ok()?;
        }
    }

    async fn lead_kept(
        &self,
        kept: &Arc<Kept>,
        index: usize,
        plan: Arc<Plan>,
        lead: Lead,
    ) -> Result<Arc<Layer>, PullError> {
        let root = Arc::new(self.stage.new_layer(index)?);
        let (root, journal, size) = self.fetch_layer(index, &plan, root, &lead).await?;
        let (pull, kept, digest) = (self.clone(), kept.clone(), plan.digest.clone());
        let key = LayerKey::new(&plan, &self.options);
        let standing = tokio::task::spawn_blocking(move || {
            let layer = pull.keep(&kept, index, key, (root, journal, size));
            (layer, pull)
        });
        let (layer, _) = standing.await.map_err(|error| self.stage.broken(&error))?;
        let layer = layer.map_err(|error| match error {
            KeepError::Store(error) => error,
            KeepError::Unpack(error) => self.layer_failed(index, digest, LayerError::Unpack(error)),
        })?;
        lead.keep(&layer);
        Ok(layer)
    }

    /// From the stage to where layers are kept. Blocking.
    fn keep(
        &self,
        kept: &Kept,
        index: usize,
        key: LayerKey,
        (root, journal, size): (Arc<Root>, Journal, Size),
    ) -> Result<Arc<Layer>, KeepError> {
        let lower = make_lower(&root, &journal, &self.options)?;
        let directory = kept
            .place()
            .map_err(|source| stage::failed("make a directory in", kept.home(), source))?;
        self.stage.give_layer(index, directory.path())?;
        Ok(Arc::new(Layer {
            key,
            root,
            journal,
            lower,
            size,
            directory,
        }))
    }

    /// Blocking.
    fn stack(&self, all: Vec<Arc<Layer>>) -> Result<Stacked, PullError> {
        // Of a layer that is there twice the higher one shows all that the lower one does.
        let mut layers: Vec<Arc<Layer>> = Vec::new();
        for layer in &all {
            layers.retain(|other| !Arc::ptr_eq(other, layer));
            layers.push(layer.clone());
        }
        let failed = |source| PullError::Merge {
            image: self.image.to_string(),
            source,
        };
        let parts: Vec<_> = layers.iter().map(|layer| layer.part()).collect();
        let top = self.stage.rootfs()?;
        let below = match stack(&parts, &top, &self.options).map_err(failed)? {
            Some(places) => {
                let places = places.iter().rev();
                places.map(|place| layers[*place].clone()).collect()
            }
            None => {
                self.merge_copies(&all)?;
                Vec::new()
            }
        };
        let below = Layers(below);
        Ok(Stacked { below, all })
    }

    /// What no overlay can say. The layers stay as they are, so each is copied first.
    fn merge_copies(&self, layers: &[Arc<Layer>]) -> Result<(), PullError> {
        tracing::debug!(image = %self.image, "its layers are merged");
        let failed = |source| PullError::Merge {
            image: self.image.to_string(),
            source,
        };
        let root = self.stage.rootfs()?;
        let mut tree = Tree::new(&root, &self.options);
        // Counted already.
        let usage = Usage::default();
        for (index, layer) in layers.iter().enumerate() {
            let copy = self.stage.new_layer(index)?;
            copy_layer(&layer.root, &copy, &self.options, &usage).map_err(failed)?;
            unmake_lower(&copy, &layer.lower).map_err(failed)?;
            tree.merge(&copy, layer.journal.clone()).map_err(failed)?;
        }
        tree.finish().map_err(failed)
    }
}

/// Why a layer does not stand.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Unpack(#[from] crate::unpack::UnpackError),
    #[error(transparent)]
    Store(#[from] PullError),
}
