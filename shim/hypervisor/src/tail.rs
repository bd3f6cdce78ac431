//! The last bytes of a stream that someone else writes: bounded, whatever comes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A shared ring of the last bytes.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    ring: Arc<Mutex<VecDeque<u8>>>,
    capacity: usize,
}

impl Tail {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            ring: Arc::new(Mutex::new(VecDeque::new())),
            capacity,
        }
    }

    pub(crate) fn push(&self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let mut ring = self.lock();
        let excess = (ring.len() + bytes.len()).saturating_sub(self.capacity);
        ring.drain(..excess);
        ring.extend(bytes);
    }

    /// The bytes as text; what is not UTF-8 is replaced.
    pub(crate) fn text(&self) -> String {
        let bytes: Vec<u8> = self.lock().iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        // A ring of bytes has no state that a panic elsewhere could have left half-way.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_bytes_are_kept() {
        let tail = Tail::new(4);
        tail.push(b"abc");
        assert_eq!(tail.text(), "abc");
        tail.push(b"de");
        assert_eq!(tail.text(), "bcde");
        tail.push(b"0123456789");
        assert_eq!(tail.text(), "6789");
    }
}
