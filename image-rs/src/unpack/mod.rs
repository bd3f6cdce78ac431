//! Layers into a tree of files, without a way out of it.
//!
//! Each layer is unpacked into a directory of its own, so that layers can be decoded side by side, and a layer's
//! whiteouts can only hide what is below it. Then the directories are merged in order, by rename:
//!
//! ```text
//! layer 0 ─► dir 0 ─┐
//! layer 1 ─► dir 1 ─┼─ whiteouts, then rename, then late hard links ─► one tree
//! layer 2 ─► dir 2 ─┘
//! ```
//!
//! Every path is opened by descriptor from the tree's root (`openat2` with `RESOLVE_BENEATH | NO_MAGICLINKS`);
//! no path string of the host's is ever built from a name in an archive.

mod archive;
mod error;
mod journal;
mod layer;
mod merge;
mod path;
mod pax;
mod root;

pub use archive::Archive;
pub use error::UnpackError;
pub use journal::Journal;
pub use layer::unpack;
pub use merge::Tree;
pub use root::Root;

use std::sync::atomic::{AtomicU64, Ordering};

/// What an image may at most be. Each is the name of a setting in [`UnpackError`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Layers of an image.
    pub layers: usize,
    /// Files, directories and links of all layers.
    pub entries: u64,
    /// Components of one path.
    pub path_depth: usize,
    /// Bytes of all layers as they are in the registry.
    pub compressed_bytes: u64,
    /// Bytes of all unpacked files.
    pub unpacked_bytes: u64,
    /// How many times larger than its blob a layer may be, once it is larger than `ratio_floor_bytes`.
    pub ratio: u64,
    /// Below this, in bytes, no ratio is looked at: a small layer of zeros harms nobody.
    pub ratio_floor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 128,
            entries: 2_000_000,
            path_depth: 128,
            compressed_bytes: 64 << 30,
            unpacked_bytes: 128 << 30,
            ratio: 250,
            ratio_floor_bytes: 256 << 20,
        }
    }
}

/// What becomes of device nodes in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// They are made; the runtime's device rules decide who may open them.
    Create,
    /// The image is refused.
    Refuse,
}

/// What becomes of owners, and of the attributes that only root can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// They are set as the layer says; needs root.
    Keep,
    /// Everything belongs to the caller.
    Caller,
}

/// How to unpack.
#[derive(Debug, Clone)]
pub struct Options {
    /// The caps.
    pub limits: Limits,
    /// Device nodes.
    pub devices: Devices,
    /// Owners.
    pub ownership: Ownership,
}

/// What the layers of one image have used up together.
#[derive(Debug, Default)]
pub struct Usage {
    entries: AtomicU64,
    bytes: AtomicU64,
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

    fn add_entry(&self, limits: &Limits) -> Result<(), UnpackError> {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed) + 1;
        if entries > limits.entries {
            Err(UnpackError::limit("entries", limits.entries))
        } else {
            Ok(())
        }
    }

    fn add_bytes(&self, bytes: u64, limits: &Limits) -> Result<(), UnpackError> {
        let sum = self
            .bytes
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        if sum > limits.unpacked_bytes {
            return Err(UnpackError::limit("unpacked_bytes", limits.unpacked_bytes));
        }
        Ok(())
    }
}
