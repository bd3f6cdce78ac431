//! `cloister measure --explain`: which input is another one where a report has another measurement than
//! was predicted. A digest cannot be taken apart, so the launches that might have been are tried: any
//! number of vCPUs and any CPU model, the usual features, kernel hashes on and off, and what the caller
//! names besides.

use std::io::Write;

use anyhow::bail;
use measure::Binding;
use measure::snp::{CpuModel, GuestFeatures, LaunchDigest};

use super::reported::Reported;
use super::{Measure, With, init_data};

/// With and without DebugSwap: what kernels set.
const FEATURES: [u64; 2] = [0x1, 0x21];

/// A launch that has the measurement.
struct Found {
    words: Vec<String>,
}

impl Measure {
    /// Prints that all is as predicted, or fails with what is not.
    pub(super) fn explain(&self, reported: &Reported) -> anyhow::Result<()> {
        let digest = self.init_data.as_deref().map(init_data::digest);
        let digest = digest.transpose()?;
        let bound = digest
            .as_ref()
            .map(|digest| Binding::of(evidence::Tee::Snp, Some(digest)));
        let mut differs = Vec::new();
        match self.find(reported.measurement())? {
            Some(found) => differs.extend(found.words),
            None => differs.push(
                "measurement: no number of vCPUs, CPU model or features makes it of these files, so that \
                 the firmware, the kernel, the initramfs or the command line is another one: name \
                 candidates with --try-firmware and --try-append"
                    .to_owned(),
            ),
        }
        differs.extend(reported.differences(bound.as_ref()));
        let open = reported.open(bound.as_ref());
        let open = open.iter().map(|line| format!("not compared: {line}\n"));
        let open: String = open.collect();
        if !differs.is_empty() {
            bail!(
                "the report is of another launch:\n  {}\n{open}",
                differs.join("\n  ")
            );
        }
        write!(
            std::io::stdout(),
            "the report is of a predicted launch\n{open}"
        )?;
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
