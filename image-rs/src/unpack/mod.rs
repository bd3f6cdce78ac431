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
//! Layers that are kept for other images are not moved: each directory becomes one of an overlay's ([`make_lower`],
//! [`stack()`]), and only what no overlay can say is merged, from copies.
//!
//! Every path is opened by descriptor from the tree's root (`openat2` with `RESOLVE_BENEATH | NO_SYMLINKS`); a link on
//! the way is read and followed by hand, inside. No path string of the host's is ever built from a name in an archive.
//!
//! Nobody else sees the directories while they are filled, so what a file or a directory is in the end is set once:
//! a file's when it is written, a directory's by [`Tree::finish`].

mod archive;
mod copy;
mod entry;
mod error;
mod header;
mod journal;
mod layer;
mod lower;
mod memory;
mod merge;
mod meta;
mod near;
mod path;
mod pax;
mod root;
mod sparse;
mod stack;
mod usage;

pub use archive::Archive;
pub use copy::copy_layer;
pub use error::UnpackError;
pub use journal::Journal;
pub use layer::unpack;
pub use lower::{Lower, make_lower, unmake_lower};
pub use merge::Tree;
pub use root::Root;
pub use stack::{StackLayer, stack};
pub use usage::{Size, Usage};

/// What an image may at most be. Each is the name of a setting in [`UnpackError`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of a manifest or an index.
    pub manifest_bytes: usize,
    /// Layers of an image.
    pub layers: usize,
    /// Files, directories and links of all layers.
    pub entries: u64,
    /// Components of one path, links on its way followed.
    pub path_depth: usize,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Bytes of the extended headers of one entry: PAX, long names, maps of sparse files.
    pub header_bytes: u64,
    /// Bytes of the extended attributes of one entry.
    pub xattr_bytes: usize,
    /// Bytes that are kept in memory of directories, whiteouts and late links until the layers are merged.
    pub journal_bytes: u64,
    /// Bytes of all layers as they are in the registry.
    pub compressed_bytes: u64,
    /// Bytes of all unpacked files.
    pub unpacked_bytes: u64,
    /// Bytes of one file, holes included.
    pub file_bytes: u64,
    /// How many times larger than its blob a layer may be, once it is larger than `ratio_floor_bytes`.
    pub ratio: u64,
    /// Below this, in bytes, no ratio is looked at: a small layer of zeros harms nobody.
    pub ratio_floor_bytes: u64,
    /// Bytes that a zstd stream may want its decoder to look back, rounded up to a power of two.
    pub zstd_window_bytes: u64,
    /// Bytes of the machine's memory that no image gets; 0 where nobody looks.
    pub memory_kept: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: crate::manifest::MANIFEST_BYTES_MAX,
            layers: 128,
            entries: 2_000_000,
            path_depth: 128,
            path_bytes: 4095,
            header_bytes: 1 << 20,
            xattr_bytes: 128 << 10,
            journal_bytes: 48 << 20,
            compressed_bytes: 64 << 30,
            unpacked_bytes: 128 << 30,
            file_bytes: 64 << 30,
            ratio: 250,
            ratio_floor_bytes: 256 << 20,
            // What the tools of images write at their highest level; a decoder per layer may need this much memory.
            zstd_window_bytes: 32 << 20,
            memory_kept: 0,
        }
    }
}

/// What becomes of device nodes in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Devices {
    /// They are made; the runtime's device rules decide who may open them.
    Create,
    /// The image is refused.
    Refuse,
}

/// What becomes of owners, and of the attributes that only root can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// They are set as the layer says; needs root.
    Keep,
    /// Everything belongs to the caller.
    Caller,
}

/// What becomes of `trusted.*` attributes, which mean something to the kernel of whoever mounts the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Trusted {
    /// They are set, except those of the overlay driver, which are no image's.
    Keep,
    /// The image is refused.
    Refuse,
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
    /// `trusted.*` attributes.
    pub trusted: Trusted,
}
