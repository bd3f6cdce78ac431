//! TDX's collateral: four documents that are fetched one by one and verified together.

use std::{fmt::Write, time::SystemTime};

use evidence::sim::tdx::{Ca, Offer, Platform};
use kbs::collateral::{Collateral, CollateralError, Development};
use verifier::tdx::{self, Needs, Parts};

use crate::{
    lab::{Lab, around, later, now},
    tdx_development::{Case, ROOT, ROOTS, VALIDITY, parts},
};

pub(crate) const NEEDS: Needs = Needs {
    fmspc: Platform::simulated(VALIDITY).fmspc,
    ca: tdx::Ca::Platform,
};
const TCB_INFO: &str = "/tdx/certification/v4/tcb?fmspc=D0C06F000000";
const QE_IDENTITY: &str = "/tdx/certification/v4/qe/identity";
const PLATFORMS: &str = "/sgx/certification/v4/pckcrl?ca=platform&encoding=der";
const PROCESSORS: &str = "/sgx/certification/v4/pckcrl?ca=processor&encoding=der";
const ROOT_CRL: &str = "/root.crl";
const ALL: [&str; 4] = [TCB_INFO, QE_IDENTITY, PLATFORMS, ROOT_CRL];

/// What holds from ten days before now and `shift`, for thirty days from now.
pub(crate) fn dated(shift: i64) -> Offer {
    Offer::simulated(around(shift, 30))
}

/// The service has these parts.
pub(crate) fn serve(lab: &Lab, parts: &Parts) {
    serve_statement(lab, TCB_INFO, parts);
    serve_statement(lab, QE_IDENTITY, parts);
    let chain = escape(&parts.pck_crl_issuer_chain);
    let header = [("sgx-pck-crl-issuer-chain", chain.as_str())];
    lab.service
        .say(PLATFORMS, 200, &header, parts.pck_crl.clone());
    lab.service.give(ROOT_CRL, parts.root_ca_crl.clone());
}

fn serve_statement(lab: &Lab, path: &str, parts: &Parts) {
    let (member, header, chain, text, signature) = if path == TCB_INFO {
        (
            "tcbInfo",
            "TCB-Info-Issuer-Chain",
            &parts.tcb_info_issuer_chain,
            &parts.tcb_info,
            &parts.tcb_info_signature,
        )
    } else {
        (
            "enclaveIdentity",
            "SGX-Enclave-Identity-Issuer-Chain",
            &parts.qe_identity_issuer_chain,
            &parts.qe_identity,
            &parts.qe_identity_signature,
        )
    };
    let signature = hex::encode(signature);
    let body = format!(r#"{{"{member}":{text},"signature":"{signature}"}}"#);
    let chain = escape(chain);
    lab.service.say(path, 200, &[(header, &chain)], body);
}

fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        write!(escaped, "%{byte:02X}").unwrap();
        escaped
    })
}

async fn ask(lab: &Lab) -> Result<(), CollateralError> {
    let collateral = Collateral::open(&lab.config()).unwrap();
    let answer = collateral.tdx(&ROOTS, &NEEDS, SystemTime::now()).await;
    answer.map(drop)
}

#[tokio::test]
async fn a_platforms_collateral_is_fetched_once_and_quotes_verify_by_it() {
    let lab = Lab::new().await;
    serve(&lab, &parts(&ROOT, &dated(0)));
    let collateral = Collateral::open(&lab.config()).unwrap();
    let case = Case::new();
    let evidence = case.evidence();
    let needs = tdx::needs(&evidence).unwrap();
    assert_eq!(needs, NEEDS);
    for _ in 0..3 {
        let now = SystemTime::now();
        let set = collateral.tdx(&ROOTS, &needs, now).await.unwrap();
        let now = u64::try_from(crate::lab::now()).unwrap();
        let claims = tdx::verify(&evidence, &ROOTS, &set, &case.bindings, now).unwrap();
        assert_eq!(claims.evidence["tcb_status"], "UpToDate");
    }
    let mut asked = lab.service.asked();
    asked.sort();
    let mut all = ALL.to_vec();
    all.sort_unstable();
    assert_eq!(asked, all);

    // The other authority's platforms have three documents in common with these.
    let processors = parts(
        &ROOT,
        &Offer {
            ca: Ca::Processor,
            ..dated(0)
        },
    );
    let chain = escape(&processors.pck_crl_issuer_chain);
    let header = [("SGX-PCK-CRL-Issuer-Chain", chain.as_str())];
    // A PCCS gives the hex of it.
    let list = hex::encode(&processors.pck_crl);
    lab.service.say(PROCESSORS, 200, &header, list);
    let needs = Needs {
        ca: tdx::Ca::Processor,
        ..NEEDS
    };
    let set = collateral.tdx(&ROOTS, &needs, SystemTime::now()).await;
    assert_eq!(set.unwrap().needs(), needs);
    assert_eq!(lab.service.asked().len(), 5);
    assert_eq!(lab.files().len(), 5);
    // And after a restart.
    ask(&lab).await.unwrap();
    assert_eq!(lab.service.asked().len(), 5);
}

