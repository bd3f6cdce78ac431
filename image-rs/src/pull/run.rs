//! The layers of one image, side by side, into one tree.
//!
//! ```text
//! each layer:  fetch (task) ─► digest, decrypt, decompress (thread) ─► diff_id, unpack (thread) ─┐
//! one thread:                       merge, in order, as soon as the layers below are merged  ◄───┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc as channel;
use std::time::Instant;

use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::anew::begin_anew;
use super::progress::{PullPhase, Teller};
use super::shared::{Joined, LayerKey, Lead, Part, Shared};
use super::space::Space;
use super::stage::{self, Stage};
use super::{PullConfig, PullError, Timings};
use crate::layer::{self, LayerError, Machine, PIECES_AHEAD, Piece, Pieces, Plan, Windows};
use crate::place::{BlobReader, Place};
use crate::unpack::{Journal, Options, Root, Size, Tree, UnpackError, Usage, copy_layer};

/// Bytes that are worth a wake-up of the decoder.
const PIECE_BYTES: usize = 64 * 1024;

/// One image on its way; every task of it holds the stage, which is removed with the last.
#[derive(Clone)]
pub(super) struct Pull {
    pub(super) image: Place,
    pub(super) shared: Shared,
    pub(super) stage: Arc<Stage>,
    pub(super) options: Arc<Options>,
    pub(super) usage: Arc<Usage>,
    pub(super) space: Space,
    pub(super) teller: Teller,
    pub(super) windows: Arc<Windows>,
    /// Last, because fields are dropped in order: whoever waits for its end finds the stage removed.
    pub(super) _alive: mpsc::Sender<()>,
}

