//! Devices beside the CPU, whose evidence travels in `additional_evidence`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::TeeError;

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// CoCo's unsigned device, for development: it proves nothing.
    Sample,
}

impl Device {
    /// Every kind.
    pub const ALL: [Self; 1] = [Self::Sample];

    /// The name on the wire and in configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sample => "sampledevice",
        }
    }

    /// The class by which its appraisal policy is named, and its part of the token.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self {
            Self::Sample => "gpu",
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Device {
    type Err = TeeError;

    fn from_str(name: &str) -> Result<Self, TeeError> {
        Self::ALL
            .into_iter()
            .find(|device| device.name() == name)
            .ok_or_else(|| TeeError {
                name: crate::shown(name),
                known: Self::ALL.map(Self::name).join(", "),
            })
    }
}

impl TryFrom<String> for Device {
    type Error = TeeError;

    fn try_from(name: String) -> Result<Self, TeeError> {
        name.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.name().to_owned()
    }
}
