//! What an SEV-SNP guest starts with: firmware, or an IGVM file that holds it; and who starts it.

use anyhow::ensure;
use clap::ValueEnum;
use measure::snp::{
    self, CpuModel, Firmware, GuestFeatures, Igvm, IgvmLaunch, KernelHashes, Launch, LaunchDigest,
    LaunchError,
};

use super::{Kind, Vcpus};

/// Who launches the guest, which decides what is loaded in which order, and what is in the vCPUs' registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Vmm {
    /// QEMU on KVM.
    Qemu,
    /// Cloud Hypervisor 53 on KVM: SEV-SNP guests from an IGVM file. TDs it gives other tables, and are refused.
    CloudHypervisor,
}

impl Vmm {
    /// Whether it starts such a guest from an IGVM file, or without one.
    pub(super) fn check(self, kind: Kind, igvm: bool) -> anyhow::Result<()> {
        if self == Self::Qemu {
            return Ok(());
        }
        ensure!(
            kind == Kind::Snp,
            "--vmm cloud-hypervisor: it starts TDs on a kernel of Intel's own only, and gives their firmware other \
             tables than QEMU, which are not predicted: launch TDs with QEMU"
        );
        ensure!(
            igvm,
            "--vmm cloud-hypervisor: it starts SEV-SNP guests from an IGVM file alone: add --igvm"
        );
        Ok(())
    }
}

impl From<Vmm> for snp::Vmm {
    fn from(vmm: Vmm) -> Self {
        match vmm {
            Vmm::Qemu => Self::Qemu,
            Vmm::CloudHypervisor => Self::CloudHypervisor,
        }
    }
}

#[derive(Clone)]
pub(super) enum Start {
    Firmware(Box<Firmware>),
    Igvm(Box<Igvm>),
}

/// What decides a digest besides, but the number of vCPUs.
#[derive(Clone, Copy)]
pub(super) struct With<'a> {
    pub(super) kernel: Option<&'a KernelHashes>,
    pub(super) cpu: &'a CpuModel,
    pub(super) features: GuestFeatures,
}

impl Start {
    /// Whether what starts says that it boots nothing but the kernel whose hashes the digest has.
    pub(super) fn looks_for_hashes(&self) -> bool {
        match self {
            // Firmware that does not takes none.
            Self::Firmware(_) => true,
            Self::Igvm(file) => file.looks_for_hashes(),
        }
    }

    /// The digests with these numbers of vCPUs.
    pub(super) fn digests(
        &self,
        with: With<'_>,
        vcpus: &Vcpus,
    ) -> anyhow::Result<Vec<(usize, LaunchDigest)>> {
        match self {
            Self::Firmware(firmware) => {
                let all: Vec<_> = launch(firmware, with)
                    .digests()?
                    .take(vcpus.most())
                    .collect();
                let digest = |count: usize| {
                    let digest = all.get(count - 1).ok_or(LaunchError::NoReset)?;
                    anyhow::Ok((count, *digest))
                };
                vcpus.counts().map(digest).collect()
            }
            Self::Igvm(file) => {
                let launch = igvm_launch(file, with);
                let digest =
                    |count: usize| anyhow::Ok((count, launch.digest(u32::try_from(count)?)?));
                vcpus.counts().map(digest).collect()
            }
        }
    }

    /// With how many vCPUs a launch has this digest, where it has it with any.
    pub(super) fn find(&self, with: With<'_>, measurement: LaunchDigest) -> Option<usize> {
        match self {
            // A firmware that takes no hashes is no candidate for a launch with them.
            Self::Firmware(firmware) => {
                let mut digests = launch(firmware, with).digests().ok()?;
                let at = digests.position(|digest| digest == measurement)?;
                Some(at + 1)
            }
            Self::Igvm(file) => {
                let launch = igvm_launch(file, with);
                let mut digests = launch.digests().ok()?;
                let (vcpus, _) = digests.find(|(_, digest)| *digest == measurement)?;
                usize::try_from(vcpus).ok()
            }
        }
    }
}

fn launch<'a>(firmware: &'a Firmware, with: With<'a>) -> Launch<'a> {
    let With {
        kernel,
        cpu,
        features,
    } = with;
    Launch {
        firmware,
        kernel,
        cpu,
        features,
    }
}

fn igvm_launch<'a>(file: &'a Igvm, with: With<'a>) -> IgvmLaunch<'a> {
    let With {
        kernel,
        cpu,
        features,
    } = with;
    IgvmLaunch {
        file,
        kernel,
        cpu,
        features,
    }
}
