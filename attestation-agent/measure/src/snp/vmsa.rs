//! The page of registers of a vCPU at its start (AMD 24593, appendix B, "VMSA"): what KVM and QEMU leave
//! in it, and what KVM alone does. Another VMM leaves other attributes of segments and control words.

use super::PAGE;

/// Where a processor begins: the last 16 bytes below 4 GiB.
pub(super) const BOOT_ADDRESS: u32 = 0xffff_fff0;
/// The page attribute table after reset.
const PAT: u64 = 0x0007_0406_0007_0406;
/// The control words of the floating point units after reset.
const MXCSR: u32 = 0x1f80;
const FCW: u16 = 0x37f;

/// Attributes of segments at a processor's reset.
struct Attributes {
    data: u16,
    code: u16,
    task: u16,
}

/// QEMU's, which mark all as used.
const USED: Attributes = Attributes {
    data: 0x93,
    code: 0x9b,
    task: 0x8b,
};
/// KVM's.
const UNUSED: Attributes = Attributes {
    data: 0x92,
    code: 0x9a,
    task: 0x83,
};
/// The signature that KVM puts into RDX where nobody has told it of a processor.
const NO_CPU: u32 = 0x600;

/// `SEV_FEATURES`: what the guest is promised of the hardware. It is measured, so that a VMM and a
/// kernel that promise more have another digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestFeatures(u64);

/// Features that are no promise to an SNP guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "guest features {0:#x} lack SNPActive (bit 0), without which there is no SNP guest: QEMU and Linux set 0x1"
)]
pub struct FeaturesError(u64);

impl GuestFeatures {
    /// SNPActive alone: what QEMU asks Linux for.
    pub const SNP: Self = Self(1);

    /// Features by their bits.
    ///
    /// # Errors
    /// When they lack `SNPActive`.
    pub fn new(bits: u64) -> Result<Self, FeaturesError> {
        if bits & 1 == 0 {
            return Err(FeaturesError(bits));
        }
        Ok(Self(bits))
    }

    /// Features by their bits, and `SNPActive`, which KVM adds.
    pub(super) const fn with_snp(bits: u64) -> Self {
        Self(bits | Self::SNP.0)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// The page of a vCPU that QEMU lets begin at this address.
pub(super) fn page(signature: u32, features: GuestFeatures, start: u32) -> [u8; PAGE] {
    filled(&USED, signature, features, start)
}

/// The page of a vCPU whose registers are KVM's own: no VMM has set one since the vCPU was made.
///
/// Sources in Linux's `arch/x86`: `init_vmcb` in `kvm/svm/svm.c` (segments, `G_PAT`), `kvm_vcpu_reset` in `kvm/x86.c`
/// (all else; CPUID, which comes later, is not there to be found), `fpstate_init_user` in `kernel/fpu/core.c`, and
/// `sev_es_sync_vmsa` in `kvm/svm/sev.c`, which copies it all.
pub(super) fn untouched(features: GuestFeatures) -> [u8; PAGE] {
    filled(&UNUSED, NO_CPU, features, BOOT_ADDRESS)
}

/// KVM sets SVME in EFER and MCE in CR4.
fn filled(
    attributes: &Attributes,
    signature: u32,
    features: GuestFeatures,
    start: u32,
) -> [u8; PAGE] {
    let Attributes { data, code, task } = *attributes;
    let mut page = [0; PAGE];
    let mut put = |at: usize, field: &[u8]| page[at..at + field.len()].copy_from_slice(field);
    let base = start & 0xffff_0000;
    // ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR: selector, attributes, limit, base.
    let segments = [
        (0, data, 0),
        (0xf000, code, base),
        (0, data, 0),
        (0, data, 0),
        (0, data, 0),
        (0, data, 0),
        (0, 0, 0),
        (0, 0x82, 0),
        (0, 0, 0),
        (0, task, 0),
    ];
    for (at, (selector, attributes, base)) in (0..).step_by(16).zip(segments) {
        put(at, &u16::to_le_bytes(selector));
        put(at + 2, &u16::to_le_bytes(attributes));
        put(at + 4, &0xffff_u32.to_le_bytes());
        put(at + 8, &u64::from(base).to_le_bytes());
    }
    for (at, register) in [
        (0x0d0, 0x1000),                    // EFER
        (0x148, 0x40),                      // CR4
        (0x158, 0x10),                      // CR0
        (0x160, 0x400),                     // DR7
        (0x168, 0xffff_0ff0),               // DR6
        (0x170, 0x2),                       // RFLAGS
        (0x178, u64::from(start & 0xffff)), // RIP
        (0x268, PAT),                       // G_PAT
        (0x310, u64::from(signature)),      // RDX
        (0x3b0, features.bits()),           // SEV_FEATURES
        (0x3e8, 0x1),                       // XCR0
    ] {
        put(at, &register.to_le_bytes());
    }
    put(0x408, &MXCSR.to_le_bytes());
    put(0x410, &FCW.to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_snp_is_refused() {
        assert_eq!(GuestFeatures::new(0x21).map(GuestFeatures::bits), Ok(0x21));
        assert!(GuestFeatures::new(0x20).is_err());
    }

    #[test]
    fn everything_that_differs_is_in_the_page() {
        let base = page(0x80_0f12, GuestFeatures::SNP, BOOT_ADDRESS);
        for other in [
            page(0xa0_0f11, GuestFeatures::SNP, BOOT_ADDRESS),
            page(0x80_0f12, GuestFeatures(0x21), BOOT_ADDRESS),
            page(0x80_0f12, GuestFeatures::SNP, 0x80_b004),
            page(0x600, GuestFeatures::SNP, BOOT_ADDRESS),
            untouched(GuestFeatures::SNP),
            untouched(GuestFeatures(0x21)),
        ] {
            assert_ne!(base, other);
        }
    }
}
