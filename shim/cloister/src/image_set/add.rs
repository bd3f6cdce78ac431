//! `cloister image-set add`: a launch becomes part of an image, with its firmware and its ACPI tables. After
//! that nothing but the image's directory is needed to predict what the hardware will report.
//!
//! ```text
//!   manifest.json    launches: [command line, shapes, ...]    outputs: [..., launch-0/firmware.fd]
//!   launch-0/        firmware.fd, acpi-2048/etc/...           the same inputs make the same bytes
//! ```
//!
//! The manifest is written last, so that what an interrupted run leaves behind is part of nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use clap::Args;
use guest_image::launch::LAUNCHES;
use guest_image::manifest::{Digest, Manifest};

use crate::measure::{File, Measure};

#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    measure: Measure,
}

impl Add {
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let dir = self.measure.image();
        let dir = dir.context("a launch is added to an image: give --image")?;
        let dir = &dir.to_owned();
        let mut manifest = Manifest::read(dir)?;
        manifest.verify(dir)?;
        self.measure.trust(manifest.clone());
        ensure!(
            self.measure.is_given(),
            "give what is launched, as to `cloister measure`: --firmware, --config or --append, and the shapes"
        );
        if let Some(number) = self.known(&manifest)? {
            println!("launch {number} of {} is this one", dir.display());
            return Ok(());
        }
        let number = manifest.launches.len();
        ensure!(
            number < LAUNCHES,
            "an image has {LAUNCHES} launches at most: build it anew and add those that are needed"
        );
        // A launch that cannot be predicted is none.
        self.measure.reference_values()?;
        let (launch, files) = self.measure.recorded(&place(number))?;
        for (name, content) in &files {
            manifest.outputs.push(Digest::new(name, content));
            write(&dir.join(name), content)?;
        }
        manifest.launches.push(launch);
        super::put(dir, &manifest)?;
        println!("added launch {number}: sign the image with `cloister image-set sign`");
        Ok(())
    }

    /// The number of this launch, where the image has it.
    fn known(&self, manifest: &Manifest) -> anyhow::Result<Option<usize>> {
        let listed =
            |(name, content): &File| manifest.outputs.contains(&Digest::new(name, content));
        for (number, known) in manifest.launches.iter().enumerate() {
            let (launch, files) = self.measure.recorded(&place(number))?;
            if launch == *known && files.iter().all(listed) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// The directory in the image for the files of a launch.
fn place(number: usize) -> String {
    format!("launch-{number}")
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, content)
    };
    write().with_context(|| format!("write {}", path.display()))
}
