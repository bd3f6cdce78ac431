//! Why a layout cannot be used: each names the file.

use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::unpack::UnpackError;

/// Why a layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file system.
    #[error("{step} {path:?}: {source}")]
    Io {
        /// Which step.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a layout of this version.
    #[error("{0:?} is not an OCI image layout of version 1.0.0")]
    NotOne(PathBuf),
    /// An `index.json` that is none.
    #[error("{path:?} is not the index of an OCI image layout: {reason}")]
    Index {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What was written as a name.
    #[error("{text:?} is not the name of an image in a layout: {reason}")]
    Name {
        /// What was written.
        text: String,
        /// What is wrong with it, and what to write.
        reason: &'static str,
    },
    /// A digest where an image shall be written.
    #[error(
        "{0:?} cannot be written to: what is written has a digest of its own; leave the digest out"
    )]
    Pinned(String),
    /// `index.json` names no such image.
    #[error("layout {path:?} has no image {wanted}; it has: {found}")]
    NoImage {
        /// The layout.
        path: PathBuf,
        /// The tag, or "without a tag".
        wanted: String,
        /// The tags in it, as they may be shown.
        found: String,
    },
    /// Not an archive that we can read.
    #[error(
        "{path:?} cannot be read as a tar archive: {source}; a compressed one is to be unpacked first"
    )]
    Archive {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: UnpackError,
    },
    /// A blob of another length than its descriptor says.
    #[error("blob {path:?} has {found} bytes, not {expected}")]
    Size {
        /// Which file.
        path: PathBuf,
        /// What the manifest says.
        expected: u64,
        /// Its length.
        found: u64,
    },
    /// A cap.
    #[error("{path:?} has more than {cap} bytes")]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The cap, in bytes.
        cap: usize,
    },
    /// Bytes that are not those of their name.
    #[error("blob {path:?} is damaged: expected {expected}, found {found}")]
    Digest {
        /// Which file.
        path: PathBuf,
        /// Its name.
        expected: Digest,
        /// The digest of its bytes.
        found: Digest,
    },
}

pub(super) fn failed(step: &'static str, path: &Path, source: std::io::Error) -> LayoutError {
    LayoutError::Io {
        step,
        path: path.to_owned(),
        source,
    }
}
