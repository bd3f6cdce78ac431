//! How far a pull is, for whoever watches it.
//!
//! The one who pulls writes into a `watch`; those who look see the newest state, never a queue of old ones, and the
//! pull never waits for them.

use std::sync::Arc;

use tokio::sync::watch;

use crate::digest::Digest;
use crate::layer::Plan;

/// What a pull does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPhase {
    /// The policy is asked, the manifest and the configuration are fetched.
    #[default]
    Resolve,
    /// The keys of encrypted layers are fetched.
    Keys,
    /// Layers are fetched, checked and unpacked, each on its own.
    Layers,
    /// What is left to be merged is merged, and the tree gets its name.
    Publish,
    /// The image stands.
    Done,
}

/// How far one layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Which layer.
    pub digest: Digest,
    /// Its bytes in the registry.
    pub size: u64,
    /// How many of them are here.
    pub fetched: u64,
    /// Whether it is unpacked, and each of its digests holds.
    pub done: bool,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Counts the changes: who saw one state can tell whether there is another.
    pub changes: u64,
    /// What it does now.
    pub phase: PullPhase,
    /// The layers, lowest first; none before they are known.
    pub layers: Vec<LayerProgress>,
}

impl Progress {
    /// Bytes of all layers that are here.
    #[must_use]
    pub fn fetched(&self) -> u64 {
        self.layers.iter().map(|layer| layer.fetched).sum()
    }

    /// Bytes of all layers.
    #[must_use]
    pub fn size(&self) -> u64 {
        let sizes = self.layers.iter().map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }
}

/// The writing end.
#[derive(Debug, Clone)]
pub(super) struct Teller(watch::Sender<Progress>);

impl Teller {
    pub(super) fn new(sender: watch::Sender<Progress>) -> Self {
        sender.send_replace(Progress::default());
        Self(sender)
    }

    pub(super) fn phase(&self, phase: PullPhase) {
        self.change(|progress| progress.phase = phase);
    }

    pub(super) fn layers(&self, plans: &[Arc<Plan>]) {
        let layers = plans.iter().map(|plan| LayerProgress {
            digest: plan.digest.clone(),
            size: plan.size,
            fetched: 0,
            done: false,
        });
        let layers = layers.collect();
        self.change(|progress| progress.layers = layers);
    }

    /// So many bytes of a layer are here.
    pub(super) fn fetched(&self, layer: usize, bytes: u64) {
        self.layer(layer, |layer| layer.fetched = bytes);
    }

    pub(super) fn layer_done(&self, layer: usize) {
        self.layer(layer, |layer| {
            layer.fetched = layer.size;
            layer.done = true;
        });
    }

    /// Bytes that are still to come.
    pub(super) fn left(&self) -> u64 {
        let progress = self.0.borrow();
        progress.size().saturating_sub(progress.fetched())
    }

    fn layer(&self, index: usize, change: impl FnOnce(&mut LayerProgress)) {
        self.change(|progress| {
            if let Some(layer) = progress.layers.get_mut(index) {
                change(layer);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(|progress| {
            progress.changes = progress.changes.saturating_add(1);
            change(progress);
        });
    }
}
