//! What the pulls of one pod share: the number of layers at once, and layers that more than one needs.
//!
//! ```text
//! first pull   ─► leads:  fetch ─► … ─► unpacked ─► waits for the copies ─► merge
//! other pulls  ─► join:   wait ────────────┴─► copy of the files ─────────► merge
//! ```
//!
//! That is where every image is a tree of its own, and lasts for as long as the pulls do. Where layers are kept
//! ([`Shared::keeping`]), nothing is copied: a layer that stands is used by all images, also by those that come later.
//!
//! A layer is the same for another image only if all that decides its files is the same: the blob, its content, how
//! it is packed, and how it is unpacked; of an encrypted one also the key that the image's own annotations were opened
//! to. Then what was checked for one holds for the other. Files are copied and not linked, because each container may
//! write into its own. A lead that fails or is cancelled fails alone: one of those who joined it leads anew.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use ocicrypt::LayerOptions;
use ocicrypt::media_type::Compression;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use zeroize::Zeroizing;

use super::kept::{Kept, Layer};

use crate::digest::Digest;
use crate::layer::Plan;
use crate::unpack::{Devices, Journal, Limits, Options, Ownership, Root, Trusted};

/// What a layer takes of the permits.
const UNITS: u32 = 2;
/// What a zstd layer takes: its window is memory.
const UNITS_OF_ZSTD: u32 = 3;
/// Layers at once, whatever is configured.
const LAYERS_MAX: u32 = 128;

/// What the pulls of one pod share; clones are the same.
#[derive(Debug, Clone)]
pub struct Shared {
    permits: Arc<Semaphore>,
    /// All that there are.
    units: u32,
    /// Layers that are not done yet.
    wanted: Arc<AtomicUsize>,
    cores: usize,
    flights: Arc<Mutex<HashMap<LayerKey, Joined>>>,
    kept: Option<Arc<Kept>>,
}

/// A layer that is not done yet.
#[derive(Debug)]
pub(super) struct Wanted(Arc<AtomicUsize>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All that decides what a layer's files are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LayerKey {
    digest: Digest,
    diff_id: Digest,
    compression: Compression,
    /// Of an encrypted layer, what its annotations were opened to, hashed. Who only knows the digest of a layer has no
    /// part in what another image's key has opened.
    opened: Option<Digest>,
    devices: Devices,
    ownership: Ownership,
    trusted: Trusted,
    limits: Limits,
}

impl LayerKey {
    pub(super) fn new(plan: &Plan, options: &Options) -> Self {
        Self {
            digest: plan.digest.clone(),
            diff_id: plan.diff_id.clone(),
            compression: plan.compression,
            opened: plan.decrypt.as_ref().map(hash),
            devices: options.devices,
            ownership: options.ownership,
            trusted: options.trusted,
            limits: options.limits.clone(),
        }
    }

    /// That of the blob.
    pub(super) fn digest(&self) -> &Digest {
        &self.digest
    }
}

fn hash(options: &LayerOptions) -> Digest {
    let parts: [&[u8]; 4] = [
        options.key.expose(),
        &options.nonce.0,
        &options.hmac,
        options.digest.as_bytes(),
    ];
    let length = parts.iter().map(|part| part.len()).sum();
    // Nothing is left behind in memory by growing.
    let mut text = Zeroizing::new(Vec::with_capacity(length));
    for part in parts {
        text.extend_from_slice(part);
    }
    Digest::of(&text)
}

/// How far the one who leads is.
#[derive(Debug, Clone, Default)]
pub(super) struct Flight {
    pub(super) fetched: u64,
    pub(super) unpacked: Option<Unpacked>,
    /// Where layers are kept.
    pub(super) layer: Option<Arc<Layer>>,
}

/// A layer that stands, whole and checked, until nobody copies it any more.
#[derive(Debug, Clone)]
pub(super) struct Unpacked {
    pub(super) root: Arc<Root>,
    pub(super) journal: Arc<Journal>,
}

/// The end of one who joined. Whoever holds it keeps the layer as it is.
pub(super) type Joined = watch::Receiver<Flight>;

/// Who fetches a layer.
#[expect(clippy::large_enum_variant, reason = "there are as many as layers")]
pub(super) enum Part {
    /// The caller does.
    Lead(Lead),
    /// Somebody else does.
    Join(Joined),
}

