//! Reads back what a layout has: for the floor, which takes its blobs from files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image_rs::layout::Layout;
use image_rs::manifest::{Document, Manifest};

/// Layers that are read at most.
const LAYERS_MAX: usize = 128;

/// The manifest of a layout's image.
///
/// # Errors
/// When there is none.
pub fn manifest(directory: &Path) -> Result<Manifest> {
    let layout = Layout::new(directory.to_owned(), Some("latest".to_owned()));
    let (bytes, _) = layout.manifest()?;
    match Document::read(&bytes, None, LAYERS_MAX)? {
        Document::Image(manifest) => Ok(manifest),
        Document::Index(_) => None.context("an image, and no index"),
    }
}

/// The file of a blob.
#[must_use]
pub fn blob_file(directory: &Path, digest: &image_rs::Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.hex())
}
