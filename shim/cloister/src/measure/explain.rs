//! `cloister measure --explain`: which input is another one where a report has another measurement than
//! was predicted. A digest cannot be taken apart, so the launches that might have been are tried: any
//! number of vCPUs and any CPU model, the usual features, kernel hashes on and off, and what the caller
//! names besides.

use std::fs::File;
use std::io::{Read, Write};

use anyhow::{Context, bail};
use evidence::snp::{REPORT_BYTES, Report, SnpEvidence};
use measure::Binding;
use measure::snp::{CpuModel, GuestFeatures, LaunchDigest};

use super::{Measure, With, init_data};

/// Bytes of evidence in JSON.
const EVIDENCE_BYTES: u64 = 1 << 20;
/// With and without DebugSwap: what kernels set.
const FEATURES: [u64; 2] = [0x1, 0x21];

/// What a report says of its launch.
pub(super) struct Reported {
    measurement: LaunchDigest,
    /// Where there is a report and not just a measurement.
    host_data: Option<[u8; 32]>,
}

impl Reported {
    pub(super) fn read(said: &str) -> anyhow::Result<Self> {
        if let Ok(measurement) = said.parse() {
            return Ok(Self {
                measurement,
                host_data: None,
            });
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
        Ok(Self {
            measurement: LaunchDigest(report.measurement),
            host_data: Some(report.host_data),
        })
    }
}

/// A launch that has the measurement.
struct Found {
    words: Vec<String>,
}

impl Measure {
    /// Prints that all is as predicted, or fails with what is not.
    pub(super) fn explain(&self, reported: &Reported) -> anyhow::Result<()> {
        let mut differs = Vec::new();
        match self.find(reported.measurement)? {
            Some(found) => differs.extend(found.words),
            None => differs.push(
                "measurement: no number of vCPUs, CPU model or features makes it of these files, so that \
                 the firmware, the kernel, the initramfs or the command line is another one: name \
                 candidates with --try-firmware and --try-append"
                    .to_owned(),
            ),
        }
        if let (Some(found), Some(path)) = (&reported.host_data, &self.init_data) {
            let digest = init_data::digest(path)?;
            let expected = Binding::of(evidence::Tee::Snp, Some(&digest));
            if expected.as_bytes() != found {
                differs.push(format!(
                    "{} {}: the launch bound other init-data, or none",
                    expected.field(),
                    hex::encode(found)
                ));
            }
        }
        if !differs.is_empty() {
            bail!(
                "the report is of another launch:\n  {}",
                differs.join("\n  ")
            );
        }
        writeln!(std::io::stdout(), "the report is of a predicted launch")?;
        Ok(())
    }

    fn find(&self, measurement: LaunchDigest) -> anyhow::Result<Option<Found>> {
        let mut models = self.cpu_model.clone();
        models.extend(CpuModel::all());
        let mut features = vec![self.guest_features];
        for bits in FEATURES {
            features.extend(GuestFeatures::new(bits));
        }
        for candidate in self.artifacts.candidates()? {
            for features in &features {
                for cpu in &models {
                    let with = With {
                        kernel: candidate.kernel.as_ref(),
                        cpu,
                        features: *features,
                    };
                    if let Some(vcpus) = candidate.start.find(with, measurement) {
                        let mut words = candidate.words.clone();
                        words.extend(self.shape(vcpus, cpu, *features));
                        return Ok(Some(Found { words }));
                    }
                }
            }
        }
        Ok(None)
    }

    /// What is not as it was asked for.
    fn shape(&self, vcpus: usize, cpu: &CpuModel, features: GuestFeatures) -> Vec<String> {
        let mut words = Vec::new();
        if self.vcpus.counts().all(|asked| asked != vcpus) {
            words.push(format!(
                "vCPUs {vcpus}: allow them with --vcpus, or start the pod with another number"
            ));
        }
        let signature = cpu.signature();
        if self
            .cpu_model
            .iter()
            .all(|asked| asked.signature() != signature)
        {
            words.push(format!(
                "CPU model {cpu}, or one with its signature {signature:#x}: see --cpu-model"
            ));
        }
        if features != self.guest_features {
            words.push(format!(
                "guest features {:#x}: see --guest-features",
                features.bits()
            ));
        }
        words
    }
}
