//! Launches in a manifest: the ways in which hosts may start an image, with all that decides what the hardware
//! will report of each. Who has the image needs nothing else to predict its measurements.
//!
//! The files of a launch are among the manifest's outputs, so that they are verified as the kernel is. Words
//! are those of `cloister measure`, which reads them.

use serde::{Deserialize, Serialize};

/// Launches of one image.
pub const LAUNCHES: usize = 64;

/// One way to start an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tee", rename_all = "lowercase")]
pub enum Launch {
    /// As an SEV-SNP guest.
    Snp(SnpLaunch),
    /// As a TD.
    Tdx(TdLaunch),
}

/// A launch as an SEV-SNP guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpLaunch {
    /// The firmware's file, an output.
    pub firmware: String,
    /// The kernel's command line, to the letter.
    pub command_line: String,
    /// Numbers of vCPUs that a pod may have.
    pub vcpus: Vec<usize>,
    /// QEMU's CPU models that hosts may launch with.
    pub cpu_models: Vec<String>,
    /// `SEV_FEATURES`.
    pub guest_features: u64,
}

/// A launch as a TD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdLaunch {
    /// The firmware's file, an output.
    pub firmware: String,
    /// The kernel's command line, without what the firmware adds.
    pub command_line: String,
    /// The firmware's generation.
    pub dialect: String,
    /// How the host's kernel measures the firmware's pages.
    pub page_order: String,
    /// In which form the firmware gets the kernel.
    pub kernel_form: String,
    /// Whether the firmware has Secure Boot.
    pub secure_boot: String,
    /// What the kernel is allowed by with Secure Boot on, as hex.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<String>,
    /// The features that hosts give, as hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xfam: Option<String>,
    /// Whether a broker is told RTMR0.
    pub rtmr_0: bool,
    /// The shapes that a pod may have.
    pub shapes: Vec<TdShape>,
}

/// The size of a TD, and the tables of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdShape {
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its vCPUs, where several shapes have that memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// The directory with its ACPI tables, whose files are outputs.
    pub acpi: String,
}

impl Launch {
    /// The kind of TEE.
    #[must_use]
    pub fn tee(&self) -> &'static str {
        match self {
            Self::Snp(_) => "snp",
            Self::Tdx(_) => "tdx",
        }
    }

    /// The firmware's file.
    #[must_use]
    pub fn firmware(&self) -> &str {
        match self {
            Self::Snp(launch) => &launch.firmware,
            Self::Tdx(launch) => &launch.firmware,
        }
    }
}
