//! A launch: its parts in the order in which the VMM hands them to the security processor.

use super::{
    Firmware, GuestFeatures, KernelHashes, LaunchDigest, SectionKind,
    chain::{Chain, PageKind, contents},
    cpu::CpuModel,
    vmsa::{BOOT_ADDRESS, page},
};

/// vCPUs of a guest: as many as QEMU's q35 has.
pub const VCPUS: u32 = 4096;

/// All that decides the digest of a launch by QEMU, but the number of vCPUs.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// What starts.
    pub firmware: &'a Firmware,
    /// What it has to boot: `None` where the VMM passes no hashes, so that the firmware boots what
    /// it finds, and the digest says nothing of it.
    pub kernel: Option<&'a KernelHashes>,
    /// The vCPUs' model.
    pub cpu: &'a CpuModel,
    /// What the guest is promised.
    pub features: GuestFeatures,
}

/// A launch that would not come about, or not as it is meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A firmware that would boot the kernel unchecked, or not at all.
    #[error(
        "the firmware has no page for the hashes of kernel, initramfs and command line \
         (SNP_KERNEL_HASHES): use one that is built for direct boot, such as OVMF.amdsev.fd"
    )]
    NoHashes,
    /// A firmware for one vCPU.
    #[error(
        "the firmware does not say where a second vCPU begins (no SEV-ES reset block): launch with one vCPU"
    )]
    NoReset,
    /// No vCPU, or too many.
    #[error("{0} vCPUs: a guest has 1 to {VCPUS}")]
    Vcpus(u32),
}

impl Launch<'_> {
    /// The digest with this many vCPUs.
    ///
    /// # Errors
    /// When there is no such launch.
    pub fn digest(&self, vcpus: u32) -> Result<LaunchDigest, LaunchError> {
        let at = usize::try_from(vcpus.wrapping_sub(1)).unwrap_or(usize::MAX);
        if !(1..=VCPUS).contains(&vcpus) {
            return Err(LaunchError::Vcpus(vcpus));
        }
        self.digests()?.nth(at).ok_or(LaunchError::NoReset)
    }

    /// The digests with one vCPU, with two, and so on to [`VCPUS`]; with one only where the firmware
    /// does not say where a second begins.
    ///
    /// # Errors
    /// When there is no such launch.
    pub fn digests(&self) -> Result<Digests, LaunchError> {
        let registers = |start| {
            let signature = self.cpu.signature();
            contents(&page(signature, self.features, start))
        };
        Ok(Digests {
            chain: self.memory()?,
            first: Some(registers(BOOT_ADDRESS)),
            other: self.firmware.reset().map(registers),
            left: VCPUS,
        })
    }

    /// Firmware and sections.
    fn memory(&self) -> Result<Chain, LaunchError> {
        let page = match (self.kernel, self.firmware.hashes()) {
            (Some(kernel), Some(offset)) => Some(kernel.page(offset)),
            (Some(_), None) => return Err(LaunchError::NoHashes),
            (None, _) => None,
        };
        let mut chain = Chain::after(self.firmware.digest());
        for section in self.firmware.sections() {
            match (section.kind, &page) {
                (SectionKind::KernelHashes, Some(page)) => chain.normal(section.address, page),
                (kind, _) => chain.filled(filling(kind), section.address, section.bytes),
            }
        }
        Ok(chain)
    }
}

fn filling(kind: SectionKind) -> PageKind {
    match kind {
        SectionKind::Memory | SectionKind::CallingArea | SectionKind::KernelHashes => {
            PageKind::Zero
        }
        SectionKind::Secrets => PageKind::Secrets,
        SectionKind::Cpuid => PageKind::Cpuid,
    }
}

/// The digests of a launch by its number of vCPUs, which are the last pages.
#[derive(Debug, Clone)]
pub struct Digests {
    chain: Chain,
    first: Option<[u8; 48]>,
    other: Option<[u8; 48]>,
    left: u32,
}

impl Iterator for Digests {
    type Item = LaunchDigest;

    fn next(&mut self) -> Option<LaunchDigest> {
        self.left = self.left.checked_sub(1)?;
        let registers = self.first.take().or(self.other)?;
        self.chain.vcpu(&registers);
        Some(self.chain.digest())
    }
}
