//! `cloister image-set`: the guest image as something that an owner answers for.
//!
//! ```text
//!   make build ─► DIR: vmlinuz, initramfs.cpio, manifest.json
//!     add ──────► DIR/launch-0: firmware and ACPI tables; command line and shapes are in the manifest
//!     sign ─────► DIR/manifest.sig          who answers for these bytes, and for the image's number
//!     verify ───► the signature, and every file against the manifest
//!     diff ─────► what another set has other: files, packages, measurements and which input makes them so
//!     publish ──► the broker's reference values: the new beside the old, each in its window; no older image
//! ```

mod add;
mod diff;
mod number;
mod publish;
mod signed;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use guest_image::manifest::{FILE, Manifest};

#[derive(Debug, Args)]
pub(super) struct ImageSet {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a launch part of an image: its firmware and tables are copied, and command line and shapes
    /// written down, so that measuring and publishing need the image alone. Sign it afterwards.
    Add(Box<add::Add>),
    /// Sign an image's manifest, after every file was compared with it.
    Sign {
        /// The image's directory.
        dir: PathBuf,
        /// The private key in PEM, on P-256 or P-384.
        #[arg(long, value_name = "PEM")]
        key: PathBuf,
        /// Give the image this number first, greater than that of any image before it.
        #[arg(long, value_name = "N")]
        number: Option<u64>,
    },
    /// Check an image's signature, and every file against its manifest.
    Verify {
        /// The image's directory.
        dir: PathBuf,
        /// The owner's public key in PEM, on P-256 or P-384.
        #[arg(long, value_name = "PEM")]
        key: PathBuf,
        /// Refuse an image with a smaller number; one that nobody numbered has 0.
        #[arg(long, value_name = "N")]
        least: Option<u64>,
    },
    /// Say what another image has other, and what that makes of the launch digests. The exit code is 1 where
    /// they differ.
    Diff(Box<diff::Diff>),
    /// Predict an image's measurements and let a broker expect them, beside those of the image before for as
    /// long as guests of both may start.
    Publish(Box<publish::Publish>),
}

impl ImageSet {
    /// Runs the command; returns the exit code.
    pub(super) async fn run(self) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Add(add) => add.run()?,
            Verb::Sign { dir, key, number } => {
                let path = signed::sign(&dir, &key, number)?;
                println!("{}", path.display());
            }
            Verb::Verify { dir, key, least } => {
                let manifest = signed::verify(&dir, &key).and_then(|manifest| {
                    number::at_least(&manifest, least.unwrap_or_default())?;
                    Ok(manifest)
                });
                let said = || format!("the image in {} is not used", dir.display());
                let manifest = manifest.with_context(said)?;
                println!("{}", manifest.table());
            }
            Verb::Diff(diff) => return diff.run(),
            Verb::Publish(publish) => publish.run().await?,
        }
        Ok(0)
    }
}

/// Puts a manifest in the place of an image's; gives its bytes.
fn put(dir: &Path, manifest: &Manifest) -> anyhow::Result<Vec<u8>> {
    let path = dir.join(FILE);
    let fresh = path.with_extension("new");
    let text = manifest.to_bytes()?;
    fs::write(&fresh, &text)
        .and_then(|()| fs::rename(&fresh, &path))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(text)
}
