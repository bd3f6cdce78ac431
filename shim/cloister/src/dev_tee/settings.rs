//! `platform.toml`: what the simulated platform is, and what is wrong with it. It is read at each pod's start.

use evidence::snp::{Generation, Tcb};
use measure::snp::CpuModel;
use serde::{Deserialize, Deserializer, de::Error};

/// The file as `init` writes it.
pub(super) const DEFAULT: &str = "\
# What the simulated platform is, and what is wrong with it. Read at each pod's start.

[snp]
# Of the report: 3 to 5.
version = 3
# milan, genoa or turin
generation = \"genoa\"
cpu_model = \"EPYC-v4\"
tcb = { bootloader = 9, tee = 2, snp = 23, microcode = 213 }
# none, signature, measurement, host-data, report-data, chip-id, debug
fault = \"none\"

[tdx]
# Security version of all parts: 5 is up to date, 4 out of date, 3 revoked.
svn = 5
# none, signature, measurement, config-id, report-data, log, debug
fault = \"none\"
";

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    pub(super) snp: Snp,
    pub(super) tdx: Tdx,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snp {
    pub(super) version: u32,
    #[serde(deserialize_with = "generation")]
    pub(super) generation: Generation,
    #[serde(deserialize_with = "cpu_model")]
    pub(super) cpu_model: CpuModel,
    tcb: Parts,
    pub(super) fault: SnpFault,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tdx {
    pub(super) svn: u8,
    pub(super) fault: TdxFault,
}

/// What is wrong with reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SnpFault {
    None,
    /// It is over another report.
    Signature,
    /// Something else was launched.
    Measurement,
    /// The launch bound nothing.
    HostData,
    /// It is over other data.
    ReportData,
    /// It comes from another chip than its certificate.
    ChipId,
    /// The host may look into the guest.
    Debug,
}

/// What is wrong with quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TdxFault {
    None,
    Signature,
    Measurement,
    ConfigId,
    ReportData,
    /// The log says something else than the registers.
    Log,
    Debug,
}

impl Snp {
    pub(super) fn tcb(&self) -> Tcb {
        let Parts {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        } = self.tcb;
        let fmc = self.generation.has_fmc().then_some(fmc.unwrap_or(1));
        Tcb {
            fmc,
            bootloader,
            tee,
            snp,
            microcode,
        }
    }
}

fn generation<'de, D: Deserializer<'de>>(from: D) -> Result<Generation, D::Error> {
    match &*String::deserialize(from)? {
        "milan" => Ok(Generation::Milan),
        "genoa" => Ok(Generation::Genoa),
        "turin" => Ok(Generation::Turin),
        other => Err(D::Error::custom(format_args!(
            "unknown generation `{other}`: use milan, genoa or turin"
        ))),
    }
}

fn cpu_model<'de, D: Deserializer<'de>>(from: D) -> Result<CpuModel, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_is_read_and_an_unknown_word_is_not() {
        let read = |text: &str| toml::from_str::<Settings>(text);
        let settings = read(DEFAULT).unwrap();
        assert_eq!(settings.snp.tcb().microcode, 213);
        assert_eq!(settings.snp.fault, SnpFault::None);
        for (from, to) in [
            ("version = 3", "versions = 3"),
            ("\"genoa\"", "\"rome\""),
            ("\"EPYC-v4\"", "\"host\""),
            ("fault = \"none\"", "fault = \"nothing\""),
        ] {
            assert!(read(&DEFAULT.replacen(from, to, 1)).is_err(), "{from}");
        }
    }
}
