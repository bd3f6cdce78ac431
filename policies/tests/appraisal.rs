//! What the default appraisal policy makes of evidence of each kind, one fault at a time.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc};

use policies::appraisal::{Appraisal, AppraisalPolicy, DEFAULT, Status};
use serde_json::{Value, json};

fn references() -> BTreeMap<String, Value> {
    let Value::Object(map) = json!({
        "launch_digest": ["abcde"],
        "snp_launch_measurement": ["aa", "ab"], "snp_bootloader": [4], "snp_microcode": [72],
        "snp_snp_svn": [8], "snp_tee_svn": [0], "snp_smt_enabled": true,
        "rtmr_1": ["01"], "rtmr_2": ["02"], "mr_td": ["dd"], "xfam": ["e7"],
        "tdvfkernel": "0c", "tdvfkernelparams": "0d",
    }) else {
        unreachable!()
    };
    map.into_iter().collect()
}

fn snp() -> Value {
    json!({
        "measurement": "ab", "reported_tcb_bootloader": 4, "reported_tcb_microcode": 72,
        "reported_tcb_snp": 8, "reported_tcb_tee": 0, "policy_debug_allowed": false,
        "policy_migrate_ma": false, "platform_smt_enabled": true, "platform_tsme_enabled": false,
        "policy_abi_major": 0, "policy_abi_minor": 0, "policy_single_socket": false,
        "policy_smt_allowed": true,
    })
}

fn tdx() -> Value {
    json!({
        "quote": {
            "header": {"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"},
            "body": {"rtmr_1": "01", "rtmr_2": "02", "mr_td": "dd", "xfam": "e7"},
        },
        "tcb_status": "UpToDate", "collateral_expiration_status": "0",
        "td_attributes": {"debug": false},
        "uefi_event_logs": [
            {"type_name": "EV_EFI_BOOT_SERVICES_APPLICATION", "digest_matches_event": true,
             "details": {"device_paths": ["File(kernel)"]}, "digests": [{"alg": "SHA-384", "digest": "0c"}]},
            {"type_name": "EV_EVENT_TAG", "digest_matches_event": true,
             "details": {"string": "LOADED_IMAGE::LoadOptions"}, "digests": [{"alg": "SHA-384", "digest": "0d"}]},
        ],
    })
}

fn appraise(input: &Value, references: BTreeMap<String, Value>) -> Appraisal {
    let policy = AppraisalPolicy::from_rego(DEFAULT).unwrap();
    policy.appraise(input, &Arc::new(references)).unwrap()
}

fn status(kind: &str, evidence: &Value) -> Appraisal {
    appraise(&json!({kind: evidence}), references())
}

#[test]
fn what_is_registered_is_affirmed_on_hardware_without_reasons() {
    for (kind, evidence) in [("snp", snp()), ("tdx", tdx())] {
        let result = status(kind, &evidence);
        assert_eq!(result.status, Status::Affirming, "{kind}: {result:?}");
        assert!(result.reasons.is_empty());
        assert_eq!(result.vector["executables"], 3);
    }
}

#[test]
fn simulated_kinds_are_judged_alike_and_never_affirmed() {
    let sample = json!({"svn": "1", "launch_digest": "abcde", "debug": false});
    for (kind, evidence) in [("sim-snp", snp()), ("sim-tdx", tdx()), ("sample", sample)] {
        let result = status(kind, &evidence);
        assert_eq!(result.status, Status::Contraindicated, "{kind}");
        assert_eq!(
            (result.vector["hardware"], result.vector["executables"]),
            (97, 3),
            "{kind}"
        );
        assert_eq!(result.reasons.len(), 1, "{kind}: {:?}", result.reasons);
        assert_eq!(result.reasons[0].claim, kind);
    }
}

