//! The decompressed layer on its way from the thread that makes it to the one that unpacks it.

use std::io::{self, BufRead, Read};
use std::sync::mpsc as channel;

use crate::digest::{Digest, Hasher};
use crate::unpack::UnpackError;

/// A chunk of a layer.
pub(super) type Chunk = io::Result<Vec<u8>>;

/// The decompressed layer, hashed for its `diff_id` as it is read.
pub(super) struct Content {
    chunks: channel::Receiver<Chunk>,
    give_back: channel::Sender<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
    hasher: Hasher,
}

impl Content {
    pub(super) fn new(
        chunks: channel::Receiver<Chunk>,
        give_back: channel::Sender<Vec<u8>>,
        hasher: Hasher,
    ) -> Self {
        Self {
            chunks,
            give_back,
            chunk: Vec::new(),
            position: 0,
            hasher,
        }
    }

    /// Takes the next chunk; `false` at the end.
    fn refill(&mut self) -> io::Result<bool> {
        let Ok(chunk) = self.chunks.recv() else {
            return Ok(false);
        };
        let chunk = std::mem::replace(&mut self.chunk, chunk?);
        self.hasher.update(&self.chunk);
        self.position = 0;
        // Where nobody takes them back, the layer has come to its end.
        let _ = self.give_back.send(chunk);
        Ok(true)
    }

    /// Reads what is left, for the digests.
    pub(super) fn finish(&mut self) -> Result<(), UnpackError> {
        while self.refill().map_err(UnpackError::Read)? {}
        Ok(())
    }

    /// Wants no more.
    pub(super) fn end(self) -> Digest {
        self.hasher.finish()
    }
}

impl BufRead for Content {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.position == self.chunk.len() {
            if !self.refill()? {
                return Ok(&[]);
            }
        }
        Ok(&self.chunk[self.position..])
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = buffer.len().min(available.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
