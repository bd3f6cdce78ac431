//! What the default appraisal policy makes of evidence of each kind, one fault at a time.

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
            "body": {"rtmr_0": "00", "rtmr_1": "01", "rtmr_2": "02", "mr_td": "dd", "xfam": "e7"},
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
        assert!(result.judgements.iter().all(|one| one.holds), "{kind}");
        assert!(result.judgements.len() > 10);
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

/// Each rule of the default policy for a kind: where its claim is, the reference value, the rule, and
/// a wrong claim.
fn rules(kind: &str) -> Vec<(&'static str, Option<&'static str>, &'static str, Value)> {
    let (executables, hardware, configuration) = ("executables", "hardware", "configuration");
    match kind {
        "snp" => vec![
            (
                "/measurement",
                Some("snp_launch_measurement"),
                executables,
                json!("ff"),
            ),
            (
                "/reported_tcb_bootloader",
                Some("snp_bootloader"),
                hardware,
                json!(3),
            ),
            (
                "/reported_tcb_microcode",
                Some("snp_microcode"),
                hardware,
                json!(1),
            ),
            ("/reported_tcb_snp", Some("snp_snp_svn"), hardware, json!(1)),
            ("/reported_tcb_tee", Some("snp_tee_svn"), hardware, json!(1)),
            ("/policy_debug_allowed", None, configuration, json!(true)),
            ("/policy_migrate_ma", None, configuration, json!(true)),
            (
                "/platform_smt_enabled",
                Some("snp_smt_enabled"),
                configuration,
                json!(false),
            ),
            (
                "/platform_tsme_enabled",
                Some("snp_tsme_enabled"),
                configuration,
                json!(true),
            ),
            (
                "/policy_abi_major",
                Some("snp_guest_abi_major"),
                configuration,
                json!(9),
            ),
            (
                "/policy_abi_minor",
                Some("snp_guest_abi_minor"),
                configuration,
                json!(9),
            ),
            (
                "/policy_single_socket",
                Some("snp_single_socket"),
                configuration,
                json!(true),
            ),
            (
                "/policy_smt_allowed",
                Some("snp_smt_allowed"),
                configuration,
                json!(false),
            ),
        ],
        _ => vec![
            (
                "/quote/body/rtmr_0",
                Some("rtmr_0"),
                executables,
                json!("ff"),
            ),
            (
                "/quote/body/rtmr_1",
                Some("rtmr_1"),
                executables,
                json!("ff"),
            ),
            (
                "/quote/body/rtmr_2",
                Some("rtmr_2"),
                executables,
                json!("ff"),
            ),
            ("/quote/header/tee_type", None, hardware, json!("00000000")),
            ("/quote/header/vendor_id", None, hardware, json!("ff")),
            ("/quote/body/mr_td", Some("mr_td"), hardware, json!("ff")),
            ("/tcb_status", None, hardware, json!("OutOfDate")),
            ("/collateral_expiration_status", None, hardware, json!("1")),
            ("/td_attributes/debug", None, configuration, json!(true)),
            ("/quote/body/xfam", Some("xfam"), configuration, json!("ff")),
        ],
    }
}

/// Reference values for every rule, also those that may be missing.
fn all_references() -> BTreeMap<String, Value> {
    let mut all = references();
    for (name, value) in [
        ("snp_tsme_enabled", json!(false)),
        ("snp_guest_abi_major", json!(0)),
        ("snp_guest_abi_minor", json!([0, 1])),
        ("snp_single_socket", json!(false)),
        ("snp_smt_allowed", json!(true)),
        ("rtmr_0", json!(["0f", "00"])),
    ] {
        all.insert(name.to_owned(), value);
    }
    all
}

fn evidence(kind: &str) -> Value {
    if kind == "snp" { snp() } else { tdx() }
}

