//! What a pull gives: an image that is known, and one that stands.

use std::path::PathBuf;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

use super::kept::Layers;
use crate::digest::Digest;
use crate::manifest::Manifest;
use crate::signature::Documents;

/// How long the phases took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Manifest and configuration.
    pub resolve: Duration,
    /// The keys of encrypted layers.
    pub keys: Duration,
    /// All layers, and their merge as far as it ran beside them.
    pub layers: Duration,
    /// What was left of the merge, and the rename.
    pub publish: Duration,
}

/// An image that stands.
#[derive(Debug)]
pub struct Pulled {
    /// The digest of the manifest for this platform, over its exact bytes.
    pub manifest_digest: Digest,
    /// The digest that the name led to: the index's, where there is one.
    pub reference_digest: Digest,
    /// The configuration.
    pub config: ImageConfiguration,
    /// The root file system: the directory that was asked for; all of it, unless there are `layers`.
    pub rootfs: PathBuf,
    /// What lies below it, where layers are kept ([`Shared::keeping`](super::Shared::keeping)): the image is the overlay
    /// with `rootfs` as its highest lower directory and these below. Hold them for as long as it is in use.
    pub layers: Layers,
    /// How many of its layers were encrypted.
    pub encrypted_layers: usize,
    /// Compressed bytes of all its layers, fetched or not.
    pub compressed_bytes: u64,
    /// How long it took.
    pub timings: Timings,
}

/// An image whose manifest and configuration are known and fit each other.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The digest of the manifest for this platform.
    pub manifest_digest: Digest,
    /// The digest that the name led to.
    pub reference_digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration.
    pub config: ImageConfiguration,
    /// `rootfs.diff_ids`.
    pub diff_ids: Vec<Digest>,
    /// What signatures of it are for.
    pub documents: Documents,
}
