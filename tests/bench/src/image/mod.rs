//! Measures pulls of images: ours against the least that the same work takes, and against skopeo with umoci.
//!
//! One image of real files in four dresses, on a real registry on loopback. Whatever is measured runs in a process of
//! its own, which does nothing else, so that its memory and its processor time are its own as well.

pub mod build;
pub mod floor;
pub mod layout;
pub mod node;
pub mod peer;
pub mod pull;
pub mod registry;
pub mod throttle;
pub mod tree;

use serde_json::{Value, json};

/// The id of the key that encrypts.
pub const KID: &str = "kbs:///bench/image/key";

/// How the layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// Gzip.
    Gzip,
    /// Zstd.
    Zstd,
    /// Gzip, encrypted.
    GzipEncrypted,
    /// Zstd, encrypted.
    ZstdEncrypted,
}

impl Variant {
    /// All, in the order of the figures.
    pub const ALL: [Self; 4] = [
        Self::Gzip,
        Self::Zstd,
        Self::GzipEncrypted,
        Self::ZstdEncrypted,
    ];

    /// What stands behind a figure's name, and is the image's tag.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::GzipEncrypted => "gzip_encrypted",
            Self::ZstdEncrypted => "zstd_encrypted",
        }
    }

    /// Whether a key is needed.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::GzipEncrypted | Self::ZstdEncrypted)
    }

    /// The same without encryption.
    #[must_use]
    pub fn plain(self) -> Self {
        match self {
            Self::Gzip | Self::GzipEncrypted => Self::Gzip,
            Self::Zstd | Self::ZstdEncrypted => Self::Zstd,
        }
    }
}

/// What one process took.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Seconds.
    pub wall: f64,
    /// Seconds of all its threads, in the kernel as well.
    pub cpu: f64,
    /// The most memory that it had, in MiB; zero where nobody asked.
    pub peak_mib: f64,
}

impl Cost {
    /// As a child says it.
    #[must_use]
    pub fn to_json(self) -> Value {
        json!({"wall": self.wall, "cpu": self.cpu, "peak_mib": self.peak_mib})
    }

    /// As its parent reads it.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            wall: value["wall"].as_f64()?,
            cpu: value["cpu"].as_f64()?,
            peak_mib: value["peak_mib"].as_f64()?,
        })
    }

    /// Of this process, whose work took `wall` seconds.
    ///
    /// # Errors
    /// When `/proc` does not say it.
    pub fn of_this_process(wall: f64) -> anyhow::Result<Self> {
        use nix::sys::resource::{UsageWho, getrusage};
        let used = getrusage(UsageWho::RUSAGE_SELF)?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        Ok(Self {
            wall,
            cpu: seconds(used.user_time()) + seconds(used.system_time()),
            peak_mib: kib.map_or(0.0, |kib| kib / 1024.0),
        })
    }
}

/// Seconds of a kernel's time.
#[must_use]
pub fn seconds(time: nix::sys::time::TimeVal) -> f64 {
    use nix::sys::time::TimeValLike;
    // Microseconds of a process: far below what a float holds exactly.
    std::time::Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0))
        .as_secs_f64()
}
