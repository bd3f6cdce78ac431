//! Images in a layout, made by hand from blobs.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses a part of it"
)]

use image_rs::Digest;
use image_rs::layout::Layout;
use serde_json::{Value, json};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A layer's blob, and what is said of it.
#[derive(Clone)]
pub struct Blob {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub diff_id: Digest,
}

impl Blob {
    pub fn plain(tar: &[u8]) -> Self {
        Self::packed(tar, tar.to_vec(), "application/vnd.oci.image.layer.v1.tar")
    }

    pub fn packed(tar: &[u8], bytes: Vec<u8>, media_type: &str) -> Self {
        Self {
            bytes,
            media_type: media_type.to_owned(),
            diff_id: Digest::of(tar),
        }
    }
}

pub fn write(layout: &Layout, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut writer = layout.start_blob().unwrap();
    writer.write(bytes).unwrap();
    writer.finish(&digest).unwrap();
    digest
}

/// Writes an image of these layers under the layout's tag.
pub fn image(layout: &Layout, layers: &[Blob]) -> Digest {
    let manifest = manifest(layout, layers, "amd64");
    layout
        .write_manifest(OCI_MANIFEST, manifest.to_string().as_bytes())
        .unwrap()
}

/// Writes all of an image but its manifest.
pub fn manifest(layout: &Layout, layers: &[Blob], architecture: &str) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string();
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": layer.media_type, "digest": write(layout, &layer.bytes),
                "size": layer.bytes.len(),
            })
        })
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": write(layout, config.as_bytes()), "size": config.len(),
        },
        "layers": layers,
    })
}
