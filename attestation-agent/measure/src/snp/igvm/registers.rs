//! A vCPU's page of registers in a file: whether it is the one that the hardware will measure.
//!
//! QEMU takes single registers from it and sets the vCPU's, from which KVM makes the page anew. What QEMU
//! does not take it refuses, and so do we; what KVM sets in another way would be another digest than the
//! file's, and is refused as well.

use std::collections::BTreeMap;

use super::super::PAGE;
use super::super::chain::VMSA_ADDRESS;
use super::error::IgvmError;

/// What QEMU takes: where it begins and how long it is (AMD 24593, table B-4).
const TAKEN: [(usize, usize); 22] = [
    (0x000, 0x60), // ES, CS, SS, DS, FS, GS
    (0x064, 12),   // limit and base of GDTR
    (0x070, 16),   // LDTR
    (0x084, 12),   // limit and base of IDTR
    (0x090, 16),   // TR
    (0x0d0, 8),    // EFER
    (0x148, 8),    // CR4
    (0x150, 8),    // CR3
    (0x158, 8),    // CR0
    (0x160, 8),    // DR7
    (0x168, 8),    // DR6
    (0x170, 8),    // RFLAGS
    (0x178, 8),    // RIP
    (0x1d8, 8),    // RSP
    (0x1f8, 8),    // RAX
    (0x268, 8),    // G_PAT
    (0x308, 24),   // RCX, RDX, RBX
    (0x328, 88),   // RBP, RSI, RDI, R8 to R15
    (FEATURES, 8), // SEV_FEATURES
    (0x3e8, 8),    // XCR0
    (0x408, 4),    // MXCSR
    (0x410, 2),    // FCW
];
const FEATURES: usize = 0x3b0;

/// What KVM sets: where, which bits, what they are then, and what the file has else.
const SET: [(usize, u64, u64, &str); 6] = [
    (
        0x0d0,
        0x1000,
        0x1000,
        "lack SVME in EFER, which KVM sets: set it in the file",
    ),
    (
        0x148,
        0x40,
        0x40,
        "lack MCE in CR4, which KVM sets: set it in the file",
    ),
    (
        0x158,
        0x6000_0010,
        0x10,
        "lack ET in CR0, or have CD or NW: as QEMU and KVM leave it, it is 0x10 with none of these",
    ),
    (
        0x170,
        2,
        2,
        "lack bit 1 of RFLAGS, which is always one: set it in the file",
    ),
    (
        0x160,
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

/// The page, if it is the one that is measured.
pub(super) fn read(address: u64, data: &[u8]) -> Result<Box<[u8; PAGE]>, &'static str> {
    if address != VMSA_ADDRESS {
        return Err("are at another address than 0xfffffffff000, where KVM has them");
    }
    let page = data.first_chunk::<PAGE>().ok_or("are cut short")?;
    let taken = |at: &usize| {
        TAKEN
            .iter()
            .any(|(start, len)| (*start..start + len).contains(at))
    };
    let mut other = page.iter().enumerate().filter(|(at, _)| !taken(at));
    if other.any(|(_, byte)| *byte != 0) {
        return Err("have something besides what QEMU takes over: leave that zero");
    }
    for (at, bits, value, why) in SET {
        if word(page, at) & bits != value {
            return Err(why);
        }
    }
    Ok(Box::new(*page))
}

/// What the file promises; `None` where it has no registers of the first vCPU, from which QEMU takes it.
pub(super) fn features(registers: &BTreeMap<u16, Box<[u8; PAGE]>>) -> Option<u64> {
    registers.get(&0).map(|page| word(page, FEATURES))
}

/// KVM has the same features for all vCPUs.
pub(super) fn same_features(registers: &BTreeMap<u16, Box<[u8; PAGE]>>) -> Result<(), IgvmError> {
    let first = features(registers);
    for (vcpu, page) in registers {
        if Some(word(page, FEATURES)) != first {
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
