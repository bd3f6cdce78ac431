//! A vCPU's page of registers in a file, and the one that the hardware will measure.
//!
//! A VMM takes single registers from the file and sets the vCPU's, from which KVM makes the page anew
//! (`sev_es_sync_vmsa` in Linux's `arch/x86/kvm/svm/sev.c`). What QEMU does not take it refuses, and so do we; what
//! KVM sets in another way would be another digest than the file's, and is refused as well. Cloud Hypervisor leaves
//! the rest of a file's page aside, whatever it is, so that the page which KVM makes is the one that counts.

use std::collections::BTreeMap;

use super::super::chain::VMSA_ADDRESS;
use super::super::vmsa::untouched;
use super::super::{GuestFeatures, PAGE};
use super::error::IgvmError;

/// What both VMMs take: where it begins and how long it is (AMD 24593, table B-4; Cloud Hypervisor's
/// `setup_sev_snp_regs` in `hypervisor/src/kvm/mod.rs`).
const TAKEN: [(usize, usize); 15] = [
    (0x000, 0x60), // ES, CS, SS, DS, FS, GS
    (GDTR, 12),    // limit and base of GDTR
    (0x070, 16),   // LDTR
    (IDTR, 12),    // limit and base of IDTR
    (0x090, 16),   // TR
    (EFER, 8),     // EFER
    (CR4, 8),      // CR4
    (0x150, 8),    // CR3
    (CR0, 8),      // CR0
    (RFLAGS, 8),   // RFLAGS
    (0x178, 8),    // RIP
    (0x1d8, 8),    // RSP
    (0x1f8, 8),    // RAX
    (0x308, 24),   // RCX, RDX, RBX
    (0x328, 88),   // RBP, RSI, RDI, R8 to R15
];
/// What QEMU takes besides.
const TAKEN_BY_QEMU: [(usize, usize); 7] = [
    (DR7, 8),      // DR7
    (0x168, 8),    // DR6
    (0x268, 8),    // G_PAT
    (FEATURES, 8), // SEV_FEATURES
    (0x3e8, 8),    // XCR0
    (0x408, 4),    // MXCSR
    (0x410, 2),    // FCW
];

/// Where segments are: selector, attributes, limit, base.
const SEGMENTS: [usize; 8] = [0x00, 0x10, SS, 0x30, 0x40, 0x50, 0x70, 0x90];
const SS: usize = 0x20;
/// The limits of GDTR and IDTR.
const GDTR: usize = 0x64;
const IDTR: usize = 0x84;
const CPL: usize = 0xcb;
const EFER: usize = 0x0d0;
const CR4: usize = 0x148;
const CR0: usize = 0x158;
const DR7: usize = 0x160;
const RFLAGS: usize = 0x170;
const FEATURES: usize = 0x3b0;

/// Bits.
const SVME: u64 = 0x1000;
const MCE: u64 = 0x40;
const CD_NW: u64 = 0x6000_0000;
const FIXED: u64 = 2;

/// What KVM sets: where, which bits, what they are then, and what the file has else.
const SET: [(usize, u64, u64, &str); 6] = [
    (
        EFER,
        SVME,
        SVME,
        "lack SVME in EFER, which KVM sets: set it in the file",
    ),
    (
        CR4,
        MCE,
        MCE,
        "lack MCE in CR4, which KVM sets: set it in the file",
    ),
    (
        CR0,
        CD_NW | 0x10,
        0x10,
        "lack ET in CR0, or have CD or NW: as QEMU and KVM leave it, it is 0x10 with none of these",
    ),
    (
        RFLAGS,
        FIXED,
        FIXED,
        "lack bit 1 of RFLAGS, which is always one: set it in the file",
    ),
    (
        DR7,
        u64::MAX,
        0x400,
        "have a DR7 other than 0x400, which KVM refuses: set it in the file",
    ),
    (
        FEATURES,
        1,
        1,
        "lack SNPActive in SEV_FEATURES: set it in the file",
    ),
];

