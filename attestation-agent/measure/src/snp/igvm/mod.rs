//! IGVM files: a guest's memory and registers at its start, as a list of directives, in place of firmware
//! that a VMM reads.
//!
//! ```text
//!   file       bytes, checksum ──► headers
//!   directive  a header, or its name where the VMM has none of it
//!   load       directives for SEV-SNP ──► pages, areas, registers, in the file's order
//!   qemu, cloud_hypervisor
//!              as this VMM hands them to the security processor ── Igvm
//!   launch     + vCPUs, CPU model, kernel ──► launch digest
//! ```
//!
//! A file may be for several platforms; what is not for SEV-SNP is read and left out. The digest is that of
//! a launch by one VMM on KVM, which differs from what the file's own order says: registers come last. What the
//! VMM or KVM would refuse is refused here.
//!
//! Sources: Microsoft's `igvm_defs` and `igvm` (the layout); QEMU's `backends/igvm.c` and `target/i386/sev.c`, and
//! Cloud Hypervisor's `vmm/src/igvm/igvm_loader.rs` and `hypervisor/src/kvm` (what is loaded, how and in which
//! order); Linux's `arch/x86/kvm/svm` (registers).

mod cloud_hypervisor;
mod directive;
mod error;
mod file;
mod launch;
mod load;
mod qemu;
mod registers;

use std::collections::BTreeMap;

pub use error::IgvmError;
pub use file::IGVM_BYTES;
pub use launch::IgvmLaunch;

use self::cloud_hypervisor::Slot;
use super::{Firmware, FirmwareError, LaunchDigest, PAGE, Vmm, chain::PageKind};

/// A file that starts an SNP guest.
#[derive(Debug, Clone)]
pub struct Igvm {
    /// Who loads it.
    vmm: Vmm,
    policy: u64,
    /// What an ID block in it lets start.
    signed: Option<LaunchDigest>,
    /// All pages but the registers, in their order.
    pages: Vec<Loaded>,
    /// Registers of vCPUs, by their numbers.
    registers: BTreeMap<u16, Box<[u8; PAGE]>>,
    /// What the guest is promised; `None` where the file does not decide it.
    features: Option<u64>,
    /// The firmware in it: what is measured right below 4 GiB.
    firmware: Result<Firmware, FirmwareError>,
    hashes: Hashes,
}

/// A page as it is measured.
#[derive(Debug, Clone, Copy)]
struct Loaded {
    kind: PageKind,
    address: u64,
    /// The digest of its content, where that counts.
    content: [u8; 48],
}

/// Where the hashes of what is booted come from.
#[derive(Debug, Clone)]
enum Hashes {
    /// The file has this page where its firmware looks for them, and it is measured.
    File(Option<Box<[u8; PAGE]>>),
    /// Cloud Hypervisor writes them, if it can.
    Written(Result<Slot, &'static str>),
}

impl Igvm {
    /// Reads a file that this VMM loads.
    ///
    /// # Errors
    /// When it starts no SNP guest, is broken, or has something that the VMM does not load or that is not
    /// known here.
    pub fn parse(bytes: &[u8], vmm: Vmm) -> Result<Self, IgvmError> {
        let contents = load::read(&file::File::parse(bytes)?, vmm)?;
        match vmm {
            Vmm::Qemu => qemu::load(&contents),
            Vmm::CloudHypervisor => cloud_hypervisor::load(contents),
        }
    }

    /// The guest policy that the launch will have.
    #[must_use]
    pub fn policy(&self) -> u64 {
        self.policy
    }

    /// The least number of vCPUs: QEMU refuses registers of one that is not there.
    #[must_use]
    pub fn least_vcpus(&self) -> u32 {
        match (self.vmm, self.registers.last_key_value()) {
            (Vmm::Qemu, Some((last, _))) => u32::from(*last) + 1,
            (Vmm::Qemu, None) | (Vmm::CloudHypervisor, _) => 1,
        }
    }
}
