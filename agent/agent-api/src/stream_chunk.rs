//! Room for what is read of a stream at once, for both ends of a connection to the stream port.

use crate::limit;

/// What is held for a stream on which little happens, in bytes; most are such.
const SMALL: usize = 4 * 1024;

/// Room for one read: little where little comes, so that a thousand idle streams need no memory.
#[derive(Debug)]
pub struct StreamChunk(Vec<u8>);

impl Default for StreamChunk {
    fn default() -> Self {
        Self(vec![0; SMALL])
    }
}

impl StreamChunk {
    /// Where to read to; at most [`limit::STREAM_CHUNK`] bytes.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// What was read; nothing where there was not so much room.
    #[must_use]
    pub fn first(&self, count: usize) -> &[u8] {
        self.0.get(..count).unwrap_or_default()
    }

    /// Makes room as the last read suggests.
    pub fn fit(&mut self, count: usize) {
        let wanted = match count {
            count if count == self.0.len() => limit::STREAM_CHUNK,
            count if count < SMALL => SMALL,
            _ => return,
        };
        if wanted != self.0.len() {
            self.0 = vec![0; wanted];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_with_what_comes_and_shrinks_again() {
        let mut chunk = StreamChunk::default();
        for (read, room) in [
            (SMALL, limit::STREAM_CHUNK),
            (SMALL, limit::STREAM_CHUNK),
            (limit::STREAM_CHUNK, limit::STREAM_CHUNK),
            (1, SMALL),
            (1, SMALL),
        ] {
            chunk.fit(read);
            assert_eq!(chunk.room().len(), room);
        }
    }
}
