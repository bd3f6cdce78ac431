//! Why a file starts no SNP guest, or not the one that is meant.

use super::super::{FirmwareError, LaunchDigest, VCPUS, Vmm};
use super::file::IGVM_BYTES;

/// A file that is none, or that the VMM would not load as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the members are what the text says")]
pub enum IgvmError {
    /// Too many bytes.
    #[error("the IGVM file has {0} bytes: at most {IGVM_BYTES} are read")]
    Size(usize),
    /// No file of this kind, or a part of one.
    #[error("this is no IGVM file, or not a whole one: {0}")]
    Fixed(&'static str),
    /// A newer form.
    #[error("the IGVM file has version {0}, and 1 and 2 are known here: update cloister")]
    Version(u32),
    /// Changed since it was made.
    #[error(
        "the IGVM file says that its checksum is {said:#010x}, and it is {found:#010x}: build or fetch it anew"
    )]
    Checksum { said: u32, found: u32 },
    /// A header that cannot be.
    #[error("the IGVM file's header at byte {at} {why}")]
    Header { at: usize, why: &'static str },
    /// A header that the VMM refuses, or that is newer than this.
    #[error(
        "the IGVM file has a header {name} ({kind:#x}), with which {vmm} starts no SNP guest: build it without"
    )]
    Unknown {
        kind: u32,
        name: &'static str,
        vmm: Vmm,
    },
    /// A file for others.
    #[error("the IGVM file is for no SEV-SNP guest: build it for that platform")]
    Platform,
    /// Nothing to load.
    #[error("the IGVM file has no page for an SEV-SNP guest: build it anew")]
    Empty,
    /// No policy.
    #[error(
        "the IGVM file has no guest policy, and QEMU would take 0, which starts no guest: build it with one"
    )]
    NoPolicy,
    /// A page that cannot be, or is another one for the VMM.
    #[error("the IGVM file has a page at {address:#x} that {why}")]
    Page { address: u64, why: &'static str },
    /// A parameter area that cannot be.
    #[error("the IGVM file's parameter area {index} {why}")]
    Area { index: u32, why: &'static str },
    /// Registers that a vCPU does not get as they are.
    #[error("the IGVM file's registers of vCPU {vcpu} {why}")]
    Registers { vcpu: u16, why: &'static str },
    /// Not every number of vCPUs starts.
    #[error(
        "{vcpus} vCPUs: the IGVM file has registers for {least}, and a guest has at most {VCPUS}"
    )]
    Vcpus { vcpus: u32, least: u32 },
    /// Other features than were asked for.
    #[error(
        "the IGVM file promises the guest features {said:#x}, and {asked:#x} are asked for: give --guest-features {said:#x}"
    )]
    Features { said: u64, asked: u64 },
    /// The kernel is not tied to what starts.
    #[error("the IGVM file does not tie the kernel to the guest: {0}")]
    Kernel(&'static str),
    /// No firmware whose place of hashes could be known.
    #[error(
        "the IGVM file does not tie the kernel to the guest, as the firmware below 4 GiB in it has no place for hashes: {0}"
    )]
    Firmware(FirmwareError),
    /// The hardware would refuse it.
    #[error(
        "the IGVM file's ID block is of the launch digest {signed}, and this launch has {found}: the hardware would \
         refuse it"
    )]
    IdBlock {
        signed: LaunchDigest,
        found: LaunchDigest,
    },
}
