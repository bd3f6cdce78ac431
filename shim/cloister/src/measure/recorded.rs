//! Launches in an image's manifest: written there from the command's flags, and measured from there.
//!
//! Who measures an image by its manifest gives no flag that decides the measurement, so that nothing but the
//! image's owner does.

use std::path::Path;

use ::measure::snp::GuestFeatures;
use anyhow::{Context, bail, ensure};
use guest_image::launch::{Launch, SnpLaunch};
use guest_image::manifest::Manifest;

use super::tdx::TdxArgs;
use super::{Kind, Measure};

/// The firmware's file, in the directory of its launch.
pub(super) const FIRMWARE: &str = "firmware.fd";

/// A file that a launch brings to the image: its name there, and its content.
pub(crate) type File = (String, Vec<u8>);

impl Measure {
    /// What is measured: the launch of the flags, or those of the image's manifest where no firmware is named.
    pub(crate) fn launches(&self) -> anyhow::Result<Vec<Self>> {
        match (self.is_given(), self.image()) {
            (true, _) => Ok(vec![self.clone()]),
            (false, Some(dir)) => self.of_image(dir),
            (false, None) => {
                bail!("give --firmware or --igvm, or --image with launches in its manifest")
            }
        }
    }

    /// The launches of an image, of which every file is the one in its manifest.
    fn of_image(&self, dir: &Path) -> anyhow::Result<Vec<Self>> {
        let manifest = self.artifacts.manifest(dir)?;
        manifest.verify(dir)?;
        let asked = |launch: &&Launch| self.tee.is_none_or(|kind| kind == Kind::of(launch));
        let launches = manifest.launches.iter().filter(asked);
        let launches = launches.map(|launch| self.of(launch, &manifest, dir));
        let launches: Vec<_> = launches.collect::<Result<_, _>>()?;
        ensure!(
            !launches.is_empty(),
            "the manifest in {} says of no such launch: add it with `cloister image-set add`, or give --firmware or \
             --igvm, and --config or --append",
            dir.display()
        );
        let snp = |launch: &Self| launch.kind() == Kind::Snp;
        ensure!(
            self.id_block.id_key.is_none() || launches.iter().all(snp),
            "--id-key is of SEV-SNP: add --tee snp"
        );
        Ok(launches)
    }

    /// One launch of an image, with what else these flags say.
    fn of(&self, launch: &Launch, manifest: &Manifest, dir: &Path) -> anyhow::Result<Self> {
        listed_name(manifest, launch.firmware())?;
        let mut all = self.clone();
        all.tee = Some(Kind::of(launch));
        let launched = |line: &str| {
            self.artifacts
                .launched(dir, manifest, launch.firmware(), line)
        };
        match launch {
            Launch::Snp(launch) => {
                all.artifacts = launched(&launch.command_line);
                let vcpus: Vec<_> = launch.vcpus.iter().map(usize::to_string).collect();
                let vcpus = vcpus.join(",").parse().map_err(anyhow::Error::msg);
                all.vcpus = vcpus.context("the launch's vcpus in the manifest")?;
                let models = launch.cpu_models.iter().map(|name| name.parse());
                all.cpu_model = models.collect::<Result<_, _>>()?;
                ensure!(
                    !all.cpu_model.is_empty(),
                    "the launch in the manifest has no cpu_models"
                );
                all.guest_features = GuestFeatures::new(launch.guest_features)?;
            }
            Launch::Tdx(launch) => {
                all.artifacts = launched(&launch.command_line);
                all.tdx = TdxArgs::of(launch, manifest, dir)?;
            }
        }
        Ok(all)
    }

    /// This launch for a manifest, and the files that it brings, in a directory of the image.
    pub(crate) fn recorded(&self, place: &str) -> anyhow::Result<(Launch, Vec<File>)> {
        let firmware = format!("{place}/{FIRMWARE}");
        let mut files = vec![(firmware.clone(), self.artifacts.whole_firmware()?)];
        let command_line = self.artifacts.line();
        let launch = match self.kind() {
            Kind::Snp => Launch::Snp(SnpLaunch {
                firmware,
                command_line: command_line.to_owned(),
                vcpus: self.vcpus.counts().collect(),
                cpu_models: self.cpu_model.iter().map(ToString::to_string).collect(),
                guest_features: self.guest_features.bits(),
            }),
            Kind::Tdx => {
                let (launch, tables) = self.tdx.recorded(place, command_line)?;
                files.extend(tables);
                Launch::Tdx(launch)
            }
        };
        Ok((launch, files))
    }
}

impl Kind {
    fn of(launch: &Launch) -> Self {
        match launch {
            Launch::Snp(_) => Self::Snp,
            Launch::Tdx(_) => Self::Tdx,
        }
    }
}

/// Refuses a file of a launch that the manifest does not list.
pub(super) fn listed_name(manifest: &Manifest, name: &str) -> anyhow::Result<()> {
    ensure!(
        manifest.lists(name),
        "a launch in the manifest needs {name}, which the manifest does not list: add the launch anew"
    );
    Ok(())
}
