//! Decompression in chunks: by whoever unpacks them, or on a thread of its own that is ahead.

use std::io::{self, Read};
use std::sync::mpsc as channel;
use std::thread::Scope;

use super::blob::Blob;
use super::content::Source;
use super::decoder::Decoder;

/// A chunk on its way between threads: so long that waking one up for it does not count.
const CHUNK_BYTES: usize = 512 * 1024;
/// Chunks that a decoder is ahead.
const CHUNKS_AHEAD: usize = 3;
/// A chunk that stays with its thread: still in the core's cache when it is hashed and written.
const NEAR_BYTES: usize = 128 * 1024;

/// Decompresses, and holds the layer to `cap` bytes.
pub(super) struct Inflater<'a> {
    decoder: Decoder<'a, Blob>,
    cap: u64,
    bytes: u64,
    chunk_bytes: usize,
    /// What is told after the last chunk.
    end: Option<io::Result<()>>,
}

impl<'a> Inflater<'a> {
    pub(super) fn new(decoder: Decoder<'a, Blob>, cap: u64) -> Self {
        Self {
            decoder,
            cap,
            bytes: 0,
            chunk_bytes: NEAR_BYTES,
            end: None,
        }
    }

    /// The blob, and how many bytes came of it.
    pub(super) fn into_blob(self) -> (Blob, u64) {
        (self.decoder.into_inner(), self.bytes)
    }

    /// Gives `read` the chunks: decompressed where it reads them while `busy`, and from then on, once it is not, on a
    /// thread of their own that is ahead. A panic there is one here.
    pub(super) fn feed<T>(
        &mut self,
        busy: &dyn Fn() -> bool,
        read: impl FnOnce(&mut dyn Source) -> T,
    ) -> T {
        let here = Some(self);
        std::thread::scope(move |scope| {
            read(&mut Feed {
                scope,
                busy,
                here,
                ahead: None,
            })
        })
    }

    /// Sends chunks for as long as somebody takes them, in buffers that come back.
    fn run(
        &mut self,
        send: &channel::SyncSender<io::Result<Vec<u8>>>,
        spare: &channel::Receiver<Vec<u8>>,
    ) {
        self.chunk_bytes = CHUNK_BYTES;
        while let Some(chunk) = self.next(spare.try_recv().unwrap_or_default()).transpose() {
            let last = chunk.is_err();
            // Who unpacks needs no more when it has failed.
            if send.send(chunk).is_err() || last {
                return;
            }
        }
    }
}

impl Source for Inflater<'_> {
    fn next(&mut self, mut chunk: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        if let Some(end) = self.end.take() {
            self.end = Some(Ok(()));
            return end.map(|()| None);
        }
        let more = fill(&mut self.decoder, &mut chunk, self.chunk_bytes);
        self.bytes += chunk.len() as u64;
        if self.bytes > self.cap {
            return Err(io::Error::other("the layer is far larger than its blob"));
        }
        match more {
            Ok(true) => {}
            Ok(false) => self.end = Some(Ok(())),
            Err(error) => self.end = Some(Err(error)),
        }
        Ok(Some(chunk))
    }
}

/// The chunks of an [`Inflater`], wherever it is at work.
struct Feed<'scope, 'env, 'a> {
    scope: &'scope Scope<'scope, 'env>,
    busy: &'scope dyn Fn() -> bool,
    /// Until it goes ahead.
    here: Option<&'env mut Inflater<'a>>,
    ahead: Option<Ahead>,
}

impl Source for Feed<'_, '_, '_> {
    fn next(&mut self, spare: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        if let Some(inflater) = self.here.take_if(|_| !(self.busy)()) {
            self.ahead = Some(Ahead::of(inflater, self.scope));
        }
        match (&mut self.here, &self.ahead) {
            (Some(inflater), _) => inflater.next(spare),
            (None, Some(ahead)) => ahead.next(spare),
            (None, None) => Ok(None),
        }
    }
}

/// Chunks of an [`Inflater`] on another thread.
struct Ahead {
    chunks: channel::Receiver<io::Result<Vec<u8>>>,
    give_back: channel::Sender<Vec<u8>>,
}

impl Ahead {
    fn of<'scope, 'env: 'scope>(
        inflater: &'env mut Inflater<'_>,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Self {
        let (send, chunks) = channel::sync_channel(CHUNKS_AHEAD);
        let (give_back, spare) = channel::channel();
        scope.spawn(move || inflater.run(&send, &spare));
        Self { chunks, give_back }
    }

    fn next(&self, spare: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        let Ok(chunk) = self.chunks.recv() else {
            return Ok(None);
        };
        // Where nobody takes them back, the layer has come to its end.
        let _ = self.give_back.send(spare);
        chunk.map(Some)
    }
}

/// Fills a chunk as far as there is something; whether there may be more.
fn fill(decoder: &mut Decoder<'_, Blob>, chunk: &mut Vec<u8>, bytes: usize) -> io::Result<bool> {
    chunk.resize(bytes, 0);
    let mut filled = 0;
    let mut result = Ok(true);
    while filled < bytes && matches!(result, Ok(true)) {
        match decoder.read(&mut chunk[filled..]) {
            Ok(0) => result = Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => result = Err(error),
        }
    }
    chunk.truncate(filled);
    result
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use ocicrypt::media_type::Compression;
    use tokio::sync::mpsc;

    use super::super::{Plan, Windows};
    use super::*;
    use crate::digest::Digest;

    /// Reads a layer of these bytes; cores are busy for so many chunks, and at most so many are read.
    fn feed(bytes: &[u8], busy: usize, most: usize) -> Vec<u8> {
        let (send, pieces) = mpsc::channel(1);
        send.try_send(Ok(bytes.to_vec().into())).ok().unwrap();
        drop(send);
        let digest = Digest::of(bytes);
        let plan = Plan {
            digest: digest.clone(),
            size: bytes.len() as u64,
            diff_id: digest,
            urls: Vec::new(),
            compression: Compression::None,
            decrypt: None,
        };
        let windows = Windows::default();
        let mut lent = windows.lend();
        let blob = Blob::new(&plan, pieces).unwrap();
        let decoder = Decoder::new(plan.compression, blob, 0, &mut lent).unwrap();
        let mut inflater = Inflater::new(decoder, plan.size);
        let left = Cell::new(busy);
        let busy = || left.replace(left.get().saturating_sub(1)) > 0;
        inflater.feed(&busy, |source| {
            let mut all = Vec::new();
            for _ in 0..most {
                let Some(chunk) = source.next(Vec::new()).unwrap() else {
                    break;
                };
                all.extend(chunk);
            }
            all
        })
    }

    #[test]
    fn a_layer_is_the_same_wherever_it_is_decompressed_and_when_that_changes() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * CHUNK_BYTES + 7).collect();
        for busy in [0, 1, 5, usize::MAX] {
            assert_eq!(feed(&bytes, busy, usize::MAX), bytes, "{busy}");
        }
    }

    #[test]
    fn who_reads_no_further_is_not_waited_for() {
        let bytes = vec![1; 9 * CHUNK_BYTES];
        for busy in [0, 1, usize::MAX] {
            assert!(feed(&bytes, busy, 2).len() < bytes.len());
        }
    }
}
