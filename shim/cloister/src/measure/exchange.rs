//! A launch as it is compared with another one: what the hardware will report of it, and which of its inputs makes
//! that another value. The latter is not guessed from what depends on what: the launch is predicted once more with
//! that one input of the other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use ::measure::snp::{CpuModel, GuestFeatures};
use clap::Parser;
use guest_image::manifest::Manifest;

use super::tdx::TdxArgs;
use super::{Kind, Measure, Prediction, Vcpus};

/// Values by what they are of.
pub(crate) type Measurements = BTreeMap<String, String>;

/// An input of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    Firmware,
    Kernel,
    Initramfs,
    CommandLine,
    GuestFeatures,
    Generation,
    PageOrder,
    KernelForm,
    SecureBoot,
    Tables,
}

impl Input {
    pub(crate) const ALL: [Self; 10] = [
        Self::Firmware,
        Self::Kernel,
        Self::Initramfs,
        Self::CommandLine,
        Self::GuestFeatures,
        Self::Generation,
        Self::PageOrder,
        Self::KernelForm,
        Self::SecureBoot,
        Self::Tables,
    ];

    /// For people, and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::CommandLine => "command line",
            Self::GuestFeatures => "guest features",
            Self::Generation => "dialect",
            Self::PageOrder => "page order",
            Self::KernelForm => "kernel form",
            Self::SecureBoot => "Secure Boot",
            Self::Tables => "ACPI tables",
        }
    }
}

/// A launch as flags say it.
#[derive(Debug)]
pub(crate) struct Said<'a> {
    pub(crate) firmware: &'a Path,
    pub(crate) line: &'a str,
    pub(crate) vcpus: Vcpus,
    pub(crate) cpu_model: CpuModel,
    pub(crate) guest_features: GuestFeatures,
    /// Of a TD, whose dialect is said.
    pub(crate) tdx: TdxArgs,
}

/// The command `measure`, for what its flags are where nobody gives them.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    measure: Measure,
}

impl Measure {
    /// An image whose manifest was read and verified.
    pub(crate) fn of_dir(dir: &Path, manifest: Manifest) -> anyhow::Result<Self> {
        let mut image = OsString::from("--image=");
        image.push(dir);
        let mut measure = Alone::try_parse_from([OsString::from("measure"), image])?.measure;
        measure.trust(manifest);
        Ok(measure)
    }

    /// The same image, launched as flags say.
    pub(crate) fn said(&self, said: Said<'_>) -> Self {
        let is_td = said.tdx.asked();
        Self {
            tee: Some(if is_td { Kind::Tdx } else { Kind::Snp }),
            artifacts: self.artifacts.with(said.firmware, said.line),
            vcpus: said.vcpus,
            cpu_model: vec![said.cpu_model],
            guest_features: said.guest_features,
            tdx: said.tdx,
            ..self.clone()
        }
    }

    /// What the hardware will report.
    pub(crate) fn measurements(&self) -> anyhow::Result<Measurements> {
        let predicted = self.predicted()?;
        Ok(predicted
            .iter()
            .flat_map(Prediction::measurements)
            .collect())
    }

    /// This launch with one input of another.
    pub(crate) fn exchanged(&self, input: Input, other: &Self) -> Self {
        let mut mixed = Self {
            artifacts: self.artifacts.exchanged(input, &other.artifacts),
            ..self.clone()
        };
        if input == Input::GuestFeatures {
            mixed.guest_features = other.guest_features;
        }
        mixed.tdx.exchange(input, &other.tdx);
        mixed
    }
}
