//! Reports of real Milan machines, read from the vectors beside the workspace.

use std::{fs, path::Path};

use evidence::snp::{Certificate, CertificateKind, Generation, SnpEvidence};
use verifier::{
    Bindings, Claims, Failure,
    snp::{self, Collateral, CrlRule, Roots, Rules, SnpFailure},
};

/// 2025-01-01, inside the certificates' validity.
const NOW: u64 = 1_735_689_600;

fn vector(name: &str) -> Option<Vec<u8>> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/snp");
    if !vectors.exists() {
        eprintln!("skipped: no vectors beside the workspace");
        return None;
    }
    Some(fs::read(vectors.join(name)).unwrap())
}

fn verify(
    report: &[u8],
    vcek: Vec<u8>,
    more: Option<Certificate>,
    now: u64,
    rules: &Rules,
) -> Result<Claims, Failure> {
    let mut certificates = vec![Certificate {
        kind: CertificateKind::Vcek,
        data: vcek,
    }];
    certificates.extend(more);
    let evidence = SnpEvidence::new(report, certificates).unwrap();
    // The JSON says the same as the bytes.
    let sent = serde_json::to_value(&evidence).unwrap();
    let roots = Roots::amd().unwrap();
    assert_eq!(snp::parse(&roots, &sent).unwrap(), evidence);
    let bound = evidence.report().report_data;
    let bindings = Bindings {
        report_data: bound[..48].try_into().unwrap(),
        init_data: None,
    };
    snp::verify(
        &evidence,
        &roots,
        Collateral::default(),
        rules,
        &bindings,
        now,
    )
}

const MILAN: Rules = Rules {
    crl: CrlRule::MayBeAbsent,
    version_2: Some(Generation::Milan),
};

/// What the report binds is not known to us; a report that passes everything before it is valid.
fn reached_the_binding(verdict: &Result<Claims, Failure>) -> bool {
    matches!(verdict, Ok(_) | Err(Failure::ReportData { .. }))
}

#[test]
fn real_reports_are_valid() {
    let (Some(report), Some(vcek)) = (
        vector("milan-v2-test-report.bin"),
        vector("milan-v2-test-vcek.der"),
    ) else {
        return;
    };
    assert!(reached_the_binding(&verify(
        &report, vcek, None, NOW, &MILAN
    )));
    let text = String::from_utf8(vector("milan-report.hex").unwrap()).unwrap();
    let report = hex::decode(text.trim()).unwrap();
    let vcek = vector("milan-vcek.der").unwrap();
    assert!(reached_the_binding(&verify(
        &report, vcek, None, NOW, &MILAN
    )));
}

#[test]
fn faults_in_a_real_report_are_named() {
    let (Some(report), Some(vcek)) = (
        vector("milan-v2-test-report.bin"),
        vector("milan-v2-test-vcek.der"),
    ) else {
        return;
    };
    let refused =
        |report: &[u8], more, now, rules| match verify(report, vcek.clone(), more, now, rules) {
            Err(Failure::Snp(failure)) => failure,
            other => panic!("{other:?}"),
        };
    let flipped = |at: usize| {
        let mut report = report.clone();
        report[at] ^= 1;
        report
    };
    assert_eq!(
        refused(&flipped(42), None, NOW, &MILAN),
        SnpFailure::Signature
    );
    let tcb = refused(&flipped(385), None, NOW, &MILAN);
    assert!(
        matches!(
            tcb,
            SnpFailure::Tcb {
                part: "reported_tcb_tee",
                ..
            }
        ),
        "{tcb:?}"
    );
    let asvk = include_bytes!("../../roots/milan-asvk.pem").to_vec();
    let swapped = Certificate {
        kind: CertificateKind::Ask,
        data: asvk,
    };
    let chain = refused(&report, Some(swapped), NOW, &MILAN);
    assert!(
        matches!(chain, SnpFailure::ForeignIssuer { .. }),
        "{chain:?}"
    );
    let default = Rules {
        version_2: None,
        ..MILAN
    };
    assert_eq!(refused(&report, None, NOW, &default), SnpFailure::Version2);
    let late = refused(&report, None, 2_000_000_000, &MILAN);
    assert!(matches!(late, SnpFailure::Expired { .. }), "{late:?}");
    let turin = Rules {
        version_2: Some(Generation::Turin),
        ..MILAN
    };
    let other = refused(&report, None, NOW, &turin);
    assert!(matches!(other, SnpFailure::Chain { .. }), "{other:?}");
}
