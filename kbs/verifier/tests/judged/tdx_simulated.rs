//! Simulated TDX evidence: valid evidence is accepted, and nothing answers for it but its own root.

use crate::tdx_development;

use evidence::{
    Tee,
    eventlog::EventKind,
    sim::tdx::{Ca, DevelopmentRoot, LogBuilder, Offer, Status, Validity},
    tdx::{Body15, Body15Ex, Quote, TdxEvidence},
};
use serde_json::json;
use tdx_development::{Case, NOW, ROOT, ROOTS, VALIDITY, parts};
use verifier::{
    Failure,
    tdx::{self, Collateral, Document, Roots, TdxFailure},
};

const BEHIND: Validity = Validity {
    from: 1_700_000_000,
    until: 1_750_000_000,
};
#[test]
fn a_sound_quote_is_accepted_with_its_claims() {
    let case = Case::new();
    let claims = case.verify().unwrap();
    assert_eq!(claims.kind, Tee::SimTdx);
    assert_eq!(claims.init_data, Some(hex::encode(case.body.mr_config_id)));
    for (pointer, value) in [
        ("/tcb_status", json!("UpToDate")),
        ("/advisory_ids", json!([])),
        ("/tcb_date", json!("2024-03-13T00:00:00Z")),
        ("/collateral_expiration_status", json!("0")),
        ("/td_attributes/debug", json!(false)),
        ("/td_attributes/septve_disable", json!(true)),
        ("/quote/header/tee_type", json!("81000000")),
        ("/quote/header/version", json!("0400")),
        ("/quote/body/mr_td", json!("03".repeat(48))),
        ("/quote/body/xfam", json!("e702060000000000")),
        ("/rtmr_3_replayed", json!(true)),
        ("/fmspc", json!("d0c06f000000")),
        ("/pck_ca", json!("platform")),
        ("/sgx_type", json!("Scalable")),
        ("/is_dynamic_platform", json!(true)),
        ("/is_smt_enabled", json!(false)),
        ("/platform_instance_id", json!("bb".repeat(16))),
        ("/platform_provider_id", json!("aa".repeat(16))),
        ("/earliest_expiration_date", json!("2033-05-18T03:33:20Z")),
        ("/uefi_event_logs/1/digest_matches_event", json!(false)),
        ("/uefi_event_logs/1/details/string", json!("kernel")),
        ("/uefi_event_logs/2/details/string", json!("quiet")),
        ("/uefi_event_logs/3/type_name", json!("EV_NO_ACTION")),
        ("/uefi_event_logs/3/details", json!({})),
        ("/uefi_event_logs/4/digest_matches_event", json!(true)),
        ("/uefi_event_logs/4/details/data/operation", json!("pull")),
        (
            "/uefi_event_logs/4/details/data/content/image",
            json!("busybox"),
        ),
    ] {
        assert_eq!(claims.evidence.pointer(pointer), Some(&value), "{pointer}");
    }
}

#[test]
fn versions_and_platforms_of_all_kinds_are_accepted() {
    let mut case = Case::new();
    case.header.version = 5;
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims["quote"]["type"], "0200");
    assert_eq!(claims["quote"]["size"], "48020000");

    let mut tee_tcb_svn2 = case.body.tcb_svn;
    tee_tcb_svn2[0] = 4;
    case.body.tdx15 = Some(Body15 {
        tee_tcb_svn2,
        mr_servicetd: [0; 48],
        ex: None,
    });
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims["quote"]["type"], "0300");
    assert_eq!(claims["quote"]["body"]["mr_servicetd"], "00".repeat(48));
    assert_eq!(claims["tcb_status"], "UpToDate");
    assert_eq!(claims["tcb_status_current"], "OutOfDate");

    case.body.tdx15.as_mut().unwrap().ex = Some(Box::new(Body15Ex {
        vmid: 1,
        td_id: [2; 32],
        dev_info: [0; 48],
        init_service_td_hash: [0; 48],
        init_service_td_attributes: [0; 8],
        init_cpu_svn: [0; 16],
        init_tee_tcb_svn: [0; 16],
        init_tee_fmspc: [0; 12],
        cur_service_td_hash: [0; 48],
        cur_service_td_attributes: [0; 8],
    }));
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims["quote"]["type"], "0400");
    assert_eq!(claims["quote"]["body"]["vmid"], 1);

    let mut case = Case::new();
    case.platform.ca = Ca::Processor;
    case.platform.instance = None;
    case.platform.sgx_type = 0;
    case.offer.ca = Ca::Processor;
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims["pck_ca"], "processor");
    assert_eq!(claims["sgx_type"], "Standard");
    assert_eq!(claims.get("is_smt_enabled"), None);
}