#[tokio::test]
async fn what_does_not_verify_is_refused_and_nothing_of_it_is_kept() {
    let good = parts(&ROOT, &dated(0));
    let other = |change: fn(&mut Offer)| {
        let mut offer = dated(0);
        change(&mut offer);
        parts(&ROOT, &offer)
    };
    let faults: [(&str, Parts, &str); 8] = [
        ("FMSPC", other(|o| o.fmspc[5] = 1), "is about TDX"),
        (
            "authority",
            other(|o| o.ca = Ca::Processor),
            "other platforms",
        ),
        (
            "ended TCB info",
            other(|o| o.tcb_info.until = now() - 1),
            "and it is",
        ),
        (
            "ended identity",
            other(|o| o.qe_identity.until = now() - 1),
            "and it is",
        ),
        (
            "ended list",
            other(|o| o.pck_crl.until = now() - 1),
            "and it is",
        ),
        (
            "early list",
            other(|o| o.root_ca_crl.from = now() + 999),
            "and it is",
        ),
        (
            "forged TCB info",
            Parts {
                tcb_info: good.tcb_info.replace("UpToDate", "UpToDatf"),
                ..good.clone()
            },
            "TCB info",
        ),
        (
            "another's signature",
            Parts {
                qe_identity_signature: good.tcb_info_signature.clone(),
                ..good.clone()
            },
            "QE identity",
        ),
    ];
    for (name, parts, word) in faults {
        let lab = Lab::new().await;
        serve(&lab, &parts);
        refused(&lab, name, word).await;
    }
    for path in ALL {
        let lab = Lab::new().await;
        serve(&lab, &good);
        lab.service
            .say(path, 200, &[("tcb-info-issuer-chain", "a")], "<html>");
        refused(&lab, path, "").await;
    }
}

async fn refused(lab: &Lab, name: &str, word: &str) {
    let error = ask(lab).await.unwrap_err();
    let CollateralError::Refused { cause, .. } = &error else {
        panic!("{name}: {error}");
    };
    assert!(cause.contains(word), "{name}: {cause}");
    assert!(lab.files().is_empty(), "{name}");
}

#[tokio::test]
async fn newer_collateral_is_taken_before_the_old_one_ends_and_older_never() {
    let lab = Lab::new().await;
    serve(&lab, &parts(&ROOT, &dated(0)));
    let collateral = Collateral::open(&lab.config()).unwrap();
    let ask = async |at| collateral.tdx(&ROOTS, &NEEDS, at).await.unwrap();
    let first = ask(SystemTime::now()).await;
    let mut newer = dated(2);
    newer.tcb_info.until += 86_400;
    newer.qe_identity.until += 86_400;
    newer.pck_crl.until += 86_400;
    newer.root_ca_crl.until += 86_400;
    serve(&lab, &parts(&ROOT, &newer));
    collateral.look_after(later(2)).await;
    let second = ask(later(2)).await;
    assert_eq!(second.valid_until(), first.valid_until() + 86_400);
    serve(&lab, &parts(&ROOT, &dated(1)));
    collateral.look_after(later(4)).await;
    assert_eq!(ask(later(4)).await.valid_until(), second.valid_until());
    assert!(lab.service.times(TCB_INFO) >= 3);
}

#[tokio::test]
async fn what_came_before_a_service_limited_its_rate_is_not_asked_for_again() {
    let lab = Lab::new().await;
    let parts = parts(&ROOT, &dated(0));
    serve(&lab, &parts);
    lab.service.say(PLATFORMS, 429, &[("retry-after", "1")], "");
    let collateral = Collateral::open(&lab.config()).unwrap();
    let answer = collateral.tdx(&ROOTS, &NEEDS, SystemTime::now()).await;
    let until = answer.unwrap_err().retry_at().unwrap();
    serve(&lab, &parts);
    let wait = until.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(wait).await;
    let answer = collateral.tdx(&ROOTS, &NEEDS, SystemTime::now()).await;
    answer.unwrap();
    for path in [TCB_INFO, QE_IDENTITY, ROOT_CRL] {
        assert_eq!(lab.service.times(path), 1, "{path}");
    }
}

#[tokio::test]
async fn what_a_development_root_signed_is_handed_over_and_nobody_is_asked() {
    let lab = Lab::new().await;
    let parts = serde_json::to_value(parts(&ROOT, &dated(0))).unwrap();
    let text = serde_json::json!({ "tdx": [parts] }).to_string();
    let development = Development::parse(text.as_bytes()).unwrap();
    let mut config = lab.config();
    config.simulated = None;
    let collateral = Collateral::open(&config).unwrap();
    let collateral = collateral.with_development(development);
    let ask = async |needs| collateral.tdx(&ROOTS, &needs, SystemTime::now()).await;
    assert_eq!(ask(NEEDS).await.unwrap().needs(), NEEDS);
    let unknown = Needs {
        fmspc: [0; 6],
        ..NEEDS
    };
    let error = ask(unknown).await.unwrap_err();
    assert!(matches!(error, CollateralError::Absent { .. }), "{error}");
    assert!(lab.service.asked().is_empty());
}
