//! A platform and a launch on it, with values that a test or a simulated guest then changes.

use super::{Chip, Validity};
use crate::snp::{
    FirmwareVersion, Generation, GuestPolicy, KeyInfo, PlatformInfo, Report, Signature, SigningKey,
    Tcb,
};

/// The firmware of a simulated platform.
const TCB: Tcb = Tcb {
    fmc: None,
    bootloader: 9,
    tee: 2,
    snp: 23,
    microcode: 213,
};
const FIRMWARE: FirmwareVersion = FirmwareVersion {
    major: 1,
    minor: 58,
    build: 3,
};
/// SMT is allowed; bit 17 is always set.
const POLICY: u64 = 0x3_0000;
/// SMT is on, memory is checked for aliases, and has error correction.
const PLATFORM: u64 = 0x25;

impl Report {
    /// The report of an idle launch on a simulated platform, not signed yet: its measurement, report
    /// data and host data are zero.
    #[must_use]
    pub fn simulated(version: u32, generation: Generation) -> Self {
        let tcb = Tcb {
            fmc: generation.has_fmc().then_some(1),
            ..TCB
        };
        let mut chip_id = [0; 64];
        chip_id[..generation.chip_id_bytes()].fill(0xc1);
        let (family, model) = generation.cpu();
        let named = version >= 3;
        let vector = (version >= 5).then_some(3);
        Self {
            version,
            guest_svn: 0,
            policy: GuestPolicy(POLICY),
            family_id: [0; 16],
            image_id: [0; 16],
            vmpl: 0,
            sig_algo: 1,
            current_tcb: tcb,
            plat_info: PlatformInfo(PLATFORM),
            key_info: KeyInfo(0),
            report_data: [0; 64],
            measurement: [0; 48],
            host_data: [0; 32],
            id_key_digest: [0; 48],
            author_key_digest: [0; 48],
            report_id: [6; 32],
            report_id_ma: [0xff; 32],
            reported_tcb: tcb,
            cpuid_fam_id: named.then_some(family),
            cpuid_mod_id: named.then_some(model),
            cpuid_step: named.then_some(1),
            chip_id,
            committed_tcb: tcb,
            current: FIRMWARE,
            committed: FIRMWARE,
            launch_tcb: tcb,
            launch_mit_vector: vector,
            current_mit_vector: vector,
            signature: Signature::default(),
        }
    }
}

impl Chip {
    /// The chip that a report comes from.
    #[must_use]
    pub fn of(report: &Report, generation: Generation, validity: Validity) -> Self {
        Self {
            generation,
            chip_id: report.chip_id,
            tcb: report.reported_tcb,
            key: SigningKey::Vcek,
            serial: 0,
            validity,
        }
    }
}
