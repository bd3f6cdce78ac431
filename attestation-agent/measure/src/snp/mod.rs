//! SEV-SNP: the launch digest of a guest, before it is launched.
//!
//! A launch is a list of pages in an order: the firmware's image, what the firmware's metadata asks
//! for ([`Firmware`]), among it the page of hashes that ties kernel, initramfs and command line to the
//! firmware ([`KernelHashes`]), and at last one page of registers for each vCPU. The security processor
//! chains a digest over them; so does this module.
//!
//! An IGVM file says all of that itself, page by page ([`Igvm`]), and each VMM loads it in its own way ([`Vmm`]).
//!
//! Sources: AMD 56860 (SEV-SNP firmware ABI), 8.17.2 (the chain); QEMU's `target/i386/sev.c` and
//! `hw/i386/x86-common.c` (order, hashes, and that a confidential guest's kernel is passed on as it is
//! in its file); Linux's `arch/x86/kvm/svm/sev.c` (the pages of registers come last).

mod chain;
mod cpu;
mod firmware;
mod hashes;
mod id_block;
mod igvm;
mod launch;
mod vmm;
mod vmsa;

pub use chain::{DigestError, LaunchDigest};
pub use cpu::{CpuModel, CpuModelError};
pub use firmware::{FIRMWARE_BYTES, Firmware, FirmwareError, Section, SectionKind};
pub use hashes::{KernelError, KernelHashes};
pub use id_block::{ID_AUTH_BYTES, ID_BLOCK_BYTES, IdAuth, IdBlock, IdKey, IdKeyError, KeyDigest};
pub use igvm::{IGVM_BYTES, Igvm, IgvmError, IgvmLaunch};
pub use launch::{Digests, Launch, LaunchError, VCPUS};
pub use vmm::Vmm;
pub use vmsa::{FeaturesError, GuestFeatures};

/// Bytes of a page.
const PAGE: usize = 4096;
