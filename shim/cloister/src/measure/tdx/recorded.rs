//! A TD's launch as an image's manifest has it: written from the command's flags, and read back as such.

use std::path::Path;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use guest_image::launch::{TdLaunch, TdShape};
use guest_image::manifest::{Digest, Manifest};
use measure::tdx::Dialect;

use super::acpi::{Dir, Size, is_inside};
use super::{Form, Order, Secure, Tables, TdxArgs, fixed};
use crate::measure::recorded::{FIRMWARE, File, listed_name};

/// Generations of firmware by name.
pub(super) const DIALECTS: [&str; 4] = ["edk2-2023", "edk2-2024", "edk2-202505", "edk2-202508"];

impl TdxArgs {
    /// This launch, and its tables as files of the image.
    pub(in super::super) fn recorded(
        &self,
        place: &str,
        command_line: &str,
    ) -> anyhow::Result<(TdLaunch, Vec<File>)> {
        // What goes together is looked at before anything is written down.
        self.how()?;
        let dialect = |name: &&&str| name.parse().ok() == self.dialect;
        let dialect = DIALECTS.iter().find(dialect);
        let dialect = dialect.context("--dialect is missing: name the firmware's generation")?;
        let (mut files, mut shapes) = (Vec::new(), Vec::new());
        for (size, tables) in self.tables()? {
            let vcpus = size.vcpus.map(|vcpus| format!("-{vcpus}"));
            let acpi = format!("{place}/acpi-{}{}", size.mib, vcpus.unwrap_or_default());
            for (name, content) in tables.named() {
                files.push((format!("{acpi}/{name}"), content.to_vec()));
            }
            shapes.push(TdShape {
                memory_mib: size.mib,
                vcpus: size.vcpus,
                acpi,
            });
        }
        let launch = TdLaunch {
            firmware: format!("{place}/{FIRMWARE}"),
            command_line: command_line.to_owned(),
            dialect: (*dialect).to_owned(),
            page_order: word(&self.page_order),
            kernel_form: word(&self.kernel_form),
            secure_boot: word(&self.secure_boot),
            authorities: self.authority.iter().map(hex::encode).collect(),
            xfam: self.xfam.map(hex::encode),
            rtmr_0: !self.no_rtmr_0,
            shapes,
        };
        Ok((launch, files))
    }

    /// The flags of a launch in the manifest of an image, whose files it lists.
    pub(in super::super) fn of(
        launch: &TdLaunch,
        manifest: &Manifest,
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let said = |what: &'static str| move || format!("the launch's {what} in the manifest");
        let mut acpi = Vec::new();
        for shape in &launch.shapes {
            acpi.push(tables(shape, manifest, dir)?);
        }
        let sizes = launch
            .shapes
            .iter()
            .map(|shape| shape.memory_mib.to_string());
        let sizes = sizes.collect::<Vec<_>>().join(",");
        let authority = launch.authorities.iter().map(|hex| fixed::<48>(hex));
        let xfam = launch.xfam.as_deref().map(fixed::<8>);
        Ok(Self {
            dialect: Some(launch.dialect.parse::<Dialect>()?),
            memory: Some(
                sizes
                    .parse()
                    .map_err(anyhow::Error::msg)
                    .with_context(said("shapes"))?,
            ),
            acpi,
            page_order: spoken::<Order>(&launch.page_order).with_context(said("page_order"))?,
            kernel_form: spoken::<Form>(&launch.kernel_form).with_context(said("kernel_form"))?,
            secure_boot: spoken::<Secure>(&launch.secure_boot).with_context(said("secure_boot"))?,
            authority: authority
                .collect::<Result<_, _>>()
                .map_err(anyhow::Error::msg)
                .with_context(said("authorities"))?,
            xfam: xfam
                .transpose()
                .map_err(anyhow::Error::msg)
                .with_context(said("xfam"))?,
            no_rtmr_0: !launch.rtmr_0,
        })
    }
}

/// The directory of a shape's tables, each file of which the manifest lists.
fn tables(shape: &TdShape, manifest: &Manifest, dir: &Path) -> anyhow::Result<Dir> {
    let size = Size {
        mib: shape.memory_mib,
        vcpus: shape.vcpus,
    };
    ensure!(
        is_inside(&shape.acpi),
        "the manifest names {:?} for the ACPI tables of {size}, which is no name in the image",
        shape.acpi
    );
    let path = dir.join(&shape.acpi);
    let tables = Tables::read(&path)?;
    for (name, content) in tables.named() {
        let name = format!("{}/{name}", shape.acpi);
        listed_name(manifest, &name)?;
        ensure!(
            manifest.outputs.contains(&Digest::new(&name, content)),
            "{} is not the file in the manifest: add the launch anew",
            dir.join(&name).display()
        );
    }
    Ok(Dir {
        size: Some(size),
        path,
        tables: Some(tables),
    })
}

/// A choice as its flag takes it.
fn word(choice: &impl ValueEnum) -> String {
    let value = choice.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn spoken<T: ValueEnum>(word: &str) -> anyhow::Result<T> {
    T::from_str(word, false).map_err(|_| anyhow::anyhow!("{word:?} is not known"))
}
