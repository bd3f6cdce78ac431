//! Simulated TDX evidence: valid evidence is accepted, and each single fault is refused by its own
//! name.

#![allow(clippy::unwrap_used)]

mod tdx_development;

use evidence::{
    Tee,
    eventlog::EventKind,
    init_data::Algorithm,
    sim::tdx::{Ca, DevelopmentRoot, Status, Validity},
    tdx::{Body15, Body15Ex, Quote, TdxEvidence},
};
use serde_json::json;
use tdx_development::{Case, FMSPC, NOW, ROOT, ROOTS, VALIDITY, offer, parts};
use verifier::{
    Failure,
    tdx::{self, Collateral, Document, Roots, TdxFailure},
};

const BEHIND: Validity = Validity {
    from: 1_700_000_000,
    until: 1_750_000_000,
};
const AHEAD: Validity = Validity {
    from: 1_850_000_000,
    until: 1_900_000_000,
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
    let firmware_only =
        evidence::sim::tdx::LogBuilder::new().event(1, EventKind::Separator, &[0; 4]);
    let mut case = Case::new();
    case.body.rtmr = firmware_only.registers();
    case.log = Some(firmware_only);
    assert_eq!(case.verify().unwrap().evidence["rtmr_3_replayed"], true);
    case.body.rtmr[3] = [6; 48];
    assert_eq!(case.verify().unwrap().evidence["rtmr_3_replayed"], false);
}

type Fault = (&'static str, fn(&mut Case), &'static str);

const FAULTS: &[Fault] = &[
    ("nonce", |c| c.bindings.report_data[0] ^= 1, "ReportData"),
    ("report data", |c| c.body.report_data[0] ^= 1, "ReportData"),
    ("padding", |c| c.body.report_data[63] = 1, "ReportData"),
    (
        "init-data",
        |c| c.bindings.init_data = Some(Algorithm::Sha384.digest(b"other")),
        "InitData",
    ),
    ("config id", |c| c.body.mr_config_id[47] ^= 1, "InitData"),
    (
        "no config id",
        |c| c.body.mr_config_id = [0; 48],
        "InitData",
    ),
    ("vendor", |c| c.header.vendor_id[0] ^= 1, "Vendor"),
    (
        "migratable",
        |c| c.body.td_attributes.0 |= 1 << 29,
        "can be migrated",
    ),
    ("profiled", |c| c.body.td_attributes.0 |= 1 << 4, "profiles"),
    ("pages", |c| c.body.td_attributes.0 = 0, "SEPT_VE_DISABLE"),
    (
        "reserved",
        |c| c.body.td_attributes.0 |= 1 << 40,
        "Reserved bits",
    ),
    ("service TD", |c| serve(c), "a service TD is bound"),
    ("rtmr_0", |c| c.body.rtmr[0][0] ^= 1, "rtmr_0"),
    ("rtmr_1", |c| c.body.rtmr[1][0] ^= 1, "rtmr_1"),
    ("rtmr_2", |c| c.body.rtmr[2] = [0; 48], "rtmr_2"),
    ("rtmr_3", |c| c.body.rtmr[3][47] ^= 1, "rtmr_3"),
    (
        "a lost event",
        |c| c.log = Some(evidence::sim::tdx::LogBuilder::new()),
        "rtmr_0",
    ),
    ("an event in MRTD", |c| extend(c, 0), "Index"),
    ("an event nowhere", |c| extend(c, 5), "Index"),
    (
        "processor",
        |c| c.platform.cpu_svn[0] = 2,
        "NoLevel { part: \"platform's processor\" }",
    ),
    (
        "provisioning enclave",
        |c| c.platform.pce_svn = 4,
        "NoLevel { part: \"platform's provisioning enclave\" }",
    ),
    (
        "revoked level",
        |c| c.platform.cpu_svn[0] = 3,
        "TcbRevoked { part: \"platform\" }",
    ),
    (
        "old module",
        |c| c.body.tcb_svn[0] = 2,
        "NoLevel { part: \"TDX module\" }",
    ),
    (
        "revoked module",
        |c| c.body.tcb_svn[0] = 3,
        "TcbRevoked { part: \"TDX module\" }",
    ),
    (
        "unknown module",
        |c| c.body.tcb_svn[1] = 7,
        "NoLevel { part: \"TDX module\" }",
    ),
    (
        "module's signer",
        |c| c.body.mrsigner_seam[0] = 1,
        "mrsigner_seam",
    ),
    (
        "module's attributes",
        |c| c.body.seam_attributes[0] = 1,
        "seam_attributes",
    ),
    (
        "enclave's signer",
        |c| c.enclave.mr_signer[0] ^= 1,
        "qe_mrsigner",
    ),
    (
        "enclave's product",
        |c| c.enclave.isv_prod_id = 1,
        "qe_isvprodid",
    ),
    (
        "enclave's debug",
        |c| c.enclave.attributes[0] |= 2,
        "qe_attributes",
    ),
    (
        "enclave's selection",
        |c| c.enclave.misc_select[0] = 1,
        "qe_miscselect",
    ),
    (
        "old enclave",
        |c| c.enclave.isv_svn = 3,
        "NoLevel { part: \"quoting enclave\" }",
    ),
    (
        "revoked enclave",
        |c| c.enclave.isv_svn = 5,
        "TcbRevoked { part: \"quoting enclave\" }",
    ),
    ("FMSPC", |c| c.platform.fmspc[0] ^= 1, "Fmspc"),
    ("collateral's FMSPC", |c| c.offer.fmspc[5] = 1, "Fmspc"),
    ("issuer", |c| c.platform.ca = Ca::Processor, "OtherCa"),
    ("clock behind", |c| c.now = 1_600_000_000, "NotYetValid"),
    ("clock ahead", |c| c.now = 2_100_000_000, "Expired"),
    (
        "TCB info",
        |c| c.offer.tcb_info = BEHIND,
        "Expired { document: TcbInfo",
    ),
    (
        "next TCB info",
        |c| c.offer.tcb_info = AHEAD,
        "NotYetValid { document: TcbInfo",
    ),
    (
        "QE identity",
        |c| c.offer.qe_identity = BEHIND,
        "Expired { document: QeIdentity",
    ),
    (
        "next QE identity",
        |c| c.offer.qe_identity = AHEAD,
        "NotYetValid { document: QeIdentity",
    ),
    (
        "PCK CRL",
        |c| c.offer.pck_crl = BEHIND,
        "Expired { document: PckCrl",
    ),
    (
        "next PCK CRL",
        |c| c.offer.pck_crl = AHEAD,
        "NotYetValid { document: PckCrl",
    ),
    (
        "root CRL",
        |c| c.offer.root_ca_crl = BEHIND,
        "Expired { document: RootCrl",
    ),
    (
        "platform's certificate",
        |c| c.platform.validity = BEHIND,
        "Expired { document: Pck,",
    ),
    (
        "platform's next certificate",
        |c| c.platform.validity = AHEAD,
        "NotYetValid { document: Pck,",
    ),
    (
        "revoked platform",
        |c| c.platform.serial = 99,
        "Revoked { document: Pck,",
    ),
    (
        "revoked CA",
        |c| c.offer.revoked_authorities.push(2),
        "Revoked { document: PckCa,",
    ),
    (
        "revoked signer",
        |c| c.offer.revoked_authorities.push(4),
        "Revoked { document: TcbSigner,",
    ),
    (
        "revoked root",
        |c| c.offer.revoked_authorities.push(1),
        "Revoked { document: Root,",
    ),
    (
        "changed TCB info",
        |c| c.tamper = |parts| parts.tcb_info = parts.tcb_info.replace("Revoked", "UpToDate"),
        "Chain { document: TcbInfo, issuer: TcbSigner }",
    ),
    (
        "changed QE identity",
        |c| c.tamper = |parts| parts.qe_identity.push(' '),
        "Chain { document: QeIdentity, issuer: QeSigner }",
    ),
    (
        "swapped signatures",
        |c| {
            c.tamper = |parts| parts.tcb_info_signature = parts.qe_identity_signature.clone();
        },
        "Chain { document: TcbInfo, issuer: TcbSigner }",
    ),
    (
        "changed list",
        |c| c.tamper = |parts| *parts.pck_crl.last_mut().unwrap() ^= 1,
        "Chain { document: PckCrl, issuer: PckCa }",
    ),
    (
        "swapped lists",
        |c| c.tamper = |parts| parts.root_ca_crl = parts.pck_crl.clone(),
        "Chain { document: RootCrl, issuer: Root }",
    ),
    (
        "no list",
        |c| c.tamper = |parts| parts.pck_crl.clear(),
        "Form { document: PckCrl",
    ),
    (
        "half a chain",
        |c| {
            c.tamper = |parts| {
                parts.tcb_info_issuer_chain.truncate(500);
            };
        },
        "Form { document: TcbSigner",
    ),
    (
        "another signer",
        |c| c.tamper = |parts| parts.tcb_info_issuer_chain = parts.pck_crl_issuer_chain.clone(),
        "Chain { document: TcbInfo, issuer: TcbSigner }",
    ),
];

