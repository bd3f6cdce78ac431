//! SEV-SNP's certificates and lists, from services that behave and from those that do not.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use evidence::snp::{Generation, KeyInfo, Product, SnpEvidence};
use kbs::collateral::{Collateral, CollateralError};
use verifier::{
    Failure,
    snp::{self, Rules, SnpFailure},
};

use crate::{
    development::{Case, ROOT, ROOTS},
    lab::{DAY, LENIENT, Lab, Machine, around, list, list_path, now},
    service::Service,
};

#[tokio::test]
async fn a_chips_certificate_and_its_list_are_fetched_once_and_verify() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    for generation in Generation::ALL {
        let machine = Machine::new(generation, 1 + generation as u8);
        lab.knows(&machine);
        for _ in 0..3 {
            let set = machine.asks(&collateral).await.unwrap();
            let claims = machine.verify(&set).unwrap();
            assert_eq!(claims.evidence["crl"], "checked");
        }
        assert_eq!(lab.service.times(&machine.path()), 1, "{generation}");
        assert_eq!(lab.service.times(&machine.list_path()), 1, "{generation}");
    }
    // Four chips of three products.
    assert_eq!(lab.service.asked().len(), 7);
    assert_eq!(lab.files().len(), 7);
}

#[tokio::test]
async fn a_certificate_that_the_guest_brings_is_checked_once_and_not_asked_for() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    let machine = Machine::new(Generation::Milan, 1);
    lab.knows(&machine);
    let evidence = machine.case.evidence();
    let rules = Rules::default();
    let now = SystemTime::now();
    let first = collateral
        .snp(&ROOTS, &evidence, &rules, now)
        .await
        .unwrap();
    let second = collateral
        .snp(&ROOTS, &evidence, &rules, now)
        .await
        .unwrap();
    assert!(Arc::ptr_eq(&first.vek, &second.vek));
    assert!(Arc::ptr_eq(&first.crls, &second.crls));
    assert_eq!(lab.service.asked(), [machine.list_path()]);
    // By AMD's roots, the same bytes are nothing.
    let amd = snp::Roots::amd().unwrap();
    let refused = collateral.snp(&amd, &evidence, &LENIENT, now).await;
    assert!(
        matches!(
            refused,
            Err(CollateralError::Evidence(Failure::Snp(
                SnpFailure::Chain { .. }
            )))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn evidence_that_leads_to_no_document_is_refused_and_nobody_is_asked() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    lab.service
        .give(&list_path(Product::Milan), list(around(0, 30), &[]));
    let ask = async |change: fn(&mut Case)| {
        let mut case = Case::new(3, Generation::Milan);
        change(&mut case);
        let bytes = case.report.to_bytes().unwrap();
        let evidence = SnpEvidence::new(&bytes, Vec::new()).unwrap();
        let rules = Rules::default();
        let answer = collateral
            .snp(&ROOTS, &evidence, &rules, SystemTime::now())
            .await;
        match answer.unwrap_err() {
            CollateralError::Evidence(Failure::Snp(failure)) => failure,
            other => panic!("{other}"),
        }
    };
    let masked = ask(|case| case.report.chip_id = [0; 64]).await;
    assert_eq!(masked, SnpFailure::ChipMasked);
    let unsigned = ask(|case| case.report.key_info = KeyInfo(2)).await;
    assert_eq!(unsigned, SnpFailure::Unsigned);
    let loaded = ask(|case| case.report.key_info = KeyInfo(1 << 2)).await;
    assert_eq!(loaded, SnpFailure::NoKey);
    let asked = lab.service.asked();
    assert!(asked.iter().all(|path| path.ends_with("/crl")), "{asked:?}");
}

#[tokio::test]
async fn a_service_that_limits_its_rate_is_left_alone_and_cached_copies_are_served() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    let known = Machine::new(Generation::Milan, 1);
    lab.knows(&known);
    known.asks(&collateral).await.unwrap();
    let [first, second] = [2, 3].map(|chip| Machine::new(Generation::Milan, chip));
    let told = [("retry-after", "600")];
    lab.service.say(&first.path(), 429, &told, "");
    let error = first.asks(&collateral).await.unwrap_err();
    let CollateralError::RateLimited { until, host, .. } = &error else {
        panic!("{error}");
    };
    assert!(error.retry_helps() && lab.service.url.ends_with(host));
    let wait = until.duration_since(SystemTime::now()).unwrap();
    assert!(wait <= Duration::from_secs(600) && wait > Duration::from_secs(500));
    // It would give the other one, but it asked to be left alone.
    lab.knows(&second);
    let error = second.asks(&collateral).await.unwrap_err();
    assert!(
        matches!(error, CollateralError::RateLimited { .. }),
        "{error}"
    );
    assert_eq!(lab.service.times(&first.path()), 1);
    assert_eq!(lab.service.times(&second.path()), 0);
    known.asks(&collateral).await.unwrap();
    assert!(error.explain().fix.contains("prefetch"));
}

