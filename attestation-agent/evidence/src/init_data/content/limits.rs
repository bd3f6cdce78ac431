//! `[image.limits]` of `cdh.toml`: what an image may at most be, and what may be in it. Cloister's own section.
//!
//! The names are those that a refused image's error tells. What is not written keeps the default.

use serde::Deserialize;

use super::{CDH_TOML, ContentError};

/// Caps on images, and what becomes of odd things in them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageLimits {
    /// Bytes of a manifest.
    pub manifest_bytes: Option<u64>,
    /// Layers of an image.
    pub layers: Option<u64>,
    /// Files, directories and links of an image.
    pub entries: Option<u64>,
    /// Components of a path.
    pub path_depth: Option<u64>,
    /// Bytes of a path.
    pub path_bytes: Option<u64>,
    /// Bytes of the extended headers of an entry.
    pub header_bytes: Option<u64>,
    /// Bytes of the extended attributes of an entry.
    pub xattr_bytes: Option<u64>,
    /// Bytes of memory for directories and whiteouts.
    pub journal_bytes: Option<u64>,
    /// Bytes of all layers in the registry.
    pub compressed_bytes: Option<u64>,
    /// Bytes of all files.
    pub unpacked_bytes: Option<u64>,
    /// Bytes of a file.
    pub file_bytes: Option<u64>,
    /// How many times larger than its blob a layer may be.
    pub ratio: Option<u64>,
    /// Bytes of a layer below which no ratio is looked at.
    pub ratio_floor_bytes: Option<u64>,
    /// Bytes that a zstd stream may look back.
    pub zstd_window_bytes: Option<u64>,
    /// What becomes of device nodes.
    pub devices: Option<Devices>,
    /// What becomes of `trusted.*` attributes.
    pub trusted_xattrs: Option<TrustedXattrs>,
}

/// What becomes of device nodes in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Devices {
    /// They are made.
    Create,
    /// The image is refused.
    Refuse,
}

/// What becomes of `trusted.*` attributes in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrustedXattrs {
    /// They are set.
    Keep,
    /// The image is refused.
    Refuse,
}

/// A limit of zero would refuse every image, which is what a policy is for.
pub(super) fn check(limits: ImageLimits) -> Result<ImageLimits, ContentError> {
    let all = [
        (limits.manifest_bytes, "image.limits.manifest_bytes"),
        (limits.layers, "image.limits.layers"),
        (limits.entries, "image.limits.entries"),
        (limits.path_depth, "image.limits.path_depth"),
        (limits.path_bytes, "image.limits.path_bytes"),
        (limits.header_bytes, "image.limits.header_bytes"),
        (limits.xattr_bytes, "image.limits.xattr_bytes"),
        (limits.journal_bytes, "image.limits.journal_bytes"),
        (limits.compressed_bytes, "image.limits.compressed_bytes"),
        (limits.unpacked_bytes, "image.limits.unpacked_bytes"),
        (limits.file_bytes, "image.limits.file_bytes"),
        (limits.ratio, "image.limits.ratio"),
        (limits.zstd_window_bytes, "image.limits.zstd_window_bytes"),
    ];
    match all.into_iter().find(|(value, _)| *value == Some(0)) {
        None => Ok(limits),
        Some((_, key)) => Err(ContentError::Value {
            file: CDH_TOML,
            key,
            value: "0".to_owned(),
            fix: "write at least 1, or leave the key out",
        }),
    }
}
