//! Whom an image is for: operating system, architecture, and variants of it.
//!
//! A variant is a level of the instruction set. A machine of a level runs what is for lower ones, so they are taken
//! where its own is not there; the names and their order are containerd's.

use crate::shown::shown;

/// An operating system, an architecture and its variant, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v8`, …; none is the one that the architecture has without saying so.
    pub variant: Option<String>,
}

impl Platform {
    /// Other names of the same thing become one.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let variant = match variant.unwrap_or_default() {
            "" => None,
            "8" => Some("v8"),
            "7" => Some("v7"),
            "6" => Some("v6"),
            "5" => Some("v5"),
            other => Some(other),
        };
        let variant = variant.filter(|variant| Some(*variant) != unspoken(architecture));
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// That of this machine: of each architecture the level that all its machines have, so that an index gives the
    /// same image everywhere.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" => "ppc64le",
            "x86" => "386",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, None)
    }

    /// Whether both are for the same kind of machine, of whatever level.
    pub(super) fn is_machine_of(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
    }

    /// What a machine of this platform runs, the best first.
    pub(super) fn acceptable(&self) -> Vec<Self> {
        let levels: &[&str] = match self.architecture.as_str() {
            "amd64" => &["v4", "v3", "v2", "v1"],
            "arm64" => &["v9", "v8"],
            "arm" => &["v8", "v7", "v6", "v5"],
            _ => &[],
        };
        let own = self.variant.as_deref().or(unspoken(&self.architecture));
        match levels.iter().position(|level| Some(*level) == own) {
            Some(first) => levels[first..]
                .iter()
                .map(|level| Self::new(&self.os, &self.architecture, Some(level)))
                .collect(),
            None => vec![self.clone()],
        }
    }
}

/// The variant that an architecture has when none is written.
fn unspoken(architecture: &str) -> Option<&'static str> {
    match architecture {
        "amd64" => Some("v1"),
        "arm64" => Some("v8"),
        "arm" => Some("v7"),
        _ => None,
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // They are an index's words.
        write!(
            formatter,
            "{}/{}",
            shown(&self.os),
            shown(&self.architecture)
        )?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{}", shown(variant)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptable(architecture: &str, variant: Option<&str>) -> Vec<String> {
        let platform = Platform::new("linux", architecture, variant);
        platform
            .acceptable()
            .iter()
            .map(Platform::to_string)
            .collect()
    }

    #[test]
    fn a_machine_runs_what_is_for_lower_levels() {
        assert_eq!(acceptable("amd64", None), ["linux/amd64"]);
        assert_eq!(
            acceptable("amd64", Some("v3")),
            ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]
        );
        assert_eq!(acceptable("arm64", None), ["linux/arm64"]);
        assert_eq!(
            acceptable("arm", None),
            ["linux/arm", "linux/arm/v6", "linux/arm/v5"]
        );
        assert_eq!(
            acceptable("arm", Some("v6")),
            ["linux/arm/v6", "linux/arm/v5"]
        );
        assert_eq!(acceptable("riscv64", None), ["linux/riscv64"]);
        assert_eq!(acceptable("s390x", Some("odd")), ["linux/s390x/odd"]);
    }

    #[test]
    fn names_of_the_same_thing_are_the_same() {
        let arm64 = Platform::new("linux", "arm64", None);
        assert_eq!(Platform::new("linux", "aarch64", Some("v8")), arm64);
        assert_eq!(Platform::new("linux", "arm64", Some("8")), arm64);
        assert_eq!(
            Platform::new("linux", "amd64", Some("v1")),
            Platform::new("linux", "x86_64", None)
        );
    }
}