/// The registers in a file that QEMU loads.
pub(super) fn of_file(
    file: &BTreeMap<u16, (u64, &[u8; PAGE])>,
) -> Result<BTreeMap<u16, Box<[u8; PAGE]>>, IgvmError> {
    let read = |(vcpu, (address, page)): (&u16, &(u64, &[u8; PAGE]))| {
        let page = as_it_is(*address, page);
        let page = page.map_err(|why| IgvmError::Registers { vcpu: *vcpu, why })?;
        Ok((*vcpu, page))
    };
    let registers = file.iter().map(read).collect::<Result<_, _>>()?;
    same_features(&registers)?;
    Ok(registers)
}

/// The page, if it is the one that is measured.
fn as_it_is(address: u64, page: &[u8; PAGE]) -> Result<Box<[u8; PAGE]>, &'static str> {
    if address != VMSA_ADDRESS {
        return Err("are at another address than 0xfffffffff000, where KVM has them");
    }
    let places = || TAKEN.iter().chain(&TAKEN_BY_QEMU);
    let taken = |at: &usize| places().any(|(start, len)| (*start..start + len).contains(at));
    let mut other = page.iter().enumerate().filter(|(at, _)| !taken(at));
    if other.any(|(_, byte)| *byte != 0) {
        return Err("have something besides what QEMU takes over: leave that zero");
    }
    for (at, bits, value, why) in SET {
        if word(page, at) & bits != value {
            return Err(why);
        }
    }
    let mut kept = Box::new(*page);
    keep(&mut kept);
    if *kept != *page {
        return Err(
            "have a privilege level in SS, or bits in attributes or limits, which KVM does not keep",
        );
    }
    Ok(kept)
}

/// The page that is measured where Cloud Hypervisor takes a vCPU's registers from this one.
pub(super) fn taken_over(
    file: &[u8; PAGE],
    features: GuestFeatures,
) -> Result<Box<[u8; PAGE]>, &'static str> {
    if [GDTR, IDTR]
        .iter()
        .any(|at| word(file, *at) & 0xffff_0000 != 0)
    {
        return Err(
            "have a limit of more than 16 bits in GDTR or IDTR, which Cloud Hypervisor refuses",
        );
    }
    let mut page = Box::new(untouched(features));
    for (at, len) in TAKEN {
        page[at..at + len].copy_from_slice(&file[at..at + len]);
    }
    keep(&mut page);
    Ok(page)
}

/// Makes of what was set what KVM has then: attributes of twelve bits, the privilege level of SS
/// (`svm_set_segment` in Linux's `arch/x86/kvm/svm/svm.c`), limits of 16 bits, SVME (`svm_set_efer`), MCE, which hosts
/// have (`svm_set_cr4`), caches that are on (`svm_set_cr0`), and the bit of RFLAGS that is always one.
fn keep(page: &mut [u8; PAGE]) {
    for segment in SEGMENTS {
        page[segment + 3] &= 0x0f;
    }
    page[CPL] = (page[SS + 2] >> 5) & 3;
    for limit in [GDTR, IDTR] {
        page[limit + 2..limit + 4].fill(0);
    }
    for (at, on, off) in [
        (EFER, SVME, 0),
        (CR4, MCE, 0),
        (CR0, 0, CD_NW),
        (RFLAGS, FIXED, 0),
    ] {
        let kept = (word(page, at) | on) & !off;
        page[at..at + 8].copy_from_slice(&kept.to_le_bytes());
    }
}

/// What the file promises; `None` where it has no registers of the first vCPU, from which a VMM takes it.
pub(super) fn features(registers: &BTreeMap<u16, Box<[u8; PAGE]>>) -> Option<u64> {
    registers.get(&0).map(|page| promised(page))
}

/// What one vCPU's registers promise.
pub(super) fn promised(page: &[u8; PAGE]) -> u64 {
    word(page, FEATURES)
}

/// KVM has the same features for all vCPUs.
fn same_features(registers: &BTreeMap<u16, Box<[u8; PAGE]>>) -> Result<(), IgvmError> {
    let first = features(registers);
    for (vcpu, page) in registers {
        if Some(promised(page)) != first {
            let why = "have other SEV_FEATURES than those of vCPU 0, which hold for all";
            return Err(IgvmError::Registers { vcpu: *vcpu, why });
        }
    }
    Ok(())
}

fn word(page: &[u8; PAGE], at: usize) -> u64 {
    let bytes = page.get(at..).and_then(<[u8]>::first_chunk);
    u64::from_le_bytes(bytes.copied().unwrap_or_default())
}
