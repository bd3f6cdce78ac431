//! The image in its four dresses: OCI layouts, and from there into the registry.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow};
use image_rs::layout::Layout;
use image_rs::manifest::Platform;
use image_rs::recrypt::{self, Recipients, Report};
use image_rs::{Digest, Place};
use ocicrypt::Key;
use ocicrypt::jwe::PublicKey;
use serde_json::{Value, json};
use support::State;
use support::run::within;

use super::tree::Layer;
use super::{KID, Variant};

/// What builders of images take.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
/// The window of Go's encoder, 8 MiB, with which most images are made; a decoder has to hold it.
const ZSTD_WINDOW_LOG: u32 = 23;
const COPY: std::time::Duration = std::time::Duration::from_secs(300);

/// A key for the broker's way and one for skopeo's, which has no key provider everywhere.
#[expect(missing_debug_implementations, reason = "holds a key")]
pub struct Keys {
    /// What our key source gives for [`KID`].
    pub key: Key,
    /// File of the private key that opens the same layers.
    pub private: PathBuf,
    public: PublicKey,
}

impl Keys {
    /// Makes both.
    ///
    /// # Errors
    /// When openssl cannot make one.
    pub fn generate(state: &State) -> Result<Self> {
        let private = state.path().join("jwe.pem");
        let public = state.path().join("jwe.pub.pem");
        let openssl = |args: &[&str], paths: [&Path; 2]| {
            let mut command = std::process::Command::new("openssl");
            command.args(args).arg(paths[0]).arg("-out").arg(paths[1]);
            within(COPY, &mut command)?.ok()
        };
        let mut make = std::process::Command::new("openssl");
        make.args(["genrsa", "-out"]).arg(&private).arg("2048");
        within(COPY, &mut make)?.ok()?;
        openssl(&["rsa", "-pubout", "-in"], [&private, &public])?;
        Ok(Self {
            key: Key::generate()?,
            private,
            public: PublicKey::from_pem(&std::fs::read(public)?)?,
        })
    }
}

/// Writes all four layouts below `place`; each is `<place>/<name of the variant>`.
///
/// # Errors
/// When a layout cannot be written.
pub async fn layouts(place: &Path, layers: &[Layer], keys: &Keys) -> Result<()> {
    for variant in [Variant::Gzip, Variant::Zstd] {
        write(&place.join(variant.name()), layers, variant)?;
    }
    for variant in [Variant::GzipEncrypted, Variant::ZstdEncrypted] {
        let recipients = Recipients {
            broker: vec![(KID.to_owned(), keys.key.clone())],
            public: vec![keys.public.clone()],
            ..Recipients::default()
        };
        let from = layout(place, variant.plain());
        let to = layout(place, variant);
        let silent: Report = Arc::new(|_| {});
        recrypt::encrypt(&from, &to, &Platform::host(), &recipients, &silent).await?;
    }
    Ok(())
}

fn layout(place: &Path, variant: Variant) -> Place {
    let tag = Some("latest".to_owned());
    Place::Layout(Layout::new(place.join(variant.name()), tag))
}

/// Pushes a layout as it is; the bytes in the registry are those of the layout.
///
/// # Errors
/// When skopeo fails.
pub fn push(place: &Path, variant: Variant, image: &str) -> Result<()> {
    let mut command = std::process::Command::new("skopeo");
    command
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg("--dest-tls-verify=false")
        .arg(format!(
            "oci:{}:latest",
            place.join(variant.name()).display()
        ))
        .arg(format!("docker://{image}"));
    within(COPY, &mut command)?.ok().map(|_| ())
}

fn write(layout: &Path, layers: &[Layer], variant: Variant) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let packed = pack(&blobs, layers, variant)?;
    let diff_ids: Vec<_> = packed.iter().map(|(diff_id, _)| diff_id).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/usr/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let descriptors: Vec<_> = packed.iter().map(|(_, descriptor)| descriptor).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(&blobs, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?,
        "layers": descriptors,
    });
    let mut entry = blob(&blobs, MANIFEST, manifest.to_string().as_bytes())?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(layout.join("index.json"), index.to_string())?;
    let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
    Ok(std::fs::write(layout.join("oci-layout"), version)?)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A layer's `diff_id` and descriptor.
type Packed = (Digest, Value);

/// The layers in their order, made on all cores.
fn pack(blobs: &Path, layers: &[Layer], variant: Variant) -> Result<Vec<Packed>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Result<Packed>>> = Mutex::default();
    let cores = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(layer) = layers.get(index) else {
                        break;
                    };
                    let packed = compress(&layer.tar, variant).and_then(|(bytes, media_type)| {
                        Ok((Digest::of(&layer.tar), blob(blobs, media_type, &bytes)?))
                    });
                    if let Ok(mut done) = done.lock() {
                        done.insert(index, packed);
                    }
                }
            });
        }
    });
    let done = done
        .into_inner()
        .map_err(|_| anyhow!("a layer was not made"))?;
    done.into_values().collect()
}

fn compress(tar: &[u8], variant: Variant) -> Result<(Vec<u8>, &'static str)> {
    match variant.plain() {
        Variant::Gzip | Variant::GzipEncrypted => {
            let level = flate2::Compression::new(GZIP_LEVEL);
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(tar)?;
            Ok((
                gzip.finish()?,
                "application/vnd.oci.image.layer.v1.tar+gzip",
            ))
        }
        Variant::Zstd | Variant::ZstdEncrypted => {
            let mut zstd = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
            zstd.window_log(ZSTD_WINDOW_LOG)?;
            zstd.write_all(tar)?;
            Ok((
                zstd.finish()?,
                "application/vnd.oci.image.layer.v1.tar+zstd",
            ))
        }
    }
}

fn blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = Digest::of(bytes);
    let file = blobs.join(digest.hex());
    std::fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
}