#[tokio::test]
async fn a_service_that_fails_is_asked_again_and_then_not_for_a_while() {
    let lab = Lab::new().await;
    let collateral = lab.open();
    let machine = Machine::new(Generation::Genoa, 1);
    lab.knows(&machine);
    lab.service.say(&machine.path(), 500, &[], "");
    for _ in 0..5 {
        let error = machine.asks(&collateral).await.unwrap_err();
        assert!(
            matches!(&error, CollateralError::Unreachable { cause, .. } if cause.contains("500"))
        );
        assert!(error.retry_helps());
    }
    assert_eq!(lab.service.times(&machine.path()), 3);
    // A chip that AMD does not know is the report's fault.
    let unknown = Machine::new(Generation::Genoa, 2);
    let error = unknown.asks(&collateral).await.unwrap_err();
    assert!(
        matches!(error, CollateralError::Unknown { status: 404, .. }),
        "{error}"
    );
    assert!(!error.retry_helps());
    assert_eq!(error.explain().claim, "vek");
    unknown.asks(&collateral).await.unwrap_err();
    assert_eq!(lab.service.times(&unknown.path()), 1);
}

#[tokio::test]
async fn a_service_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Service::start().await.config(dir.path());
    let simulated = config.simulated.as_mut().unwrap();
    // Nothing listens on this port.
    simulated.amd_kds = "http://127.0.0.1:9".to_owned();
    let collateral = Collateral::open(&config).unwrap();
    let error = Machine::new(Generation::Milan, 1).asks(&collateral).await;
    let error = error.unwrap_err();
    assert!(error.retry_helps());
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

#[tokio::test]
async fn certificates_that_are_not_the_chips_are_refused_and_not_kept() {
    let machine = Machine::new(Generation::Milan, 1);
    let mut newer = Machine::new(Generation::Milan, 1);
    newer.case.chip.tcb.microcode += 1;
    let newer = ROOT.chip(&newer.case.chip).unwrap().certificate().to_vec();
    let mut ended = Machine::new(Generation::Milan, 1);
    ended.case.chip.validity.until = now() - DAY;
    let ended = ROOT.chip(&ended.case.chip).unwrap().certificate().to_vec();
    let mut forged = machine.certificate.clone();
    *forged.last_mut().unwrap() ^= 1;
    let answers = [
        ("garbage", b"<html>Sign in</html>".to_vec(), "DER"),
        ("nothing", Vec::new(), "DER"),
        ("too long", vec![b'a'; 64 * 1024], "bytes"),
        (
            "truncated",
            machine.certificate[..machine.certificate.len() / 2].to_vec(),
            "DER",
        ),
        ("forged", forged, "not signed by the ASK"),
        ("firmware", newer, "firmware"),
        ("ended", ended, "and it is"),
        (
            "chip",
            Machine::new(Generation::Milan, 2).certificate,
            "another chip",
        ),
        (
            "product",
            Machine::new(Generation::Turin, 1).certificate,
            "another chip",
        ),
        ("a list", list(around(0, 30), &[]), "DER"),
    ];
    for (name, answer, word) in answers {
        let lab = Lab::new().await;
        let collateral = lab.open();
        lab.knows(&machine);
        lab.service.give(&machine.path(), answer);
        let error = machine.asks(&collateral).await.unwrap_err();
        let CollateralError::Refused { cause, .. } = &error else {
            panic!("{name}: {error}");
        };
        assert!(cause.contains(word), "{name}: {cause}");
        assert_eq!(lab.files(), ["sim-snp.crl.Milan.json"], "{name}");
        machine.asks(&collateral).await.unwrap_err();
        assert_eq!(lab.service.times(&machine.path()), 1, "{name}");
    }
}

#[tokio::test]
async fn lists_that_do_not_hold_are_refused_and_not_kept() {
    let machine = Machine::new(Generation::Milan, 1);
    let mut forged = list(around(0, 30), &[]);
    *forged.last_mut().unwrap() ^= 1;
    let answers = [
        ("garbage", b"no list".to_vec(), "DER"),
        ("truncated", list(around(0, 30), &[])[..200].to_vec(), "DER"),
        ("forged", forged, "not signed"),
        ("ended", list(around(0, -1), &[]), "and it is"),
        ("early", list(around(11, 30), &[]), "and it is"),
        (
            "another authority's",
            ROOT.crl(1, around(0, 30), &[]).unwrap(),
            "list of the ASK",
        ),
    ];
    for (name, answer, word) in answers {
        let lab = Lab::new().await;
        let collateral = lab.open();
        lab.knows(&machine);
        lab.service.give(&machine.list_path(), answer);
        let error = machine.asks(&collateral).await.unwrap_err();
        let CollateralError::Refused { cause, .. } = &error else {
            panic!("{name}: {error}");
        };
        assert!(cause.contains(word), "{name}: {cause}");
        assert_eq!(lab.files().len(), 1, "{name}");
        // Where the operator does not insist on a list, the attestation goes on without.
        let now = SystemTime::now();
        let set = collateral
            .snp(&ROOTS, &machine.evidence, &LENIENT, now)
            .await;
        assert!(set.unwrap().crls.is_empty(), "{name}");
    }
}
