//! Faults of what the owner registered: the guest is good, and nobody said so.

use serde_json::{Map, Value, json};

use super::{Case, Fault, case};

fn reference(
    name: &'static str,
    fault: fn(&mut Map<String, Value>),
    claim: &'static str,
    told: &'static str,
) -> Case {
    case(name, Fault::Reference(fault), claim, told)
}

pub(crate) fn cases() -> Vec<Case> {
    missing().into_iter().chain(differing()).collect()
}

fn missing() -> Vec<Case> {
    let claim = [
        "sim-snp.measurement",
        "sim-snp.reported_tcb_bootloader",
        "sim-snp.reported_tcb_tee",
        "sim-snp.reported_tcb_snp",
        "sim-snp.reported_tcb_microcode",
    ];
    vec![
        reference(
            "no measurement",
            |r| drop(r.remove("snp_launch_measurement")),
            claim[0],
            "snp_launch_measurement",
        ),
        reference(
            "no bootloader",
            |r| drop(r.remove("snp_bootloader")),
            claim[1],
            "snp_bootloader",
        ),
        reference(
            "no TEE firmware",
            |r| drop(r.remove("snp_tee_svn")),
            claim[2],
            "snp_tee_svn",
        ),
        reference(
            "no SNP firmware",
            |r| drop(r.remove("snp_snp_svn")),
            claim[3],
            "snp_snp_svn",
        ),
        reference(
            "no microcode",
            |r| drop(r.remove("snp_microcode")),
            claim[4],
            "snp_microcode",
        ),
    ]
}

fn differing() -> Vec<Case> {
    vec![
        reference(
            "another measurement",
            |r| r["snp_launch_measurement"] = json!(["cd".repeat(48)]),
            "sim-snp.measurement",
            "cdcd",
        ),
        reference(
            "a measurement in capitals",
            |r| r["snp_launch_measurement"] = json!(["AB".repeat(48)]),
            "sim-snp.measurement",
            "ABAB",
        ),
        reference(
            "an empty list",
            |r| r["snp_launch_measurement"] = json!([]),
            "sim-snp.measurement",
            "snp_launch_measurement",
        ),
        reference(
            "another bootloader",
            |r| r["snp_bootloader"] = json!([10]),
            "sim-snp.reported_tcb_bootloader",
            "10",
        ),
        reference(
            "a bootloader as text",
            |r| r["snp_bootloader"] = json!(["9"]),
            "sim-snp.reported_tcb_bootloader",
            "9",
        ),
        reference(
            "another microcode",
            |r| r["snp_microcode"] = json!([214, 215]),
            "sim-snp.reported_tcb_microcode",
            "215",
        ),
        reference(
            "another SNP firmware",
            |r| r["snp_snp_svn"] = json!([24]),
            "sim-snp.reported_tcb_snp",
            "24",
        ),
        reference(
            "another TEE firmware",
            |r| r["snp_tee_svn"] = json!([3]),
            "sim-snp.reported_tcb_tee",
            "3",
        ),
        reference(
            "threads must be off",
            |r| r["snp_smt_enabled"] = json!([false]),
            "sim-snp.platform_smt_enabled",
            "false",
        ),
        reference(
            "threads must not be allowed",
            |r| r["snp_smt_allowed"] = json!([false]),
            "sim-snp.policy_smt_allowed",
            "false",
        ),
        reference(
            "one socket is wanted",
            |r| r["snp_single_socket"] = json!([true]),
            "sim-snp.policy_single_socket",
            "true",
        ),
        reference(
            "transparent encryption is wanted",
            |r| r["snp_tsme_enabled"] = json!([true]),
            "sim-snp.platform_tsme_enabled",
            "true",
        ),
        reference(
            "another minor version is wanted",
            |r| r["snp_guest_abi_minor"] = json!([51]),
            "sim-snp.policy_abi_minor",
            "51",
        ),
        reference(
            "another major version is wanted",
            |r| r["snp_guest_abi_major"] = json!([1]),
            "sim-snp.policy_abi_major",
            "1",
        ),
    ]
}
