//! What a verified report says. Trustee's claims keep its names and types; ours stand beside them.

use evidence::snp::{FirmwareVersion, Generation, Report, Tcb};
use serde_json::{Map, Value, json};

use super::Vek;

pub(super) fn claims(report: &Report, generation: Generation, vek: &Vek, crl: &str) -> Value {
    let mut claims = trustee(report);
    let ours = [own(report, generation), switches(report)];
    for (name, value) in ours.into_iter().flatten() {
        claims.insert(name, value);
    }
    claims.insert(
        "signing_key".into(),
        json!(vek.role().name().to_lowercase()),
    );
    claims.insert("crl".into(), json!(crl));
    tcb(&mut claims, "current", report.current_tcb);
    tcb(&mut claims, "committed", report.committed_tcb);
    tcb(&mut claims, "launch", report.launch_tcb);
    claims.insert("reported_tcb_fmc".into(), json!(report.reported_tcb.fmc));
    Value::Object(claims)
}

fn trustee(report: &Report) -> Map<String, Value> {
    let policy = report.policy;
    object(json!({
        "policy_abi_major": policy.abi_major(),
        "policy_abi_minor": policy.abi_minor(),
        "policy_smt_allowed": policy.smt_allowed(),
        "policy_migrate_ma": policy.migrate_ma(),
        "policy_debug_allowed": policy.debug_allowed(),
        "policy_single_socket": policy.single_socket(),
        "reported_tcb_bootloader": report.reported_tcb.bootloader,
        "reported_tcb_tee": report.reported_tcb.tee,
        "reported_tcb_snp": report.reported_tcb.snp,
        "reported_tcb_microcode": report.reported_tcb.microcode,
        "platform_tsme_enabled": report.plat_info.tsme(),
        "platform_smt_enabled": report.plat_info.smt(),
        "measurement": hex::encode(report.measurement),
        "report_data": hex::encode(report.report_data),
        "init_data": hex::encode(report.host_data),
        "chip_id": hex::encode(report.chip_id),
    }))
}

fn own(report: &Report, generation: Generation) -> Map<String, Value> {
    object(json!({
        "version": report.version,
        "vmpl": report.vmpl,
        "generation": generation.name(),
        "guest_svn": report.guest_svn,
        "family_id": hex::encode(report.family_id),
        "image_id": hex::encode(report.image_id),
        "id_key_digest": hex::encode(report.id_key_digest),
        "author_key_enabled": report.key_info.author_key(),
        "author_key_digest": hex::encode(report.author_key_digest),
        "report_id": hex::encode(report.report_id),
        "report_id_ma": hex::encode(report.report_id_ma),
        "cpuid_family": report.cpuid_fam_id,
        "cpuid_model": report.cpuid_mod_id,
        "cpuid_stepping": report.cpuid_step,
        "firmware_current": firmware(report.current),
        "firmware_committed": firmware(report.committed),
        "launch_mit_vector": report.launch_mit_vector,
        "current_mit_vector": report.current_mit_vector,
    }))
}

fn switches(report: &Report) -> Map<String, Value> {
    let (policy, platform) = (report.policy, report.plat_info);
    object(json!({
        "policy": policy.0,
        "policy_cxl_allowed": policy.cxl_allowed(),
        "policy_mem_aes_256_xts": policy.mem_aes_256_xts(),
        "policy_rapl_disabled": policy.rapl_disabled(),
        "policy_ciphertext_hiding": policy.ciphertext_hiding(),
        "policy_page_swap_disabled": policy.page_swap_disabled(),
        "platform_info": platform.0,
        "platform_ecc_enabled": platform.ecc(),
        "platform_rapl_disabled": platform.rapl_disabled(),
        "platform_ciphertext_hiding_enabled": platform.ciphertext_hiding(),
        "platform_alias_check_complete": platform.alias_check_complete(),
        "platform_tio_enabled": platform.tio(),
    }))
}

fn tcb(claims: &mut Map<String, Value>, which: &str, tcb: Tcb) {
    let parts = [
        ("fmc", json!(tcb.fmc)),
        ("bootloader", json!(tcb.bootloader)),
        ("tee", json!(tcb.tee)),
        ("snp", json!(tcb.snp)),
        ("microcode", json!(tcb.microcode)),
    ];
    for (part, value) in parts {
        claims.insert(format!("{which}_tcb_{part}"), value);
    }
}

fn firmware(version: FirmwareVersion) -> String {
    format!("{}.{}.{}", version.major, version.minor, version.build)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
