//! Layers that stand in the store for the images of one pod, until nobody needs them or their room is needed.
//!
//! ```text
//! a pull ─► leads ─► unpacked, every digest holds ─► Layer ─┬─► its image: a lower directory of the overlay
//! later pulls ──────────────────────────────────────────────┘     (nothing fetched, nothing unpacked)
//! ```
//!
//! A layer is a directory that nobody changes, and is removed with the last who holds it. Pulls and images hold what
//! they use; the table holds what belongs to an image that stood once, and lets go of what nobody else holds, the
//! longest unused first, when there is no room for another image. So what a container uses is never taken away.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tempfile::TempDir;

use super::shared::LayerKey;
use crate::digest::Digest;
use crate::unpack::{Journal, Lower, Root, Size, StackLayer};

/// Cap on the memory for the journals of layers that the table holds, in bytes; as much as one image may need by default.
const JOURNALS_BYTES_MAX: u64 = 48 << 20;

/// A layer that is unpacked and verified.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) key: LayerKey,
    pub(super) root: Arc<Root>,
    pub(super) journal: Journal,
    pub(super) lower: Lower,
    pub(super) size: Size,
    /// Removed with the value.
    pub(super) directory: TempDir,
}

impl Layer {
    pub(super) fn part(&self) -> StackLayer<'_> {
        StackLayer {
            root: &self.root,
            journal: &self.journal,
            lower: &self.lower,
        }
    }
}

/// Layers that an image is made of, below its root file system; they stand for as long as this value does.
#[derive(Debug, Clone, Default)]
pub struct Layers(pub(super) Vec<Arc<Layer>>);

impl Layers {
    /// Their directories, the highest first. Nothing in them may be changed: other images have the same.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|layer| layer.directory.path())
    }
}

/// The layers of one pod.
#[derive(Debug)]
pub(super) struct Kept {
    home: PathBuf,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    layers: HashMap<LayerKey, Entry>,
    /// Counts the uses, to tell which was the last.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    layer: Weak<Layer>,
    /// Once it belongs to an image that stands.
    held: Option<Arc<Layer>>,
    last_use: u64,
}

impl Kept {
    pub(super) fn new(home: PathBuf) -> Self {
        Self {
            home,
            table: Mutex::default(),
        }
    }

    /// A new directory for a layer, with nothing in it.
    pub(super) fn place(&self) -> std::io::Result<TempDir> {
        tempfile::Builder::new()
            .prefix(".layer-")
            .tempdir_in(&self.home)
    }

    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    pub(super) fn find(&self, key: &LayerKey) -> Option<Arc<Layer>> {
        let mut table = self.lock();
        table.uses += 1;
        let now = table.uses;
        let entry = table.layers.get_mut(key)?;
        entry.last_use = now;
        entry.layer.upgrade()
    }

    /// Lets others find a layer for as long as somebody holds it.
    pub(super) fn tell(&self, layer: &Arc<Layer>) {
        let mut table = self.lock();
        table
            .layers
            .retain(|_, entry| entry.layer.strong_count() > 0);
        table.uses += 1;
        let entry = Entry {
            layer: Arc::downgrade(layer),
            held: None,
            last_use: table.uses,
        };
        table.layers.insert(layer.key.clone(), entry);
    }

    /// Holds the layers of an image that stands.
    pub(super) fn hold(&self, layers: &[Arc<Layer>]) {
        let mut dropped = Vec::new();
        let mut table = self.lock();
        for layer in layers {
            if table.held().any(|(key, _)| *key == layer.key) {
                continue;
            }
            let held = table.held().map(|(_, held)| held.size.journal);
            let mut bytes = held.fold(layer.size.journal, u64::saturating_add);
            while bytes > JOURNALS_BYTES_MAX
                && let Some(oldest) = table.take_oldest(&[])
            {
                bytes = bytes.saturating_sub(oldest.size.journal);
                dropped.push(oldest);
            }
            if bytes <= JOURNALS_BYTES_MAX
                && let Some(entry) = table.layers.get_mut(&layer.key)
            {
                entry.held = Some(layer.clone());
            }
        }
        // Their files are removed when nobody waits for the table.
        drop(table);
    }

    /// Which of these blobs are here, as far as can be told without their keys.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        let table = self.lock();
        table
            .layers
            .iter()
            .any(|(key, entry)| key.digest() == digest && entry.layer.strong_count() > 0)
    }

    /// Removes the layer that nobody uses for the longest time, and is none of `wanted`; whether there was one. Blocking.
    pub(super) fn evict(&self, wanted: &[Digest]) -> bool {
        let oldest = self.lock().take_oldest(wanted);
        if let Some(layer) = &oldest {
            tracing::debug!(
                bytes = layer.size.bytes,
                "a layer that nobody uses makes room"
            );
        }
        oldest.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // What is behind the lock is whole between any two steps.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn held(&self) -> impl Iterator<Item = (&LayerKey, &Arc<Layer>)> {
        let entries = self.layers.iter();
        entries.filter_map(|(key, entry)| Some((key, entry.held.as_ref()?)))
    }

    /// Takes out the layer that only the table holds and that was used last before all others.
    fn take_oldest(&mut self, wanted: &[Digest]) -> Option<Arc<Layer>> {
        // Who looks for one needs the lock for it, so one that nobody has stays so.
        let unused = self
            .held()
            .filter(|(key, layer)| Arc::strong_count(layer) == 1 && !wanted.contains(key.digest()));
        let oldest = unused.min_by_key(|(key, _)| self.layers[*key].last_use);
        let key = oldest.map(|(key, _)| key.clone())?;
        self.layers.remove(&key)?.held
    }
}
