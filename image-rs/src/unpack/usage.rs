//! What the layers of one image use up together, held to the limits.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Limits, UnpackError};

/// What the layers of one image have used up together.
#[derive(Debug, Default)]
pub struct Usage {
    entries: AtomicU64,
    bytes: AtomicU64,
    journal: AtomicU64,
}

impl Usage {
    /// Entries so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Bytes of files so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add_entry(&self, limits: &Limits) -> Result<(), UnpackError> {
        add(&self.entries, 1, limits.entries, "entries")
    }

    pub(super) fn add_bytes(&self, bytes: u64, limits: &Limits) -> Result<(), UnpackError> {
        add(&self.bytes, bytes, limits.unpacked_bytes, "unpacked_bytes")
    }

    /// Bytes that stay in memory until the merge.
    pub(super) fn add_journal(&self, bytes: u64, limits: &Limits) -> Result<(), UnpackError> {
        add(&self.journal, bytes, limits.journal_bytes, "journal_bytes")
    }
}

fn add(sum: &AtomicU64, more: u64, cap: u64, setting: &'static str) -> Result<(), UnpackError> {
    let before = sum.fetch_add(more, Ordering::Relaxed);
    if before.saturating_add(more) > cap {
        Err(UnpackError::limit(setting, cap))
    } else {
        Ok(())
    }
}