#[test]
fn each_single_fault_is_refused_and_named_with_what_was_found() {
    let faults = [
        ("snp", "/measurement", json!("ff")),
        ("snp", "/reported_tcb_bootloader", json!(3)),
        ("snp", "/reported_tcb_microcode", json!(1)),
        ("snp", "/reported_tcb_snp", json!(1)),
        ("snp", "/reported_tcb_tee", json!(1)),
        ("snp", "/policy_debug_allowed", json!(true)),
        ("snp", "/policy_migrate_ma", json!(true)),
        ("snp", "/platform_smt_enabled", json!(false)),
        ("tdx", "/quote/body/rtmr_1", json!("ff")),
        ("tdx", "/quote/body/rtmr_2", json!("ff")),
        ("tdx", "/quote/body/mr_td", json!("ff")),
        ("tdx", "/quote/body/xfam", json!("ff")),
        ("tdx", "/quote/header/tee_type", json!("00000000")),
        ("tdx", "/quote/header/vendor_id", json!("ff")),
        ("tdx", "/tcb_status", json!("OutOfDate")),
        ("tdx", "/collateral_expiration_status", json!("1")),
        ("tdx", "/td_attributes/debug", json!(true)),
        ("snp", "/measurement", Value::Null),
        ("tdx", "/td_attributes/debug", Value::Null),
    ];
    for (kind, path, wrong) in faults {
        let mut evidence = if kind == "snp" { snp() } else { tdx() };
        *evidence.pointer_mut(path).unwrap() = wrong.clone();
        let result = status(kind, &evidence);
        assert!(result.status > Status::Affirming, "{path}");
        assert_eq!(result.reasons.len(), 1, "{path}: {:?}", result.reasons);
        let reason = &result.reasons[0];
        assert_eq!(reason.claim, format!("{kind}{}", path.replace('/', ".")));
        let found = match &wrong {
            Value::String(text) => text.clone(),
            Value::Null => "absent".to_owned(),
            other => other.to_string(),
        };
        assert_eq!(reason.found, found);
        assert!(!reason.expected.is_empty() && !reason.fix.is_empty());
    }
}

#[test]
fn an_event_is_believed_only_where_its_digest_is_over_its_text() {
    for index in 0..2 {
        let mut evidence = tdx();
        evidence["uefi_event_logs"][index]["digest_matches_event"] = json!(false);
        let result = status("tdx", &evidence);
        assert_eq!(result.vector["executables"], 33);
        assert_eq!(result.reasons[0].claim, "tdx.uefi_event_logs");
    }
}

#[test]
fn a_missing_reference_value_is_named_and_optional_ones_only_weaken() {
    let mut fewer = references();
    fewer.remove("snp_launch_measurement");
    let result = appraise(&json!({"snp": snp()}), fewer);
    assert_eq!(
        result.reasons[0].expected,
        "a registered `snp_launch_measurement`"
    );
    let mut fewer = references();
    fewer.remove("tdvfkernel");
    let result = appraise(&json!({"tdx": tdx()}), fewer);
    assert_eq!(
        (result.status, result.vector["executables"]),
        (Status::Affirming, 4)
    );
    assert_eq!(
        appraise(&json!({"snp": snp()}), BTreeMap::new()).status,
        Status::Contraindicated
    );
}

#[test]
fn evidence_of_no_kind_or_of_two_is_refused_with_a_reason() {
    for input in [
        json!({}),
        json!({"sgx": {}}),
        json!({"snp": snp(), "tdx": tdx()}),
    ] {
        let result = appraise(&input, references());
        assert_eq!(result.status, Status::Contraindicated);
        assert_eq!(result.reasons[0].claim, "tee", "{:?}", result.reasons);
    }
}

#[test]
fn one_policy_appraises_many_guests_and_mixes_nothing() {
    let policy = AppraisalPolicy::from_rego(DEFAULT).unwrap();
    let (all, none) = (Arc::new(references()), Arc::default());
    for _ in 0..3 {
        let good = policy.appraise(&json!({"snp": snp()}), &all).unwrap();
        assert_eq!(good.status, Status::Affirming);
        let bad = policy.appraise(&json!({"snp": snp()}), &none).unwrap();
        assert_eq!(bad.status, Status::Contraindicated);
        let empty = policy.appraise(&json!({}), &all).unwrap();
        assert_eq!(empty.status, Status::Contraindicated);
    }
}

#[test]
fn extensions_go_along_and_a_policy_without_reasons_is_explained_by_its_vector() {
    let policy = AppraisalPolicy::from_rego(
        r#"package policy
        trust_claims := {"hardware": 97, "executables": 3}
        extensions := [{"name": "ear.trustee.identifiers", "key": -18, "value": {"validated": {}}}]"#,
    )
    .unwrap();
    let result = policy.appraise(&json!({}), &Arc::default()).unwrap();
    assert_eq!(
        (result.extensions[0].key, result.extensions.len()),
        (-18, 1)
    );
    assert_eq!(result.reasons.len(), 1);
    assert_eq!(result.reasons[0].claim, "data.policy.trust_claims.hardware");
    let wrong = "package policy\ntrust_claims := {\"hardware\": 2}\nextensions := 1";
    let policy = AppraisalPolicy::from_rego(wrong).unwrap();
    assert!(policy.appraise(&json!({}), &Arc::default()).is_err());
}
