//! What a report says of a launch beside its measurement: what makes it one that no owner meant, and what nothing
//! here compares.

use std::fs::File;
use std::io::Read;

use anyhow::Context;
use evidence::snp::{REPORT_BYTES, Report, SnpEvidence};
use measure::Binding;
use measure::snp::LaunchDigest;

/// Bytes of evidence in JSON.
const EVIDENCE_BYTES: u64 = 1 << 20;

const ALONE: &str = "a measurement alone: the policy with DEBUG, the VMPL, HOST_DATA and what proves them are in a report";
const HOST_DATA: &str = "HOST_DATA: give --init-data";
const KEYS: &str =
    "id_key_digest and author_key_digest: `cloister measure --id-key` tells those of a key";
const OTHERS: &str = "the platform, its TCB, and the policy's other bits: the host gives them, and no file says which";
const SIGNATURE: &str = "the signature: a broker checks it, with the chip's certificates";

/// A report, or no more than the measurement in one.
pub(super) enum Reported {
    Measurement(LaunchDigest),
    Report(Box<Report>),
}

impl Reported {
    /// 96 hex digits, or a file with a report, as it is or in evidence in JSON.
    pub(super) fn read(said: &str) -> anyhow::Result<Self> {
        if let Ok(measurement) = said.parse() {
            return Ok(Self::Measurement(measurement));
        }
        let mut content = Vec::new();
        File::open(said)
            .and_then(|file| file.take(EVIDENCE_BYTES).read_to_end(&mut content))
            .with_context(|| format!("--explain takes 96 hex digits or a file; read {said}"))?;
        let report = if content.len() == REPORT_BYTES {
            Report::parse(&content).with_context(|| said.to_owned())?
        } else {
            let evidence: SnpEvidence = serde_json::from_slice(&content)
                .with_context(|| format!("{said} is neither a report nor evidence in JSON"))?;
            evidence.report().clone()
        };
        Ok(Self::Report(Box::new(report)))
    }

    pub(super) fn measurement(&self) -> LaunchDigest {
        match self {
            Self::Measurement(measurement) => *measurement,
            Self::Report(report) => LaunchDigest(report.measurement),
        }
    }

    /// What is not as it was meant, though the measurement does not tell. `bound` is what the launch has to bind,
    /// where that is said.
    pub(super) fn differences(&self, bound: Option<&Binding>) -> Vec<String> {
        let Self::Report(report) = self else {
            return Vec::new();
        };
        let mut differs = Vec::new();
        if report.policy.debug_allowed() {
            differs.push(
                "policy: the guest was started with DEBUG, so that the host may read it and change it"
                    .to_owned(),
            );
        }
        if report.policy.migrate_ma() {
            differs.push(
                "policy: the guest was started with MIGRATE_MA, so that a migration agent may take it to another host"
                    .to_owned(),
            );
        }
        if report.vmpl != 0 {
            differs.push(format!(
                "VMPL {}: something of a higher privilege runs in the guest, which is asked for reports at VMPL 0",
                report.vmpl
            ));
        }
        if let Some(expected) = bound
            && expected.as_bytes() != report.host_data
        {
            differs.push(format!(
                "{} {}: the launch bound other init-data, or none",
                expected.field(),
                hex::encode(report.host_data)
            ));
        }
        differs
    }

    /// What could not be compared.
    pub(super) fn open(&self, bound: Option<&Binding>) -> Vec<&'static str> {
        match (self, bound) {
            (Self::Measurement(_), _) => vec![ALONE],
            (Self::Report(_), None) => vec![HOST_DATA, KEYS, OTHERS, SIGNATURE],
            (Self::Report(_), Some(_)) => vec![KEYS, OTHERS, SIGNATURE],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evidence::init_data::InitData;
    use evidence::snp::{Generation, GuestPolicy};

    fn report(change: impl FnOnce(&mut Report)) -> Reported {
        let mut report = Report::simulated(3, Generation::Genoa);
        report.measurement = [7; 48];
        change(&mut report);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        std::fs::write(&path, report.to_bytes().unwrap()).unwrap();
        Reported::read(path.to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_guest_that_the_host_may_look_into_is_none_that_was_meant() {
        let good = report(|_| {});
        assert_eq!(good.measurement(), LaunchDigest([7; 48]));
        assert!(good.differences(None).is_empty());
        let with =
            |bit: u32| report(|report| report.policy = GuestPolicy(report.policy.0 | 1 << bit));
        for (reported, named) in [
            (with(19), "DEBUG"),
            (with(18), "MIGRATE_MA"),
            (report(|report| report.vmpl = 2), "VMPL 2"),
        ] {
            let differs = reported.differences(None);
            assert_eq!(differs.len(), 1, "{differs:?}");
            assert!(differs[0].contains(named), "{differs:?}");
        }
    }

    #[test]
    fn what_is_not_compared_is_told() {
        let text = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = \"package x\"\n";
        let digest = InitData::parse(text.as_bytes()).unwrap().digest();
        let bound = Binding::of(evidence::Tee::Snp, Some(&digest));
        let other = report(|_| {});
        assert!(other.differences(Some(&bound))[0].contains("other init-data"));
        let same = report(|report| report.host_data.copy_from_slice(bound.as_bytes()));
        assert!(same.differences(Some(&bound)).is_empty());
        assert_eq!(same.open(Some(&bound)), [KEYS, OTHERS, SIGNATURE]);
        assert!(same.open(None).contains(&HOST_DATA));
        let alone = Reported::read(&"07".repeat(48)).unwrap();
        assert_eq!(alone.open(None), [ALONE]);
        assert!(alone.differences(Some(&bound)).is_empty());
    }
}
