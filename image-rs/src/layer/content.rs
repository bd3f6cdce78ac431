//! The decompressed layer as whoever unpacks it reads it.

use std::io::{self, BufRead, Read};

use crate::digest::{Digest, Hasher};
use crate::unpack::UnpackError;

/// Where the chunks of a layer come from.
pub(super) trait Source {
    /// The next chunk, `None` at the end; `spare` is a buffer that is free again.
    fn next(&mut self, spare: Vec<u8>) -> io::Result<Option<Vec<u8>>>;
}

/// The decompressed layer, hashed for its `diff_id` as it is read.
pub(super) struct Content<'a> {
    source: &'a mut dyn Source,
    chunk: Vec<u8>,
    position: usize,
    hasher: Hasher,
}

impl<'a> Content<'a> {
    pub(super) fn new(source: &'a mut dyn Source, hasher: Hasher) -> Self {
        Self {
            source,
            chunk: Vec::new(),
            position: 0,
            hasher,
        }
    }

    /// Takes the next chunk; `false` at the end.
    fn refill(&mut self) -> io::Result<bool> {
        self.position = 0;
        let spare = std::mem::take(&mut self.chunk);
        let Some(chunk) = self.source.next(spare)? else {
            return Ok(false);
        };
        self.hasher.update(&chunk);
        self.chunk = chunk;
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

impl BufRead for Content<'_> {
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

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = buffer.len().min(available.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