impl Shared {
    /// For at most `concurrency` layers at once, of all pulls together; two thirds of that where they are zstd, whose
    /// decoder has a window of mostly 8 MiB.
    #[must_use]
    pub fn new(concurrency: NonZeroUsize) -> Self {
        let layers = u32::try_from(concurrency.get()).unwrap_or(LAYERS_MAX);
        let units = layers.min(LAYERS_MAX) * UNITS;
        Self {
            permits: Arc::new(Semaphore::new(units as usize)),
            units,
            wanted: Arc::default(),
            cores: thread::available_parallelism().map_or(1, NonZeroUsize::get),
            flights: Arc::default(),
            kept: None,
        }
    }

    /// The same, but layers are kept in the directory `home` for the images that come later. An image is then not one
    /// tree but several: see [`Pulled::layers`](super::Pulled::layers). Targets must be on the file system of `home`.
    #[must_use]
    pub fn keeping(self, home: PathBuf) -> Self {
        let kept = Some(Arc::new(Kept::new(home)));
        Self { kept, ..self }
    }

    pub(super) fn kept(&self) -> Option<&Arc<Kept>> {
        self.kept.as_ref()
    }

    /// Waits for the turn of a layer; the turn ends with the value.
    pub(super) async fn turn(&self, compression: Compression) -> Option<SemaphorePermit<'_>> {
        // A closed semaphore cannot be: nobody closes it.
        let units = self.units_of(compression);
        self.permits.acquire_many(units).await.ok()
    }

    fn units_of(&self, compression: Compression) -> u32 {
        let units = match compression {
            Compression::None | Compression::Gzip => UNITS,
            Compression::Zstd => UNITS_OF_ZSTD,
        };
        units.min(self.units)
    }

    /// Counts a layer that a pull needs, until the value is dropped.
    pub(super) fn want(&self) -> Wanted {
        self.wanted.fetch_add(1, Ordering::Relaxed);
        Wanted(self.wanted.clone())
    }

    /// Whether as many layers as there are cores are on their way at once.
    pub(super) fn keeps_cores_busy(&self, compression: Compression) -> bool {
        let at_once = (self.units / self.units_of(compression)) as usize;
        self.wanted.load(Ordering::Relaxed).min(at_once) >= self.cores
    }

    pub(super) fn part(&self, key: LayerKey) -> Part {
        let mut flights = lock(&self.flights);
        if let Some(joined) = flights.get(&key) {
            return Part::Join(joined.clone());
        }
        let (sender, joined) = watch::channel(Flight::default());
        flights.insert(key.clone(), joined);
        Part::Lead(Lead {
            shared: self.clone(),
            key,
            sender,
        })
    }
}

/// The end of the one who leads; those who joined it learn of its end.
#[derive(Debug)]
pub(super) struct Lead {
    shared: Shared,
    key: LayerKey,
    sender: watch::Sender<Flight>,
}

impl Lead {
    pub(super) fn fetched(&self, bytes: u64) {
        self.sender.send_modify(|flight| flight.fetched = bytes);
    }

    /// Gives the layer to those who joined, and to all who come later.
    pub(super) fn keep(self, layer: &Arc<Layer>) {
        if let Some(kept) = &self.shared.kept {
            kept.tell(layer);
        }
        self.sender
            .send_modify(|flight| flight.layer = Some(layer.clone()));
        lock(&self.shared.flights).remove(&self.key);
    }

    /// Lets those copy who joined, nobody else join, and comes back when they have.
    pub(super) async fn share(self, root: Arc<Root>, journal: Journal) -> Journal {
        lock(&self.shared.flights).remove(&self.key);
        if self.sender.receiver_count() == 0 {
            return journal;
        }
        let journal = Arc::new(journal);
        let unpacked = Unpacked {
            root,
            journal: journal.clone(),
        };
        self.sender
            .send_modify(|flight| flight.unpacked = Some(unpacked));
        self.sender.closed().await;
        self.sender.send_modify(|flight| flight.unpacked = None);
        Arc::unwrap_or_clone(journal)
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        // After `share` this may be another's, who came later.
        let mut flights = lock(&self.shared.flights);
        let own = flights
            .get(&self.key)
            .is_some_and(|joined| joined.same_channel(&self.sender.subscribe()));
        if own {
            flights.remove(&self.key);
        }
    }
}

/// What is behind the lock is whole between any two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