#[test]
fn what_a_policy_has_to_judge_is_a_claim() {
    let mut case = Case::new();
    case.body.td_attributes.0 |= 1;
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims["td_attributes"]["debug"], true);

    let mut case = Case::new();
    case.platform.cpu_svn[3] = 4;
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims["tcb_status"], "OutOfDate");
    assert_eq!(claims["advisory_ids"], json!(["INTEL-SA-00837"]));

    let mut case = Case::new();
    case.enclave.isv_svn = 7;
    assert_eq!(case.verify().unwrap().evidence["tcb_status"], "OutOfDate");

    for status in [Status::ConfigurationNeeded, Status::SWHardeningNeeded] {
        let mut case = Case::new();
        case.offer.levels[0].status = status;
        let claims = case.verify().unwrap().evidence;
        assert_eq!(claims["tcb_status"], json!(status));
    }
}

#[test]
fn the_log_is_asked_for_each_register_that_it_knows() {
    let mut case = Case::new();
    case.log = None;
    let claims = case.verify().unwrap().evidence;
    assert_eq!(claims.get("uefi_event_logs"), None);
    assert_eq!(claims["rtmr_3_replayed"], false);

    // RTMR3 was extended without a log of it.
    let firmware_only = LogBuilder::new().event(1, EventKind::Separator, &[0; 4]);
    let mut case = Case::new();
    case.body.rtmr = firmware_only.registers();
    case.log = Some(firmware_only);
    assert_eq!(case.verify().unwrap().evidence["rtmr_3_replayed"], true);
    case.body.rtmr[3] = [6; 48];
    assert_eq!(case.verify().unwrap().evidence["rtmr_3_replayed"], false);
}

#[test]
fn an_expired_document_is_named_with_its_date() {
    let mut case = Case::new();
    case.offer.qe_identity = BEHIND;
    let failure = case.verify().unwrap_err();
    assert_eq!(
        failure.to_string(),
        "the QE identity was valid until 2025-06-15T15:06:40Z, and it is 2026-09-21T14:13:20Z"
    );
    let collateral = case.collateral().unwrap();
    assert_eq!(collateral.valid_until(), BEHIND.until);
    case.now = u64::try_from(BEHIND.until).unwrap();
    assert!(case.verify().is_err());
    case.now -= 1;
    assert!(case.verify().is_ok());
}

fn judged(case: &Case, quote: &Quote) -> String {
    let collateral = case.collateral().unwrap();
    let evidence = TdxEvidence::new(&quote.to_bytes(), None).unwrap();
    format!("{:?}", case.judge(&evidence, &collateral).unwrap_err())
}

#[test]
fn each_key_of_the_chain_is_asked_for() {
    let case = Case::new();
    let good = case
        .quoting()
        .quote(case.header, case.body.clone())
        .unwrap();
    let other = case
        .quoting()
        .quote(case.header, case.body.clone())
        .unwrap();
    let changed = |change: &dyn Fn(&mut Quote)| {
        let mut quote = good.clone();
        change(&mut quote);
        judged(&case, &quote)
    };
    for (change, expected) in [
        (
            (&|quote: &mut Quote| quote.body.mr_td[0] ^= 1) as &dyn Fn(&mut Quote),
            "Tdx(Signature)",
        ),
        (&|quote| quote.signature[5] ^= 1, "Tdx(Signature)"),
        (
            &|quote| quote.attestation_key = other.attestation_key,
            "Tdx(QeBinding)",
        ),
        (&|quote| quote.auth_data[0] ^= 1, "Tdx(QeBinding)"),
        (&|quote| quote.qe_report.isv_svn += 1, "Tdx(QeSignature)"),
        (
            &|quote| quote.qe_report_signature = other.qe_report_signature,
            "Tdx(QeSignature)",
        ),
        (
            &|quote| quote.certificates = other.certificates.clone(),
            "Tdx(QeSignature)",
        ),
        (
            &|quote| quote.certificates.truncate(400),
            "Form { document: Pck",
        ),
    ] {
        let shown = changed(change);
        assert!(shown.contains(expected), "{shown}");
    }
}

#[test]
fn a_foreign_platform_is_refused() {
    let case = Case::new();
    let foreign = DevelopmentRoot::generate(VALIDITY).unwrap();
    let quoting = foreign
        .platform(&case.platform)
        .and_then(|key| key.enclave(&case.enclave))
        .unwrap();
    let quote = quoting.quote(case.header, case.body.clone()).unwrap();
    assert!(judged(&case, &quote).contains("ForeignRoot { document: Pck }"));

    let failure =
        Collateral::prepare(&ROOTS, parts(&foreign, &Offer::simulated(VALIDITY))).unwrap_err();
    assert!(matches!(
        failure,
        TdxFailure::Chain {
            document: Document::RootCrl,
            ..
        }
    ));
    let mut mixed = parts(&ROOT, &Offer::simulated(VALIDITY));
    mixed.tcb_info_issuer_chain =
        parts(&foreign, &Offer::simulated(VALIDITY)).tcb_info_issuer_chain;
    let failure = Collateral::prepare(&ROOTS, mixed).unwrap_err();
    assert!(matches!(
        failure,
        TdxFailure::ForeignRoot {
            document: Document::TcbSigner
        }
    ));
}

