//! QEMU's CPU models with SEV-SNP: their signature (CPUID 1, EAX) is in a vCPU's registers at its
//! start, and so in the launch digest.

use std::{fmt, str::FromStr};

/// Models by the name that QEMU has without a version, the newest version that is known, and family,
/// model and stepping. All versions of one name have the same three.
const MODELS: [(&str, u32, [u32; 3]); 6] = [
    ("EPYC", 5, [0x17, 0x01, 2]),
    ("EPYC-IBPB", 0, [0x17, 0x01, 2]),
    ("EPYC-Rome", 5, [0x17, 0x31, 0]),
    ("EPYC-Milan", 4, [0x19, 0x01, 1]),
    ("EPYC-Genoa", 3, [0x19, 0x11, 0]),
    ("EPYC-Turin", 2, [0x1a, 0x00, 0]),
];

/// Characters of a name that an error shows.
const SHOWN: usize = 40;

/// A CPU model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel {
    name: String,
    signature: u32,
}

/// A name that stands for no model, or for none with one signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuModelError {
    /// The host's own.
    #[error(
        "CPU model `{0}` is another one on each host, and so is its launch digest: launch with a named model, such as EPYC-v4"
    )]
    Host(String),
    /// One that is not known here.
    #[error(
        "CPU model `{0}` is not known: use EPYC, EPYC-IBPB, EPYC-Rome, EPYC-Milan, EPYC-Genoa or \
         EPYC-Turin, with QEMU's -v and version behind it where it has one"
    )]
    Unknown(String),
}

impl CpuModel {
    /// One model for each signature.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (name, _, cpu) in MODELS {
            let signature = signature(cpu);
            if all.iter().all(|known| known.signature != signature) {
                let name = name.to_owned();
                all.push(Self { name, signature });
            }
        }
        all
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// CPUID's family, model and stepping, as in EAX of leaf 1.
    #[must_use]
    pub fn signature(&self) -> u32 {
        self.signature
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FromStr for CpuModel {
    type Err = CpuModelError;

    fn from_str(name: &str) -> Result<Self, CpuModelError> {
        let shown = || name.chars().take(SHOWN).collect();
        if ["host", "max", "base"].contains(&name) {
            return Err(CpuModelError::Host(shown()));
        }
        let known = |(base, newest, cpu): &(&str, u32, [u32; 3])| {
            let rest = name.strip_prefix(base)?;
            let versions = || (1..=*newest).map(|version| format!("-v{version}"));
            (rest.is_empty() || versions().any(|version| version == rest)).then_some(*cpu)
        };
        let cpu = MODELS
            .iter()
            .find_map(known)
            .ok_or_else(|| CpuModelError::Unknown(shown()))?;
        Ok(Self {
            name: name.to_owned(),
            signature: signature(cpu),
        })
    }
}

/// EAX of CPUID's leaf 1 (AMD 25481): what does not fit family and model goes into their extensions.
const fn signature([family, model, stepping]: [u32; 3]) -> u32 {
    let (base, extended) = if family > 0xf {
        (0xf, family - 0xf)
    } else {
        (family, 0)
    };
    (extended << 20) | ((model >> 4) << 16) | (base << 8) | ((model & 0xf) << 4) | stepping
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_its_signature_in_each_version() {
        for (names, signature) in [
            (&["EPYC", "EPYC-v1", "EPYC-v4", "EPYC-IBPB"][..], 0x80_0f12),
            (&["EPYC-Rome", "EPYC-Rome-v3"], 0x83_0f10),
            (&["EPYC-Milan", "EPYC-Milan-v2"], 0xa0_0f11),
            (&["EPYC-Genoa", "EPYC-Genoa-v1"], 0xa1_0f10),
            (&["EPYC-Turin", "EPYC-Turin-v1"], 0xb0_0f00),
        ] {
            for name in names {
                let model: CpuModel = name.parse().unwrap();
                assert_eq!(model.signature(), signature, "{name}");
            }
        }
    }

    #[test]
    fn each_signature_is_listed_once_and_by_a_name_that_is_read() {
        let all = CpuModel::all();
        assert_eq!(all.len(), 5);
        for model in all {
            assert_eq!(model.name().parse(), Ok(model.clone()));
        }
    }

    #[test]
    fn what_is_no_model_or_the_hosts_is_refused() {
        for name in [
            "",
            "epyc",
            "EPYC-",
            "EPYC-v0",
            "EPYC-v9",
            "EPYC-v04",
            "EPYC-Venice",
            "Skylake-Server",
        ] {
            let refused = name.parse::<CpuModel>().unwrap_err();
            assert!(matches!(refused, CpuModelError::Unknown(_)), "{name}");
        }
        let refused = "host".parse::<CpuModel>().unwrap_err();
        assert!(matches!(refused, CpuModelError::Host(_)));
    }
}
