//! What people do where nobody pulls for them: `skopeo copy` into a layout, then `umoci unpack`.
//!
//! The umoci of Debian 12 reads no zstd, so between the two the layers of such an image are decompressed by `zstd`, all
//! at once, and the layout says so. That is quicker than any umoci would be.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use image_rs::Digest;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::Value;
use support::run::within;

use super::{Cost, Variant, seconds};

const LIMIT: Duration = Duration::from_secs(300);

/// Copies and unpacks `image` below `room`, which is empty.
///
/// # Errors
/// When a program fails.
pub fn once(image: &str, variant: Variant, key: &Path, room: &Path) -> Result<Cost> {
    let before = children()?;
    let start = Instant::now();
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", "--insecure-policy"])
        .arg("--src-tls-verify=false");
    if variant.is_encrypted() {
        copy.arg("--decryption-key").arg(key);
    }
    copy.arg(format!("docker://{image}"));
    let layout = room.join("layout");
    copy.arg(format!("oci:{}:latest", layout.display()));
    within(LIMIT, &mut copy)?.ok()?;
    if variant.plain() == Variant::Zstd {
        decompress(&layout)?;
    }
    let mut unpack = Command::new("umoci");
    unpack
        .args(["unpack", "--image"])
        .arg(format!("{}:latest", layout.display()))
        .arg(room.join("bundle"));
    within(LIMIT, &mut unpack)?.ok()?;
    Ok(Cost {
        wall: start.elapsed().as_secs_f64(),
        cpu: children()? - before,
        peak_mib: 0.0,
    })
}

/// Replaces each layer by its content, whose digest the configuration has, and writes the manifest anew.
fn decompress(layout: &Path) -> Result<()> {
    let file = |digest: &Value| -> Result<PathBuf> {
        let digest: Digest = digest.as_str().context("a digest")?.parse()?;
        Ok(super::layout::blob_file(layout, &digest))
    };
    let read =
        |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let mut index = read(&layout.join("index.json"))?;
    let mut manifest = read(&file(&index["manifests"][0]["digest"])?)?;
    let config = read(&file(&manifest["config"]["digest"])?)?;
    let layers = manifest["layers"].as_array_mut().context("layers")?;
    let mut running: Vec<Child> = Vec::new();
    for (layer, diff_id) in layers.iter().zip(diff_ids(&config)?) {
        let mut zstd = Command::new("zstd");
        zstd.args(["-d", "-q"])
            .arg(file(&layer["digest"])?)
            .arg("-o")
            .arg(file(diff_id)?);
        running.push(zstd.spawn().context("start zstd")?);
    }
    for child in &mut running {
        ensure!(child.wait()?.success(), "zstd failed");
    }
    for (layer, diff_id) in layers.iter_mut().zip(diff_ids(&config)?) {
        layer["size"] = file(diff_id)?.metadata()?.len().into();
        layer["digest"] = diff_id.clone();
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
    }
    let bytes = manifest.to_string();
    let digest = Digest::of(bytes.as_bytes());
    std::fs::write(super::layout::blob_file(layout, &digest), &bytes)?;
    index["manifests"][0]["digest"] = digest.to_string().into();
    index["manifests"][0]["size"] = bytes.len().into();
    Ok(std::fs::write(
        layout.join("index.json"),
        index.to_string(),
    )?)
}

fn diff_ids(config: &Value) -> Result<&Vec<Value>> {
    config["rootfs"]["diff_ids"].as_array().context("diff_ids")
}

/// Processor time of all children that have ended.
fn children() -> Result<f64> {
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok(seconds(used.user_time()) + seconds(used.system_time()))
}