#[test]
fn intel_does_not_answer_for_the_simulator() {
    let intel = Roots::intel().unwrap();
    assert_eq!((intel.kind(), ROOTS.kind()), (Tee::Tdx, Tee::SimTdx));
    let case = Case::new();
    let (evidence, collateral) = (case.evidence(), case.collateral().unwrap());
    let verdict = tdx::verify(&evidence, &intel, &collateral, &case.bindings, NOW);
    assert_eq!(verdict, Err(Failure::Tdx(TdxFailure::OtherRoots)));
    let verdict = Collateral::prepare(&intel, parts(&ROOT, &case.offer));
    assert!(verdict.is_err());
}

#[test]
fn a_development_root_is_one_certificate_and_not_intels() {
    let pem = ROOT.certificates_pem().unwrap();
    assert!(Roots::development("").is_err());
    assert!(Roots::development(&format!("{pem}{pem}")).is_err());
    assert!(Roots::development(&ROOT.to_pem().unwrap()).is_err());
    let intel = include_str!("../../roots/intel-sgx.pem");
    let failure = Roots::development(intel).unwrap_err().to_string();
    assert!(failure.contains("it is Intel's"), "{failure}");
}

#[test]
fn a_quote_says_what_collateral_it_needs() {
    let case = Case::new();
    let needs = tdx::needs(&case.evidence()).unwrap();
    let platform = (case.platform.fmspc, "platform");
    assert_eq!((needs.fmspc, needs.ca.name()), platform);
    assert_eq!(case.collateral().unwrap().needs(), needs);
}

#[test]
fn a_kept_root_signs_as_before() {
    let kept = DevelopmentRoot::from_pem(&ROOT.to_pem().unwrap()).unwrap();
    assert_eq!(
        kept.certificates_pem().unwrap(),
        ROOT.certificates_pem().unwrap()
    );
    let case = Case::new();
    let evidence = kept
        .platform(&case.platform)
        .and_then(|key| key.enclave(&case.enclave))
        .and_then(|enclave| enclave.evidence(case.header, case.body.clone(), None))
        .unwrap();
    let collateral = case.collateral().unwrap();
    assert!(case.judge(&evidence, &collateral).is_ok());
    assert!(DevelopmentRoot::from_pem("").is_err());
}

#[test]
fn evidence_of_another_form_is_refused_by_name() {
    let mut sent = serde_json::to_value(Case::new().evidence()).unwrap();
    sent["other"] = json!(1);
    let failure = tdx::parse(&ROOTS, &sent).unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("`sim-tdx` is malformed: unknown field `other`")
    );
    let old = json!({ "quote": "AwACAAAAAAA=", "cc_eventlog": null });
    let failure = tdx::parse(&ROOTS, &old).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "TDX quote version 3 is not known: 4 and 5 are"
    );
}

/// See the same of SEV-SNP: neither the quote nor its collateral is Intel's.
#[test]
fn none_of_5000_development_proofs_passes_a_broker_for_hardware() {
    let intel = Roots::intel().unwrap();
    let mut case = Case::new();
    let own = case.collateral().unwrap();
    let parts = parts(&ROOT, &case.offer);
    assert!(Collateral::prepare(&intel, parts).is_err());
    let quoting = case.quoting();
    let log = case.log.as_ref().map(LogBuilder::finish);
    let mut passed = 0;
    for number in 0..5000_usize {
        case.body.mr_td[number % 48] ^= 1 << (number % 8);
        case.body.td_attributes.0 ^= u64::from(number % 5 == 0);
        let log = log.clone().filter(|_| number % 2 == 0);
        let evidence = quoting
            .evidence(case.header, case.body.clone(), log)
            .unwrap();
        let sent = serde_json::to_value(&evidence).unwrap();
        let read = tdx::parse(&intel, &sent).unwrap();
        let verdict = tdx::verify(&read, &intel, &own, &case.bindings, case.now);
        passed += usize::from(verdict.is_ok());
    }
    assert_eq!(passed, 0);
    let sent = serde_json::to_value(case.evidence()).unwrap();
    let read = tdx::parse(&ROOTS, &sent).unwrap();
    assert!(case.judge(&read, &own).is_ok());
}