fn serve(case: &mut Case) {
    case.header.version = 5;
    case.body.tdx15 = Some(Body15 {
        tee_tcb_svn2: case.body.tcb_svn,
        mr_servicetd: [1; 48],
        ex: None,
    });
}

fn extend(case: &mut Case, index: u32) {
    let log = case.log.take().unwrap();
    case.log = Some(log.event(
        index,
        EventKind::Action,
        b"text that no register answers for",
    ));
}

#[test]
fn each_single_fault_has_its_own_name() {
    for (name, fault, expected) in FAULTS {
        let mut case = Case::new();
        fault(&mut case);
        let failure = case.verify().unwrap_err();
        let shown = format!("{failure:?}");
        assert!(shown.contains(expected), "{name}: {shown}");
        let explanation = failure.explain();
        assert!(
            !explanation.fix.is_empty() && explanation.expected != explanation.found,
            "{name}"
        );
    }
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

    let failure = Collateral::prepare(&ROOTS, parts(&foreign, &offer())).unwrap_err();
    assert!(matches!(
        failure,
        TdxFailure::Chain {
            document: Document::RootCrl,
            ..
        }
    ));
    let mut mixed = parts(&ROOT, &offer());
    mixed.tcb_info_issuer_chain = parts(&foreign, &offer()).tcb_info_issuer_chain;
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
    let intel = include_str!("../roots/intel-sgx.pem");
    let failure = Roots::development(intel).unwrap_err().to_string();
    assert!(failure.contains("it is Intel's"), "{failure}");
}

#[test]
fn a_quote_says_what_collateral_it_needs() {
    let needs = tdx::needs(&Case::new().evidence()).unwrap();
    assert_eq!((needs.fmspc, needs.ca.name()), (FMSPC, "platform"));
    assert_eq!(Case::new().collateral().unwrap().needs(), needs);
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