impl Pull {
    /// Decodes all layers side by side, and merges each as soon as those below it are merged.
    pub(super) async fn run(
        &self,
        plans: &[Arc<Plan>],
        timings: &mut Timings,
    ) -> Result<(), PullError> {
        let start = Instant::now();
        let count = plans.len();
        let (decoded, journals) = channel::channel();
        let merging = self.clone();
        let merge = tokio::task::spawn_blocking(move || merging.merge(&journals, count));
        let mut tasks = JoinSet::new();
        for (index, plan) in plans.iter().cloned().enumerate() {
            let (pull, wanted) = (self.clone(), self.shared.want());
            tasks.spawn(async move {
                let layer = pull.layer(index, plan).await;
                drop(wanted);
                (index, layer)
            });
        }
        let mut failure = None;
        while let Some(done) = tasks.join_next().await {
            let layer = match done {
                Ok((index, Ok(journal))) => Ok((index, journal)),
                Ok((_, Err(error))) => Err(error),
                Err(error) => Err(self.stage.broken(&error)),
            };
            match layer {
                Ok(layer) => {
                    // A merge that is gone has failed, and says why below.
                    if decoded.send(layer).is_err() {
                        break;
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        drop((tasks, decoded));
        timings.layers = start.elapsed();
        self.teller.phase(PullPhase::Publish);
        let start = Instant::now();
        let merged = merge.await.map_err(|error| self.stage.broken(&error))?;
        timings.publish = start.elapsed();
        failure.map_or(merged, Err)
    }

    /// A method, so that a thread which calls it holds the whole pull: with single fields of it, the stage might be
    /// removed before the thread ends, and what it writes then would be left.
    fn decode(
        &self,
        plan: &Plan,
        pieces: Pieces,
        root: &Root,
        usage: &Usage,
    ) -> Result<Journal, LayerError> {
        let machine = Machine {
            windows: &self.windows,
            busy: &|| self.shared.keeps_cores_busy(plan.compression),
        };
        layer::decode(plan, pieces, root, &self.options, usage, &machine)
    }

    /// A method for the same reason.
    fn copy(&self, from: &Root, to: &Root, usage: &Usage) -> Result<(), UnpackError> {
        copy_layer(from, to, &self.options, usage)
    }

    /// Blocking; ends without a whole tree when the layers do.
    fn merge(
        &self,
        journals: &channel::Receiver<(usize, Journal)>,
        count: usize,
    ) -> Result<(), PullError> {
        let failed = |source| PullError::Merge {
            image: self.image.to_string(),
            source,
        };
        let root = self.stage.rootfs()?;
        let mut tree = Tree::new(&root, &self.options);
        let mut waiting = BTreeMap::new();
        let mut next = 0;
        for (index, journal) in journals {
            waiting.insert(index, journal);
            while let Some(journal) = waiting.remove(&next) {
                tree.merge(&self.stage.layer(next)?, journal)
                    .map_err(failed)?;
                next += 1;
            }
        }
        if next < count {
            return Ok(());
        }
        tree.finish().map_err(failed)
    }

    /// One layer into its directory: fetched, or copied from another pull that fetches it already.
    async fn layer(&self, index: usize, plan: Arc<Plan>) -> Result<Journal, PullError> {
        let key = LayerKey::new(&plan, &self.options);
        let mut root = self.stage.new_layer(index)?;
        loop {
            match self.shared.part(key.clone()) {
                Part::Lead(lead) => {
                    return self.lead(index, plan, Arc::new(root), lead).await;
                }
                Part::Join(joined) => {
                    if let Some(journal) = self.join(index, &plan, root, joined).await? {
                        self.teller.layer_done(index);
                        return Ok(journal);
                    }
                    root = self.stage.renew_layer(index)?;
                }
            }
        }
    }

    async fn lead(
        &self,
        index: usize,
        plan: Arc<Plan>,
        root: Arc<Root>,
        lead: Lead,
    ) -> Result<Journal, PullError> {
        let (root, journal, _) = self.fetch_layer(index, &plan, root, &lead).await?;
        Ok(lead.share(root, journal).await)
    }

    /// Fetches and unpacks one layer, anew where a mirror falsified it.
    pub(super) async fn fetch_layer(
        &self,
        index: usize,
        plan: &Arc<Plan>,
        root: Arc<Root>,
        lead: &Lead,
    ) -> Result<(Arc<Root>, Journal, Size), PullError> {
        let turn = self.shared.turn(plan.compression).await;
        let mut blob = self.image.blob(&plan.digest, plan.size)?;
        if plan.decrypt.is_some() {
            blob = blob.encrypted();
        }
        let fetched = |bytes| {
            self.teller.fetched(index, bytes);
            lead.fetched(bytes);
        };
        let mut root = root;
        let decoded = loop {
            let usage = Arc::new(self.usage.part());
            match self
                .attempt(plan, &root, &mut blob, &usage, &fetched)
                .await?
            {
                Ok(journal) => break Ok((journal, usage.own())),
                Err(error) => match begin_anew(&mut blob, error) {
                    Ok(()) => usage.forget(),
                    Err(error) => break Err(error),
                },
            }
            root = Arc::new(self.stage.renew_layer(index)?);
        };
        drop(turn);
        let digest = plan.digest.clone();
        let (journal, size) = decoded.map_err(|source| self.layer_failed(index, digest, source))?;
        self.teller.layer_done(index);
        Ok((root, journal, size))
    }

    /// What stands behind `blob`, into `root`; the outer error is a task's own.
    async fn attempt(
        &self,
        plan: &Arc<Plan>,
        root: &Arc<Root>,
        blob: &mut BlobReader,
        usage: &Arc<Usage>,
        fetched: impl Fn(u64),
    ) -> Result<Result<Journal, LayerError>, PullError> {
        let (send, pieces) = mpsc::channel(PIECES_AHEAD);
        let (decoding, plan, root, usage) =
            (self.clone(), plan.clone(), root.clone(), usage.clone());
        let decode =
            tokio::task::spawn_blocking(move || decoding.decode(&plan, pieces, &root, &usage));
        fetch(blob, send, fetched).await;
        decode.await.map_err(|error| self.stage.broken(&error))
    }

    /// Waits for the one who leads and copies what it unpacked; `None` when it failed, or went away.
    async fn join(
        &self,
        index: usize,
        plan: &Plan,
        root: Root,
        mut joined: Joined,
    ) -> Result<Option<Journal>, PullError> {
        let unpacked = loop {
            let flight = joined.borrow_and_update().clone();
            if let Some(unpacked) = flight.unpacked {
                break unpacked;
            }
            self.teller.fetched(index, flight.fetched);
            if joined.changed().await.is_err() {
                return Ok(None);
            }
        };
        let pull = self.clone();
        let copy = tokio::task::spawn_blocking(move || {
            let usage = pull.usage.part();
            let copied = pull.copy(&unpacked.root, &root, &usage);
            // One who was cancelled meanwhile removes what it had, so the copy may lack something.
            let whole = joined.has_changed().is_ok();
            if !whole {
                usage.forget();
            }
            whole.then(|| copied.map(|()| Journal::clone(&unpacked.journal)))
        });
        let copied = copy.await.map_err(|error| self.stage.broken(&error))?;
        copied.transpose().map_err(|source| {
            self.layer_failed(index, plan.digest.clone(), LayerError::Unpack(source))
        })
    }

    pub(super) fn layer_failed(
        &self,
        index: usize,
        digest: crate::digest::Digest,
        source: LayerError,
    ) -> PullError {
        PullError::Layer {
            image: self.image.to_string(),
            index,
            digest,
            source: Box::new(source),
        }
    }

    /// Want of room is told as what it is, wherever it showed.
    pub(super) fn name_want_of_space(&self, config: &PullConfig, error: PullError) -> PullError {
        let cause = match &error {
            PullError::Layer { source, .. } => match source.as_ref() {
                LayerError::Unpack(cause) => Some(cause),
                _ => None,
            },
            PullError::Merge { source, .. } => Some(source),
            _ => None,
        };
        let place = self.stage.place();
        let lacks_bytes = match cause {
            Some(UnpackError::NoSpace(_)) => stage::has_files(&place),
            Some(UnpackError::NoMemory { .. }) => false,
            _ => return error,
        };
        // What is still to come takes at least the room that it has compressed.
        let mut needed = self.usage.bytes().saturating_add(self.teller.left());
        if lacks_bytes {
            needed = needed.max(self.space.available);
        }
        let needed = (needed, self.usage.entries());
        config.no_space(&self.image, self.space, needed, place)
    }
}

/// Brings a blob to its decoder, in pieces that are worth a wake-up.
async fn fetch(blob: &mut BlobReader, send: mpsc::Sender<Piece>, fetched: impl Fn(u64)) {
    let mut total = 0;
    let mut gathered = BytesMut::new();
    loop {
        let next = blob.next().await;
        let end = !matches!(next, Ok(Some(_)));
        let piece = match next {
            Ok(Some(bytes)) => {
                total += bytes.len() as u64;
                if gathered.is_empty() && bytes.len() >= PIECE_BYTES {
                    Ok(bytes)
                } else {
                    // Under TLS they are small, and so is what it takes to put them together.
                    gathered.extend_from_slice(&bytes);
                    if gathered.len() < PIECE_BYTES {
                        continue;
                    }
                    Ok(gathered.split().freeze())
                }
            }
            Ok(None) if gathered.is_empty() => return,
            Ok(None) => Ok(gathered.split().freeze()),
            Err(error) => Err(error.into()),
        };
        if send.send(piece).await.is_err() || end {
            // A decoder that is gone has failed, and says why.
            return;
        }
        fetched(total);
    }
}
