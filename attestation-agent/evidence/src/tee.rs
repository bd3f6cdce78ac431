//! The kinds of TEE, by the names that configuration and the attestation protocol use.
//!
//! The kind is always configured by name. Nothing here probes hardware, and no kind stands in for
//! another one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A kind of trusted execution environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// SEV-SNP's real formats, signed by a development root.
    SimSnp,
    /// TDX's real formats, signed by a development root.
    SimTdx,
    /// Unsigned evidence that proves nothing, for development.
    Sample,
}

impl Tee {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Snp,
        Self::Tdx,
        Self::SimSnp,
        Self::SimTdx,
        Self::Sample,
    ];

    /// The name on the wire and in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::SimSnp => "sim-snp",
            Self::SimTdx => "sim-tdx",
            Self::Sample => "sample",
        }
    }

    /// Whether hardware stands behind the evidence. Where it does not, the kind is for development
    /// only, and a broker accepts it only when it is configured so.
    #[must_use]
    pub const fn is_hardware(self) -> bool {
        match self {
            Self::Snp | Self::Tdx => true,
            Self::SimSnp | Self::SimTdx | Self::Sample => false,
        }
    }

    /// Reads a configured kind, where `none` is a guest without a TEE.
    ///
    /// # Errors
    /// When the name is neither a kind nor `none`.
    pub fn configured(name: &str) -> Result<Option<Self>, TeeError> {
        if name == NONE {
            return Ok(None);
        }
        name.parse().map(Some)
    }
}

const NONE: &str = "none";

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tee {
    type Err = TeeError;

    fn from_str(name: &str) -> Result<Self, TeeError> {
        Self::ALL
            .into_iter()
            .find(|tee| tee.name() == name)
            .ok_or_else(|| TeeError {
                name: crate::shown(name),
                known: Self::ALL.map(Self::name).join(", "),
            })
    }
}

impl TryFrom<String> for Tee {
    type Error = TeeError;

    fn try_from(name: String) -> Result<Self, TeeError> {
        name.parse()
    }
}

impl From<Tee> for String {
    fn from(tee: Tee) -> Self {
        tee.name().to_owned()
    }
}

/// The name is not one of a kind of TEE, or of device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown TEE kind `{name}`: use one of {known}")]
pub struct TeeError {
    /// What was given, cut to a printable length.
    pub name: String,
    /// The names that there are.
    pub known: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_read_back_from_its_name() {
        for tee in Tee::ALL {
            assert_eq!(tee.to_string().parse(), Ok(tee));
            let json = serde_json::to_string(&tee).unwrap();
            assert_eq!(serde_json::from_str::<Tee>(&json).unwrap(), tee);
        }
        assert_eq!(Tee::configured("none"), Ok(None));
        assert_eq!(Tee::configured("snp"), Ok(Some(Tee::Snp)));
    }

    #[test]
    fn an_unknown_kind_is_refused_with_the_known_ones() {
        let error = Tee::configured("SNP").unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown TEE kind `SNP`: use one of snp, tdx, sim-snp, sim-tdx, sample"
        );
        assert!("none".parse::<Tee>().is_err());
        let long = "\n".repeat(9999).parse::<Tee>().unwrap_err().name;
        assert_eq!(long, "?".repeat(64));
    }
}
