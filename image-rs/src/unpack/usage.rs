//! What the layers of one image use up together, held to the limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Limits, UnpackError, memory};

/// What the layers of one image have used up together.
#[derive(Debug, Default)]
pub struct Usage {
    all: Arc<Sums>,
    /// What of it went through this value.
    own: Sums,
}

/// What one layer uses up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    /// Its entries.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of its journal.
    pub journal: u64,
}

#[derive(Debug, Default)]
struct Sums {
    entries: AtomicU64,
    bytes: AtomicU64,
    journal: AtomicU64,
}

impl Usage {
    /// The same image's, for work that may have to be done anew.
    #[must_use]
    pub fn part(&self) -> Self {
        let all = Arc::clone(&self.all);
        let own = Sums::default();
        Self { all, own }
    }

    /// What went through this part was thrown away, and is used up no more.
    pub fn forget(&self) {
        let pairs = [
            (&self.all.entries, &self.own.entries),
            (&self.all.bytes, &self.own.bytes),
            (&self.all.journal, &self.own.journal),
        ];
        for (all, own) in pairs {
            all.fetch_sub(own.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// What went through this part, to be counted again by whoever has the same.
    #[must_use]
    pub fn own(&self) -> Size {
        Size {
            entries: self.own.entries.load(Ordering::Relaxed),
            bytes: self.own.bytes.load(Ordering::Relaxed),
            journal: self.own.journal.load(Ordering::Relaxed),
        }
    }

    /// Counts what was unpacked for another image before.
    ///
    /// # Errors
    /// The limit that is passed.
    pub fn add_size(&self, size: Size, limits: &Limits) -> Result<(), UnpackError> {
        self.add(
            |sums| &sums.entries,
            size.entries,
            limits.entries,
            "entries",
        )?;
        let cap = limits.unpacked_bytes;
        // No memory is taken for them.
        self.add(|sums| &sums.bytes, size.bytes, cap, "unpacked_bytes")?;
        self.add_journal(size.journal, limits)
    }

    /// Entries so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.all.entries.load(Ordering::Relaxed)
    }

    /// Bytes of files so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.all.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add_entry(&self, limits: &Limits) -> Result<(), UnpackError> {
        self.add(|sums| &sums.entries, 1, limits.entries, "entries")?;
        look_every(memory::ENTRIES, self.entries(), 1, limits)
    }

    pub(super) fn add_bytes(&self, bytes: u64, limits: &Limits) -> Result<(), UnpackError> {
        let cap = limits.unpacked_bytes;
        self.add(|sums| &sums.bytes, bytes, cap, "unpacked_bytes")?;
        look_every(memory::BYTES, self.bytes(), bytes, limits)
    }

    /// Bytes that stay in memory until the merge.
    pub(super) fn add_journal(&self, bytes: u64, limits: &Limits) -> Result<(), UnpackError> {
        let cap = limits.journal_bytes;
        self.add(|sums| &sums.journal, bytes, cap, "journal_bytes")
    }

    fn add(
        &self,
        sum: fn(&Sums) -> &AtomicU64,
        more: u64,
        cap: u64,
        setting: &'static str,
    ) -> Result<(), UnpackError> {
        sum(&self.own).fetch_add(more, Ordering::Relaxed);
        let before = sum(&self.all).fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > cap {
            Err(UnpackError::limit(setting, cap))
        } else {
            Ok(())
        }
    }
}

/// Looks at the machine's memory each time that a sum has passed another multiple of `step`.
fn look_every(step: u64, sum: u64, more: u64, limits: &Limits) -> Result<(), UnpackError> {
    let passed = sum / step != sum.saturating_sub(more) / step;
    if limits.memory_kept > 0 && passed {
        memory::look(limits.memory_kept)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_memory_is_refused_whether_files_or_bytes_would_take_it() {
        let limits = Limits {
            memory_kept: u64::MAX,
            ..Limits::default()
        };
        let usage = Usage::default();
        let refused = (1..=memory::ENTRIES).find(|_| usage.add_entry(&limits).is_err());
        assert_eq!(refused, Some(memory::ENTRIES));
        let refused = (1..=memory::BYTES / 1024).find(|_| usage.add_bytes(1024, &limits).is_err());
        assert_eq!(refused, Some(memory::BYTES / 1024));
        let anywhere = Limits::default();
        assert!((0..=memory::ENTRIES).all(|_| usage.add_entry(&anywhere).is_ok()));
    }
}
