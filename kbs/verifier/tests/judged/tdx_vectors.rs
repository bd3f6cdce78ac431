//! A quote of a real platform with Intel's collateral, read from the vectors beside the workspace.

use std::{fs, path::Path};

use evidence::tdx::TdxEvidence;
use serde_json::{Value, json};
use verifier::{
    Bindings, Claims, Failure,
    tdx::{self, Ca, Collateral, Document, Parts, Roots, TdxFailure},
};

/// 2025-06-25, inside the collateral's validity.
const NOW: u64 = 1_750_809_600;

fn vector(name: &str) -> Option<Vec<u8>> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/tdx");
    if !vectors.exists() {
        eprintln!("skipped: no vectors beside the workspace");
        return None;
    }
    Some(fs::read(vectors.join(name)).unwrap())
}

fn parts() -> Option<Parts> {
    let json = vector("quote-with-collateral.json")?;
    Some(serde_json::from_slice(&json).unwrap())
}

fn verify(quote: &[u8], parts: Parts, now: u64) -> Result<Claims, Failure> {
    let roots = Roots::intel().unwrap();
    let evidence = TdxEvidence::new(quote, None).unwrap();
    // The JSON says the same as the bytes.
    let sent = serde_json::to_value(&evidence).unwrap();
    assert_eq!(tdx::parse(&roots, &sent).unwrap(), evidence);
    let collateral = Collateral::prepare(&roots, parts)?;
    let said = evidence.quote().body.report_data;
    let bindings = Bindings {
        report_data: said[..48].try_into().unwrap(),
        init_data: None,
    };
    tdx::verify(&evidence, &roots, &collateral, &bindings, now)
}

/// What the quote binds has 64 bytes, and ours always 48; a quote that passes all before it is valid.
fn reached_the_binding(verdict: &Result<Claims, Failure>) -> bool {
    matches!(verdict, Ok(_) | Err(Failure::ReportData { .. }))
}

#[test]
fn a_real_quote_is_valid_while_its_collateral_is() {
    let (Some(quote), Some(parts)) = (vector("quote-with-collateral.dat"), parts()) else {
        return;
    };
    let verdict = verify(&quote, parts.clone(), NOW);
    assert!(reached_the_binding(&verdict), "{verdict:?}");

    let roots = Roots::intel().unwrap();
    let collateral = Collateral::prepare(&roots, parts.clone()).unwrap();
    let until = collateral.valid_until();
    let at = |now: i64| verify(&quote, parts.clone(), u64::try_from(now).unwrap());
    assert!(reached_the_binding(&at(until - 1)));
    for (now, expected) in [
        (
            until,
            "the PCK CRL was valid until 2025-07-19T10:00:35Z, and it is 2025-07-19T10:00:35Z",
        ),
        (
            1_760_000_000,
            "the TCB info was valid until 2025-07-19T10:16:03Z, and it is 2025-10-09T08:53:20Z",
        ),
        (
            1_750_000_000,
            "the TCB info is valid from 2025-06-19T10:16:03Z, and it is 2025-06-15T15:06:40Z",
        ),
    ] {
        assert_eq!(at(now).unwrap_err().to_string(), expected);
    }
}

#[test]
fn faults_in_a_real_quote_are_named() {
    let (Some(quote), Some(parts)) = (vector("quote-with-collateral.dat"), parts()) else {
        return;
    };
    let flipped = |at: usize| {
        let mut quote = quote.clone();
        quote[at] ^= 1;
        match verify(&quote, parts.clone(), NOW) {
            Err(Failure::Tdx(failure)) => failure,
            other => panic!("{other:?}"),
        }
    };
    // MRTD, the signature, the quoting enclave's report and its signature.
    let section = 48 + 584 + 4;
    assert_eq!(flipped(48 + 136), TdxFailure::Signature);
    assert_eq!(flipped(section + 3), TdxFailure::Signature);
    assert_eq!(flipped(section + 134 + 100), TdxFailure::QeSignature);
    assert_eq!(flipped(section + 134 + 390), TdxFailure::QeSignature);

    let mut changed = parts.clone();
    changed.tcb_info = changed.tcb_info.replace("OutOfDate", "UpToDate");
    assert!(matches!(
        verify(&quote, changed, NOW),
        Err(Failure::Tdx(TdxFailure::Chain {
            document: Document::TcbInfo,
            ..
        }))
    ));
    let other = vector("quote-v5.dat").unwrap();
    let verdict = verify(&other, parts.clone(), NOW);
    assert!(
        matches!(verdict, Err(Failure::Tdx(TdxFailure::Fmspc { .. }))),
        "{verdict:?}"
    );
}

#[test]
fn real_quotes_say_what_collateral_they_need() {
    for (name, fmspc, ca) in [
        ("quote-v4", "50806f000000", Ca::Platform),
        ("quote-v5", "90c06f000000", Ca::Platform),
        ("quote-with-collateral", "b0c06f000000", Ca::Platform),
    ] {
        let Some(bytes) = vector(&format!("{name}.dat")) else {
            return;
        };
        let evidence = TdxEvidence::new(&bytes, None).unwrap();
        let needs = tdx::needs(&evidence).unwrap();
        assert_eq!((hex::encode(needs.fmspc), needs.ca), (fmspc.into(), ca));
    }
}

#[test]
fn parts_are_written_as_they_were_read() {
    let (Some(json), Some(parts)) = (vector("quote-with-collateral.json"), parts()) else {
        return;
    };
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json!(parts), json);
}
