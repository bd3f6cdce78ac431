//! `cloister image-set`: the guest image as something that an owner answers for.
//!
//! ```text
//!   make build ─► DIR: vmlinuz, initramfs.cpio, manifest.json
//!     add ──────► DIR/launch-0: firmware and ACPI tables; command line and shapes are in the manifest
//!     sign ─────► DIR/manifest.sig          who answers for these bytes
//!     verify ───► the signature, and every file against the manifest
//!     diff ─────► what another set has other: files, packages, launch digests
//!     publish ──► the broker's reference values: the new beside the old, each in its window
//! ```

mod add;
mod diff;
mod publish;
mod signed;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

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
    },
    /// Check an image's signature, and every file against its manifest.
    Verify {
        /// The image's directory.
        dir: PathBuf,
        /// The owner's public key in PEM, on P-256 or P-384.
        #[arg(long, value_name = "PEM")]
        key: PathBuf,
    },
    /// Say what another image has other, and what that makes of the launch digests. The exit code is 1 where
    /// they differ.
    Diff(diff::Diff),
    /// Predict an image's measurements and let a broker expect them, beside those of the image before for as
    /// long as guests of both may start.
    Publish(Box<publish::Publish>),
}

impl ImageSet {
    /// Runs the command; returns the exit code.
    pub(super) async fn run(self) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Add(add) => add.run()?,
            Verb::Sign { dir, key } => {
                let path = signed::sign(&dir, &key)?;
                println!("{}", path.display());
            }
            Verb::Verify { dir, key } => {
                let manifest = signed::verify(&dir, &key)
                    .with_context(|| format!("the image in {} is not used", dir.display()))?;
                println!("{}", manifest.table());
            }
            Verb::Diff(diff) => return diff.run(),
            Verb::Publish(publish) => publish.run().await?,
        }
        Ok(0)
    }
}
