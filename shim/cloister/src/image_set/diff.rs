//! `cloister image-set diff`: what an upgrade changes. Files by their digests, what they were made of, and
//! the SNP launch digests where the rest of a launch is given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use guest_image::launch;
use guest_image::manifest::{Digest, Manifest};
use measure::snp::{CpuModel, FIRMWARE_BYTES, Firmware, GuestFeatures, KernelHashes, Launch};
use serde::Serialize;
use serde_json::Value;

use crate::measure::{INITRAMFS, INITRAMFS_BYTES, KERNEL, KERNEL_BYTES, Vcpus, listed, read_file};

#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The directory of one image.
    old: PathBuf,
    /// The directory of the other.
    new: PathBuf,
    /// Also compare SNP launch digests: the firmware of both.
    #[arg(long, value_name = "FILE", requires = "append")]
    firmware: Option<PathBuf>,
    /// The firmware of the other, where it is another one.
    #[arg(long, value_name = "FILE", requires = "firmware")]
    new_firmware: Option<PathBuf>,
    /// The kernel's command line, to the letter.
    #[arg(long, value_name = "TEXT", requires = "firmware")]
    append: Option<String>,
    /// Numbers of vCPUs that a pod may have, such as 1-4,8.
    #[arg(long, value_name = "LIST", default_value = "1")]
    vcpus: Vcpus,
    /// QEMU's CPU model.
    #[arg(long, value_name = "NAME", default_value = "EPYC-v4")]
    cpu_model: CpuModel,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// One thing that is not the same; `None` where one set has it not.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    what: String,
    old: Option<String>,
    new: Option<String>,
}

impl Diff {
    /// Prints what differs; returns the exit code.
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let (old, new) = (read(&self.old)?, read(&self.new)?);
        let mut all = changes(&facts(&old)?, &facts(&new)?);
        if let Some(firmware) = &self.firmware {
            let other = self.new_firmware.as_ref().unwrap_or(firmware);
            let old = self.digests(&self.old, &old, firmware)?;
            let new = self.digests(&self.new, &new, other)?;
            all.extend(changes(&old, &new));
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&all)?);
        } else {
            for Change { what, old, new } in &all {
                let side = |it: &Option<String>| it.clone().unwrap_or_else(|| "none".to_owned());
                println!("{what}\n  - {}\n  + {}", side(old), side(new));
            }
        }
        Ok(u8::from(!all.is_empty()))
    }

    /// The launch digest for each number of vCPUs.
    fn digests(
        &self,
        dir: &Path,
        manifest: &Manifest,
        firmware: &Path,
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let kernel = listed(dir, manifest, KERNEL, KERNEL_BYTES)?;
        let initramfs = listed(dir, manifest, INITRAMFS, INITRAMFS_BYTES)?;
        let line = self.append.as_deref().unwrap_or_default();
        let hashes = KernelHashes::new(&kernel, Some(&initramfs), line)?;
        let image = read_file(firmware, FIRMWARE_BYTES)?;
        let parsed = Firmware::parse(&image).with_context(|| firmware.display().to_string())?;
        let launch = Launch {
            firmware: &parsed,
            kernel: Some(&hashes),
            cpu: &self.cpu_model,
            features: GuestFeatures::SNP,
        };
        let counts = self.vcpus.counts().map(|vcpus| {
            let digest = launch.digest(u32::try_from(vcpus).unwrap_or(u32::MAX))?;
            let what = format!("SNP launch digest, {} vcpus={vcpus}", self.cpu_model);
            anyhow::Ok((what, digest.hex()))
        });
        counts.collect()
    }
}

/// The manifest of files that are those of it.
fn read(dir: &Path) -> anyhow::Result<Manifest> {
    let manifest = Manifest::read(dir)?;
    manifest.verify(dir)?;
    Ok(manifest)
}

/// All that a manifest says, each by a name.
fn facts(manifest: &Manifest) -> anyhow::Result<BTreeMap<String, String>> {
    let kernel = &manifest.kernel;
    let mut facts = BTreeMap::from([
        ("kernel release".to_owned(), kernel.release.clone()),
        ("kernel flavour".to_owned(), kernel.flavour.to_string()),
    ]);
    for package in &kernel.packages {
        facts.insert(format!("package {}", package.name), package.version.clone());
    }
    for (number, launch) in manifest.launches.iter().enumerate() {
        facts.extend(said(number, launch)?);
    }
    let mut put = |kind: &str, digest: &Digest| {
        let text = format!("sha256 {}, {} bytes", digest.sha256, digest.size);
        facts.insert(format!("{kind} {}", digest.name), text);
    };
    put("program", &manifest.agent);
    for module in &manifest.modules {
        put("module", module);
    }
    for output in &manifest.outputs {
        put("file", output);
    }
    Ok(facts)
}

/// What a launch says, each by the name of the member.
fn said(number: usize, launch: &launch::Launch) -> anyhow::Result<BTreeMap<String, String>> {
    let Value::Object(members) = serde_json::to_value(launch).context("write JSON")? else {
        bail!("launch {number} has no members");
    };
    let said = members.into_iter().map(|(member, value)| {
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        (format!("launch {number} {member}"), text)
    });
    Ok(said.collect())
}

fn changes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Change> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differs = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name));
    differs
        .map(|name| Change {
            what: name.clone(),
            old: old.get(name).cloned(),
            new: new.get(name).cloned(),
        })
        .collect()
}
