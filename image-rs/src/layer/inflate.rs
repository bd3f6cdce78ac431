//! Decompression in chunks: by whoever unpacks them, or on a thread of its own that is ahead.

use std::io::{self, Read};
use std::sync::mpsc as channel;

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

    /// Runs on a thread of its own while `read` takes the chunks. A panic there is one here.
    pub(super) fn ahead<T>(&mut self, read: impl FnOnce(&mut Ahead) -> T) -> T {
        let (send, chunks) = channel::sync_channel(CHUNKS_AHEAD);
        let (give_back, spare) = channel::channel();
        std::thread::scope(|scope| {
            let running = scope.spawn(move || self.run(&send, &spare));
            let mut ahead = Ahead { chunks, give_back };
            let result = read(&mut ahead);
            drop(ahead);
            running
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result
        })
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

/// Chunks of an [`Inflater`] on another thread.
pub(super) struct Ahead {
    chunks: channel::Receiver<io::Result<Vec<u8>>>,
    give_back: channel::Sender<Vec<u8>>,
}

impl Source for Ahead {
    fn next(&mut self, spare: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
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
