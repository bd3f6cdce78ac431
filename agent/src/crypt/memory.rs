//! The memory that tags may take, all together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{MEMORY_PART, SECTOR, SMALLEST, TAG, TAG_HEAD, tags};

/// How much memory tags may take together.
#[derive(Debug, Default)]
pub(super) struct Memory(AtomicU64);

/// A part of it that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    of: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// Takes a part, where the whole is an eighth of `total` bytes.
    pub(super) fn take(self: &Arc<Self>, bytes: u64, total: u64) -> Option<Taken> {
        let most = total / MEMORY_PART;
        let add = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= most);
        let added = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let of = Arc::clone(self);
        added.is_ok().then(|| Taken { of, bytes })
    }

    /// Takes what the tags of a disk of `size` bytes need, or of as much of it as leaves half of what there is to
    /// others; answers how many bytes of the disk that are. None where they are too few for a file system.
    pub(super) fn take_fitting(self: &Arc<Self>, size: u64, total: u64) -> Option<(u64, Taken)> {
        let fitting = |taken: u64| {
            let left = (total / MEMORY_PART).saturating_sub(taken);
            let most = (left / 2).saturating_sub(TAG_HEAD) / TAG * SECTOR;
            Some(size.min(most)).filter(|bytes| *bytes >= SMALLEST)
        };
        let add = |taken: u64| Some(taken + tags(fitting(taken)?));
        let before = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let bytes = fitting(before.ok()?)?;
        let taken = Taken {
            of: Arc::clone(self),
            bytes: tags(bytes),
        };
        Some((bytes, taken))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tags_together_take_an_eighth_of_the_memory_and_give_it_back() {
        let memory = Arc::new(Memory::default());
        let first = memory.take(60, 800).unwrap();
        assert!(memory.take(41, 800).is_none());
        assert!(memory.take(u64::MAX, 800).is_none());
        let second = memory.take(40, 800).unwrap();
        drop(first);
        assert!(memory.take(60, 800).is_some(), "and it was dropped at once");
        drop(second);
        assert!(memory.take(100, 800).is_some());
    }

    #[test]
    fn volumes_of_no_size_leave_half_of_the_memory_to_those_that_come_after() {
        let memory = Arc::new(Memory::default());
        let total = 2 << 30;
        let mut all = Vec::new();
        let mut last = u64::MAX;
        while let Some((bytes, taken)) = memory.take_fitting(1 << 40, total) {
            assert!(bytes < last && bytes.is_multiple_of(SECTOR), "{bytes}");
            last = bytes;
            all.push(taken);
        }
        assert!((4..64).contains(&all.len()), "{}", all.len());
        assert!(memory.0.load(Ordering::Relaxed) <= total / MEMORY_PART);
        drop(all);
        let (bytes, taken) = memory.take_fitting(1 << 30, total).unwrap();
        assert_eq!(bytes, 1 << 30);
        drop(taken);
        assert!(memory.take_fitting(1 << 40, 1 << 20).is_none());
        assert_eq!(memory.0.load(Ordering::Relaxed), 0);
    }
}
