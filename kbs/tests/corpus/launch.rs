//! Faults of a launch and of its chip: the evidence is true, and says something else.

use evidence::{
    sim::snp::Chip,
    snp::{Generation, GuestPolicy, KeyInfo, PlatformInfo, Report, SigningKey},
};

use super::{Case, Fault, case};
use crate::platform::{Platform, VALIDITY};

fn launch(
    name: &'static str,
    fault: fn(&mut Platform),
    claim: &'static str,
    told: &'static str,
) -> Case {
    case(name, Fault::Launch(fault), claim, told)
}

fn policy(bits: u64) -> GuestPolicy {
    GuestPolicy(0x3_0000 ^ bits)
}

/// Firmware in the report and in the key alike.
fn firmware(platform: &mut Platform, change: fn(&mut evidence::snp::Tcb)) {
    change(&mut platform.report.reported_tcb);
    platform.chip.tcb = platform.report.reported_tcb;
}

pub(crate) fn cases() -> Vec<Case> {
    [measured(), configured(), chip(), certificate()]
        .into_iter()
        .flatten()
        .collect()
}

fn measured() -> Vec<Case> {
    const CLAIM: &str = "sim-snp.measurement";
    vec![
        launch(
            "another kernel",
            |p| p.report.measurement = [0x01; 48],
            CLAIM,
            "0101",
        ),
        launch(
            "another initramfs",
            |p| p.report.measurement = [0x02; 48],
            CLAIM,
            "0202",
        ),
        launch(
            "another command line",
            |p| p.report.measurement = [0x03; 48],
            CLAIM,
            "0303",
        ),
        launch(
            "one vCPU more",
            |p| p.report.measurement = [0x04; 48],
            CLAIM,
            "0404",
        ),
        launch(
            "another firmware of the guest",
            |p| p.report.measurement = [0x05; 48],
            CLAIM,
            "0505",
        ),
        launch(
            "nothing measured",
            |p| p.report.measurement = [0; 48],
            CLAIM,
            "0000",
        ),
        launch(
            "another init-data bound",
            |p| p.host_data = Some([9; 32]),
            "init_data",
            "0909",
        ),
        launch(
            "no init-data bound",
            |p| p.host_data = Some([0; 32]),
            "init_data",
            "0000",
        ),
    ]
}

fn configured() -> Vec<Case> {
    vec![
        launch(
            "debug allowed",
            |p| p.report.policy = policy(1 << 19),
            "sim-snp.policy_debug_allowed",
            "true",
        ),
        launch(
            "migration agent allowed",
            |p| p.report.policy = policy(1 << 18),
            "sim-snp.policy_migrate_ma",
            "true",
        ),
        launch(
            "threads not allowed",
            |p| p.report.policy = policy(1 << 16),
            "sim-snp.policy_smt_allowed",
            "false",
        ),
        launch(
            "one socket only",
            |p| p.report.policy = policy(1 << 20),
            "sim-snp.policy_single_socket",
            "true",
        ),
        launch(
            "minor version of the interface",
            |p| p.report.policy = policy(5),
            "sim-snp.policy_abi_minor",
            "5",
        ),
        launch(
            "major version of the interface",
            |p| p.report.policy = policy(1 << 8),
            "sim-snp.policy_abi_major",
            "1",
        ),
        launch(
            "threads off",
            |p| p.report.plat_info = PlatformInfo(0x24),
            "sim-snp.platform_smt_enabled",
            "false",
        ),
        launch(
            "transparent encryption on",
            |p| p.report.plat_info = PlatformInfo(0x27),
            "sim-snp.platform_tsme_enabled",
            "true",
        ),
        launch("asked for at VMPL 1", |p| p.report.vmpl = 1, "vmpl", "1"),
        launch("asked for at VMPL 3", |p| p.report.vmpl = 3, "vmpl", "3"),
        launch(
            "older bootloader",
            |p| firmware(p, |t| t.bootloader = 8),
            "sim-snp.reported_tcb_bootloader",
            "8",
        ),
        launch(
            "older TEE firmware",
            |p| firmware(p, |t| t.tee = 1),
            "sim-snp.reported_tcb_tee",
            "1",
        ),
        launch(
            "older SNP firmware",
            |p| firmware(p, |t| t.snp = 22),
            "sim-snp.reported_tcb_snp",
            "22",
        ),
        launch(
            "older microcode",
            |p| firmware(p, |t| t.microcode = 200),
            "sim-snp.reported_tcb_microcode",
            "200",
        ),
    ]
}

fn chip() -> Vec<Case> {
    vec![
        launch(
            "another chip's report",
            |p| p.report.chip_id = [7; 64],
            "chip_id",
            "0707",
        ),
        launch(
            "masked chip",
            |p| p.report.chip_id = [0; 64],
            "chip_id",
            "zeros",
        ),
        launch(
            "masked key",
            |p| p.report.key_info = KeyInfo(0b10),
            "signature",
            "not signed",
        ),
        launch(
            "no key chosen",
            |p| p.report.key_info = KeyInfo(7 << 2),
            "signature",
            "not signed",
        ),
        launch(
            "a loaded key in the report",
            |p| p.report.key_info = KeyInfo(1 << 2),
            "signing_key",
            "VCEK",
        ),
        launch(
            "a loaded key in the certificate",
            |p| p.chip.key = SigningKey::Vlek,
            "signing_key",
            "VLEK",
        ),
        launch("a report of version 2", version_2, "version", "2"),
        launch(
            "the key of an older bootloader",
            |p| p.chip.tcb.bootloader = 8,
            "reported_tcb_bootloader",
            "8",
        ),
        launch(
            "the key of an older TEE firmware",
            |p| p.chip.tcb.tee = 1,
            "reported_tcb_tee",
            "1",
        ),
        launch(
            "the key of an older SNP firmware",
            |p| p.chip.tcb.snp = 22,
            "reported_tcb_snp",
            "22",
        ),
        launch(
            "the key of an older microcode",
            |p| p.chip.tcb.microcode = 200,
            "reported_tcb_microcode",
            "200",
        ),
        launch("the key of an older FMC", fmc, "reported_tcb_fmc", "0"),
    ]
}

fn version_2(platform: &mut Platform) {
    platform.report = Report {
        measurement: platform.report.measurement,
        ..Report::simulated(2, Generation::Genoa)
    };
}

fn fmc(platform: &mut Platform) {
    let report = Report {
        measurement: platform.report.measurement,
        ..Report::simulated(3, Generation::Turin)
    };
    let mut chip = Chip::of(&report, Generation::Turin, VALIDITY);
    chip.tcb.fmc = Some(0);
    platform.report = report;
    platform.chip = chip;
}

fn certificate() -> Vec<Case> {
    vec![
        launch(
            "an expired certificate",
            |p| p.chip.validity.until = 1_750_000_000,
            "validity",
            "until 1750000000",
        ),
        launch(
            "a certificate of the future",
            |p| p.chip.validity.from = 2_300_000_000,
            "validity",
            "from 2300000000",
        ),
    ]
}
