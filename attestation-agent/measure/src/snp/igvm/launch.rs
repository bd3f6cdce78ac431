//! The digest of a launch from a file.

use std::borrow::Cow;

use super::super::chain::{Chain, contents};
use super::super::cpu::CpuModel;
use super::super::vmsa::{BOOT_ADDRESS, page, untouched};
use super::super::{GuestFeatures, KernelHashes, LaunchDigest, PAGE, VCPUS, Vmm};
use super::cloud_hypervisor::looks_here;
use super::{Hashes, Igvm, IgvmError};

/// All that decides the digest of a launch, but the number of vCPUs.
#[derive(Debug, Clone, Copy)]
pub struct IgvmLaunch<'a> {
    /// What starts.
    pub file: &'a Igvm,
    /// What the VMM is given to boot. By QEMU the file has to tie it to the guest; `None` where it is not given
    /// one, or where the digest need not say anything of it. Cloud Hypervisor writes its hashes into the guest;
    /// `None` where it is not given one by `fw_cfg`.
    pub kernel: Option<&'a KernelHashes>,
    /// QEMU's model of vCPUs whose registers are not in the file. By Cloud Hypervisor it does not count.
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
        let mut chain = self.file.chain(self.kernel)?;
        let asked = self.features.bits();
        let said = self.file.features.unwrap_or(asked);
        if said != asked {
            return Err(IgvmError::Features { said, asked });
        }
        let reset = contents(&self.reset());
        let file = self.file;
        let all = (0..VCPUS).map(move |vcpu| {
            let own = u16::try_from(vcpu).ok();
            let own = own.and_then(|vcpu| file.registers.get(&vcpu));
            chain.vcpu(&own.map_or(reset, |page| contents(&page[..])));
            (vcpu + 1, chain.digest())
        });
        let least = file.least_vcpus();
        Ok(all.skip_while(move |(vcpus, _)| *vcpus < least))
    }

    /// The registers of a vCPU that the file has none for: QEMU knows nothing but its reset of it, and Cloud Hypervisor
    /// leaves it as KVM has made it.
    fn reset(&self) -> [u8; PAGE] {
        match self.file.vmm {
            Vmm::Qemu => page(self.cpu.signature(), self.features, BOOT_ADDRESS),
            Vmm::CloudHypervisor => untouched(self.features),
        }
    }
}

impl Igvm {
    /// Whether the guest boots this and nothing else: by QEMU, when the firmware in the file finds the hashes where it
    /// looks for them, and they are measured. Cloud Hypervisor puts them there, where the file leaves it the place;
    /// whether somebody looks for them is asked with [`Self::looks_for_hashes`].
    ///
    /// # Errors
    /// [`IgvmError`] says what lacks.
    pub fn ties(&self, kernel: &KernelHashes) -> Result<(), IgvmError> {
        match &self.hashes {
            Hashes::File(page) => self.has(page.as_deref(), kernel),
            Hashes::Written(Err(why)) => Err(IgvmError::Kernel(why)),
            Hashes::Written(Ok(_)) => match self.firmware.as_ref().ok().and_then(looks_here) {
                Some(false) => Err(IgvmError::Kernel(
                    "the firmware in it looks for hashes elsewhere than at 0x10c00, where Cloud Hypervisor writes them: \
                     build it from firmware that looks there",
                )),
                Some(true) | None => Ok(()),
            },
        }
    }

    /// Whether the firmware in the file says that it looks for hashes where this launch has them, so that it
    /// boots nothing else. Code of another kind may do so and not say it.
    #[must_use]
    pub fn looks_for_hashes(&self) -> bool {
        match &self.hashes {
            Hashes::File(page) => page.is_some(),
            Hashes::Written(_) => self.firmware.as_ref().ok().and_then(looks_here) == Some(true),
        }
    }

    /// Whether the page of hashes in the file is of this kernel.
    fn has(&self, page: Option<&[u8; PAGE]>, kernel: &KernelHashes) -> Result<(), IgvmError> {
        let firmware = self.firmware.as_ref();
        let firmware = firmware.map_err(|error| IgvmError::Firmware(error.clone()))?;
        let Some(offset) = firmware.hashes() else {
            return Err(IgvmError::Kernel(
                "the firmware in it has no page for hashes (SNP_KERNEL_HASHES): build it from one for direct boot",
            ));
        };
        match page {
            None => Err(IgvmError::Kernel(
                "the firmware's page for hashes is not in it, or not measured: build it with that page",
            )),
            Some(page) if *page != kernel.page(offset) => Err(IgvmError::Kernel(
                "its page of hashes is of another kernel, initramfs or command line: build it for this one",
            )),
            Some(_) => Ok(()),
        }
    }

    /// The launch before the vCPUs.
    fn chain(&self, kernel: Option<&KernelHashes>) -> Result<Chain, IgvmError> {
        let mut pages = Cow::Borrowed(&self.pages[..]);
        if let Some(kernel) = kernel {
            self.ties(kernel)?;
            if let Hashes::Written(Ok(slot)) = &self.hashes {
                pages = Cow::Owned(slot.filled(kernel, &self.pages));
            }
        }
        let mut chain = Chain::new();
        for page in pages.iter() {
            chain.page(page.kind, page.address, &page.content);
        }
        Ok(chain)
    }
}
