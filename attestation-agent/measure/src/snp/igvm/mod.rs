//! IGVM files: a guest's memory and registers at its start, as a list of directives, in place of firmware
//! that a VMM reads.
//!
//! ```text
//!   file       bytes, checksum ──► headers
//!   directive  a header, or its name where QEMU has none of it
//!   load       directives in QEMU's order ──► chain of pages, registers ── Igvm
//!   launch     + vCPUs, CPU model, kernel ──► launch digest
//! ```
//!
//! A file may be for several platforms; what is not for SEV-SNP is read and left out. The digest is that of
//! a launch by QEMU on KVM, which differs from what the file's own order says: registers come last, and
//! a page without content counts as one of zeros. What QEMU or KVM would refuse or change is refused here.
//!
//! QEMU has no place for hashes of the kernel in such a launch. The file has to bring the page, as firmware
//! for direct boot expects it, and [`IgvmLaunch::kernel`] is compared with it.
//!
//! Sources: Microsoft's `igvm_defs` (the layout); QEMU's `backends/igvm.c` and `target/i386/sev.c` (what is
//! loaded, how and in which order); Linux's `arch/x86/kvm/svm/sev.c` (registers).

mod directive;
mod error;
mod file;
mod launch;
mod load;
mod registers;

use std::collections::BTreeMap;

pub use error::IgvmError;
pub use file::IGVM_BYTES;
pub use launch::IgvmLaunch;

use super::{Firmware, FirmwareError, LaunchDigest, PAGE, chain::Chain};

/// A file that starts an SNP guest.
#[derive(Debug, Clone)]
pub struct Igvm {
    policy: u64,
    /// What an ID block in it lets start.
    signed: Option<LaunchDigest>,
    /// All pages but the registers.
    chain: Chain,
    /// Registers of vCPUs, by their numbers.
    registers: BTreeMap<u16, Box<[u8; PAGE]>>,
    /// The firmware in it: what is measured right below 4 GiB.
    firmware: Result<Firmware, FirmwareError>,
    /// The page of hashes, where the firmware has a place for it and the file a measured page there.
    hashes: Option<Box<[u8; PAGE]>>,
}

impl Igvm {
    /// Reads a file.
    ///
    /// # Errors
    /// When it starts no SNP guest, is broken, or has something that QEMU does not load or that is not
    /// known here.
    pub fn parse(bytes: &[u8]) -> Result<Self, IgvmError> {
        load::load(&file::File::parse(bytes)?)
    }

    /// The guest policy that the launch will have.
    #[must_use]
    pub fn policy(&self) -> u64 {
        self.policy
    }

    /// The least number of vCPUs: QEMU refuses registers of one that is not there.
    #[must_use]
    pub fn least_vcpus(&self) -> u32 {
        let last = self.registers.last_key_value();
        last.map_or(1, |(index, _)| u32::from(*index) + 1)
    }
}
