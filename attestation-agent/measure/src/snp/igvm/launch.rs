//! The digest of a launch from a file.

use super::super::chain::contents;
use super::super::cpu::CpuModel;
use super::super::vmsa::{BOOT_ADDRESS, page};
use super::super::{GuestFeatures, KernelHashes, LaunchDigest, VCPUS};
use super::{Igvm, IgvmError, registers};

/// All that decides the digest of a launch by QEMU, but the number of vCPUs.
#[derive(Debug, Clone, Copy)]
pub struct IgvmLaunch<'a> {
    /// What starts.
    pub file: &'a Igvm,
    /// What QEMU is given to boot, which the file has to tie to the guest: `None` where it is not given
    /// one, or where the digest need not say anything of it.
    pub kernel: Option<&'a KernelHashes>,
    /// The model of vCPUs whose registers are not in the file.
    pub cpu: &'a CpuModel,
    /// What the guest is promised.
    pub features: GuestFeatures,
}

impl IgvmLaunch<'_> {
    /// The digest with this many vCPUs.
    ///
    /// # Errors
    /// When there is no such launch, or the file does not tie the kernel to it.
    pub fn digest(&self, vcpus: u32) -> Result<LaunchDigest, IgvmError> {
        let least = self.file.least_vcpus();
        let mut digests = self.digests()?;
        let (_, found) = digests
            .find(|(count, _)| *count == vcpus)
            .ok_or(IgvmError::Vcpus { vcpus, least })?;
        match self.file.signed {
            Some(signed) if signed != found => Err(IgvmError::IdBlock { signed, found }),
            _ => Ok(found),
        }
    }

    /// The digests by the number of vCPUs, from the least on, whatever an ID block in the file says.
    ///
    /// # Errors
    /// As [`Self::digest`].
    pub fn digests(&self) -> Result<impl Iterator<Item = (u32, LaunchDigest)>, IgvmError> {
        if let Some(kernel) = self.kernel {
            self.file.ties(kernel)?;
        }
        let asked = self.features.bits();
        let said = registers::features(&self.file.registers).unwrap_or(asked);
        if said != asked {
            return Err(IgvmError::Features { said, asked });
        }
        // Of a vCPU whose registers are not in the file QEMU knows nothing but its reset.
        let reset = contents(&page(self.cpu.signature(), self.features, BOOT_ADDRESS));
        let file = self.file;
        let mut chain = file.chain;
        let all = (0..VCPUS).map(move |vcpu| {
            let own = u16::try_from(vcpu).ok();
            let own = own.and_then(|vcpu| file.registers.get(&vcpu));
            chain.vcpu(&own.map_or(reset, |page| contents(&page[..])));
            (vcpu + 1, chain.digest())
        });
        let least = file.least_vcpus();
        Ok(all.skip_while(move |(vcpus, _)| *vcpus < least))
    }
}

impl Igvm {
    /// Whether the guest boots this and nothing else: the firmware in the file finds the hashes where it
    /// looks for them, and they are measured.
    ///
    /// # Errors
    /// [`IgvmError`] says what lacks.
    pub fn ties(&self, kernel: &KernelHashes) -> Result<(), IgvmError> {
        let firmware = self.firmware.clone().map_err(IgvmError::Firmware)?;
        let Some(offset) = firmware.hashes() else {
            return Err(IgvmError::Kernel(
                "the firmware in it has no page for hashes (SNP_KERNEL_HASHES): build it from one for direct boot",
            ));
        };
        match &self.hashes {
            None => Err(IgvmError::Kernel(
                "the firmware's page for hashes is not in it, or not measured: build it with that page",
            )),
            Some(page) if **page != kernel.page(offset) => Err(IgvmError::Kernel(
                "its page of hashes is of another kernel, initramfs or command line: build it for this one",
            )),
            Some(_) => Ok(()),
        }
    }
}
