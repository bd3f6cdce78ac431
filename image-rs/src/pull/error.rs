//! Why an image was not pulled: each names the image, and the step that failed.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::manifest::ManifestError;
use crate::place::PlaceError;
use crate::policy::PolicyError;
use crate::registry::RegistryError;
use crate::signature::DocumentsError;
use crate::unpack::UnpackError;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout, where the image is in one.
    #[error(transparent)]
    Source(Box<PlaceError>),
    /// The manifest or the configuration.
    #[error("image {image}: {source}")]
    Manifest {
        /// Which image.
        image: String,
        /// Why.
        source: ManifestError,
    },
    /// The index and the manifest that was taken from it.
    #[error(transparent)]
    Documents(#[from] DocumentsError),
    /// The keys.
    #[error("image {image} cannot be decrypted: {source}")]
    Keys {
        /// Which image.
        image: String,
        /// Why.
        source: ocicrypt::Error,
    },
    /// A layer.
    #[error("layer {index} ({digest}) of {image}: {source}")]
    Layer {
        /// Which image.
        image: String,
        /// Which layer, from 0.
        index: usize,
        /// The manifest's digest of it.
        digest: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// The layers together.
    #[error("the layers of {image} cannot be merged: {source}")]
    Merge {
        /// Which image.
        image: String,
        /// Why.
        source: UnpackError,
    },
    /// A cap on the blobs.
    #[error(
        "the layers of {image} have {found} compressed bytes, more than the limit \"compressed_bytes\" of {cap}"
    )]
    TooLarge {
        /// Which image.
        image: String,
        /// Bytes of its layers.
        found: u64,
        /// The cap.
        cap: u64,
    },
    /// No room.
    #[error(
        "no space for {image}: it needs more than {needed} bytes ({compressed} of them compressed layers) for \
         {files} files and those to come, and {available} are free in {place:?}; raise {setting}"
    )]
    NoSpace {
        /// Which image.
        image: String,
        /// What it needs at least, unpacked as far as is known.
        needed: u64,
        /// Bytes of its layers in the registry.
        compressed: u64,
        /// Files, directories and links so far: names take room too, and a file system has so many.
        files: u64,
        /// Bytes that were free before.
        available: u64,
        /// Where.
        place: PathBuf,
        /// What to change.
        setting: String,
    },
    /// The store on disk.
    #[error("{step} {path:?}: {source}")]
    Store {
        /// Which step.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl PullError {
    /// Whether it would not be one if there were more room.
    pub(super) fn is_want_of_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Store { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

impl From<PlaceError> for PullError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Registry(error) => Self::Registry(error),
            error => Self::Source(Box::new(error)),
        }
    }
}