#[test]
fn each_rule_broken_alone_is_the_only_reason_and_exact() {
    for kind in ["snp", "tdx"] {
        for (path, reference, part, wrong) in rules(kind) {
            for wrong in [Some(wrong), Some(Value::Null), None] {
                let mut broken = evidence(kind);
                let right = put(&mut broken, path, wrong.clone());
                let wrong = wrong.unwrap_or_default();
                let result = appraise(&json!({kind: broken}), all_references());
                assert!(result.status > Status::Affirming, "{path}");
                assert!(result.vector[part] > 31, "{path}: {:?}", result.vector);
                assert_eq!(result.reasons.len(), 1, "{path}: {:?}", result.reasons);
                let reason = &result.reasons[0];
                assert_eq!(reason.claim, format!("{kind}{}", path.replace('/', ".")));
                assert_eq!(reason.found, text(&wrong));
                assert!(reason.expected.contains(&text(&right)), "{reason:?}");
                match reference {
                    Some(name) => assert!(reason.fix.contains(&format!("`{name}`")), "{reason:?}"),
                    None => assert!(reason.fix.contains("fixes"), "{reason:?}"),
                }
                let failed: Vec<_> = result.judgements.iter().filter(|one| !one.holds).collect();
                assert_eq!(failed.len(), 1);
                assert_eq!(failed[0].claim, reason.claim);
                assert_eq!(failed[0].rule, format!("data.policy.trust_claims.{part}"));
                assert_eq!(result.judgements.len(), if kind == "snp" { 13 } else { 12 });
            }
        }
    }
}

/// Gives what was there; without a value, takes it out.
fn put(into: &mut Value, path: &str, value: Option<Value>) -> Value {
    if let Some(value) = value {
        return std::mem::replace(into.pointer_mut(path).unwrap(), value);
    }
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = into.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    parent.remove(name).unwrap()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "absent".to_owned(),
        other => other.to_string(),
    }
}

#[test]
fn a_missing_reference_value_is_no_differing_one() {
    for kind in ["snp", "tdx"] {
        for (path, reference, _, _) in rules(kind) {
            let Some(name) = reference else { continue };
            let mut fewer = all_references();
            fewer.remove(name);
            let result = appraise(&json!({kind: evidence(kind)}), fewer);
            if result.status == Status::Affirming {
                // One that may be missing.
                let judged = result
                    .judgements
                    .iter()
                    .find(|one| one.expected.contains(name));
                assert!(judged.unwrap().expected.contains("no `"), "{name}");
                // Without RTMR0 a TD is worth as much as it always was.
                let less = if kind == "snp" { 3 } else { 2 };
                assert_eq!(result.vector["configuration"], less, "{name}");
                continue;
            }
            assert_eq!(result.reasons.len(), 1, "{name}: {:?}", result.reasons);
            let reason = &result.reasons[0];
            assert_eq!(reason.claim, format!("{kind}{}", path.replace('/', ".")));
            assert_eq!(reason.expected, format!("a registered `{name}`"));
            assert_eq!(reason.found, text(evidence(kind).pointer(path).unwrap()));
            assert!(reason.fix.starts_with("register"), "{reason:?}");
        }
    }
}

#[test]
fn an_event_is_believed_only_where_its_digest_is_over_its_text() {
    for (index, name) in [(0, "kernel"), (1, "parameters")] {
        for wrong in [
            json!({"digest_matches_event": false}),
            json!({"digests": [{"digest": "ff"}]}),
        ] {
            let mut evidence = tdx();
            let event = evidence["uefi_event_logs"][index].as_object_mut().unwrap();
            event.extend(wrong.as_object().unwrap().clone());
            let result = status("tdx", &evidence);
            assert_eq!(result.vector["executables"], 33);
            assert_eq!(result.reasons.len(), 1);
            assert_eq!(
                result.reasons[0].claim,
                format!("tdx.uefi_event_logs.{name}")
            );
        }
    }
    let mut fewer = references();
    fewer.remove("tdvfkernel");
    let result = appraise(&json!({"tdx": tdx()}), fewer);
    assert_eq!(
        (result.status, result.vector["executables"]),
        (Status::Affirming, 4)
    );
}

#[test]
fn nothing_registered_affirms_nothing() {
    for (kind, evidence) in [("snp", snp()), ("tdx", tdx())] {
        let result = appraise(&json!({kind: evidence}), BTreeMap::new());
        assert_eq!(result.status, Status::Contraindicated);
        let empty = appraise(&json!({kind: {}}), BTreeMap::new());
        assert_eq!(empty.status, Status::Contraindicated, "{kind}");
        assert!(empty.judgements.len() > 10 && empty.vector.values().all(|value| *value > 31));
    }
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
    let held: Vec<_> = result
        .judgements
        .iter()
        .map(|one| (one.holds, one.found.as_str()))
        .collect();
    assert_eq!(held, [(true, "3"), (false, "97")]);
    let wrong = "package policy\ntrust_claims := {\"hardware\": 2}\nextensions := 1";
    let policy = AppraisalPolicy::from_rego(wrong).unwrap();
    assert!(policy.appraise(&json!({}), &Arc::default()).is_err());
}
