//! CoCo's `sample`: JSON without a signature, `{"svn", "report_data"}`.
//!
//! Our own attester adds `init_data`, hex of the digest that the launch bound, so that the whole path
//! of init-data can be walked without a TEE. A guest of CoCo's has none; its init-data then stays
//! unbound, and no claim is made about it.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Bindings, Claims, Failure, Kind, REPORT_DATA_BYTES};

/// Bytes of the widest report data field of a TEE.
const FIELD_BYTES: usize = 64;
/// Characters of the longest member.
const TEXT_CHARS: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    svn: String,
    report_data: String,
    #[serde(default)]
    init_data: Option<String>,
}

pub(crate) fn verify(evidence: &Value, bindings: &Bindings) -> Result<Claims, Failure> {
    let sample = Sample::deserialize(evidence).map_err(|error| malformed(&error.to_string()))?;
    if sample.svn.len() > TEXT_CHARS {
        return Err(malformed("`svn` is too long"));
    }
    check_report_data(&sample.report_data, &bindings.report_data)?;
    let init_data = sample
        .init_data
        .map(|text| check_init_data(&text, bindings.init_data.as_deref()))
        .transpose()?;
    Ok(Claims {
        kind: Kind::Sample,
        evidence: json!({ "svn": sample.svn }),
        report_data: hex::encode(bindings.report_data),
        init_data,
    })
}

/// The digest, bare or padded with zeros as a TEE's field would be.
fn check_report_data(text: &str, expected: &[u8; REPORT_DATA_BYTES]) -> Result<(), Failure> {
    if text.len() > TEXT_CHARS {
        return Err(malformed("`report_data` is too long"));
    }
    let found = BASE64_STANDARD
        .decode(text)
        .map_err(|_| malformed("`report_data` is not base64"))?;
    let padded = |bytes: &[u8]| {
        let mut field = [0; FIELD_BYTES];
        let fits = field
            .get_mut(..bytes.len())
            .map(|f| f.copy_from_slice(bytes));
        fits.map(|()| field)
    };
    if found.len() >= REPORT_DATA_BYTES && padded(&found) == padded(expected) {
        return Ok(());
    }
    Err(Failure::ReportData {
        expected: hex::encode(expected),
        found: hex::encode(found),
    })
}

fn check_init_data(bound: &str, sent: Option<&[u8]>) -> Result<String, Failure> {
    if bound.len() > TEXT_CHARS {
        return Err(malformed("`init_data` is too long"));
    }
    let digest = hex::decode(bound).map_err(|_| malformed("`init_data` is not hex"))?;
    match sent {
        Some(sent) if sent != digest => Err(Failure::InitData {
            bound: hex::encode(digest),
            sent: hex::encode(sent),
        }),
        Some(_) | None => Ok(hex::encode(digest)),
    }
}

fn malformed(detail: &str) -> Failure {
    Failure::Malformed {
        kind: Kind::Sample,
        detail: crate::failure::shorten(detail),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::accept;

    fn bindings(init_data: Option<Vec<u8>>) -> Bindings {
        Bindings {
            report_data: [7; REPORT_DATA_BYTES],
            init_data,
        }
    }

    fn evidence(report_data: &[u8], init_data: Option<&str>) -> Value {
        let mut evidence = json!({"svn": "1", "report_data": BASE64_STANDARD.encode(report_data)});
        if let Some(init_data) = init_data {
            evidence["init_data"] = init_data.into();
        }
        evidence
    }

    #[test]
    fn a_bound_sample_becomes_claims() {
        let mut padded = [0; FIELD_BYTES];
        padded[..REPORT_DATA_BYTES].fill(7);
        for report_data in [&[7; REPORT_DATA_BYTES][..], &padded] {
            let claims = verify(&evidence(report_data, None), &bindings(None)).unwrap();
            assert_eq!(claims.evidence, json!({"svn": "1"}));
            assert_eq!(claims.init_data, None);
        }
    }

    #[test]
    fn other_report_data_is_refused_with_both_values() {
        for found in [
            &[8; REPORT_DATA_BYTES][..],
            &[7; 47],
            &[7; FIELD_BYTES],
            &[7; 65],
            &[],
        ] {
            let failure = verify(&evidence(found, None), &bindings(None)).unwrap_err();
            let explanation = failure.explain();
            assert_eq!(explanation.claim, "report_data");
            assert_eq!(explanation.found, hex::encode(found));
        }
    }

    #[test]
    fn init_data_must_be_what_the_launch_bound() {
        let good = [7; REPORT_DATA_BYTES];
        let bound = "AB".repeat(32);
        let sent = Some(vec![0xab; 32]);
        let claims = verify(&evidence(&good, Some(&bound)), &bindings(sent)).unwrap();
        assert_eq!(claims.init_data, Some("ab".repeat(32)));
        let other = verify(&evidence(&good, Some(&bound)), &bindings(Some(vec![0; 32])));
        assert!(matches!(other, Err(Failure::InitData { .. })));
        let unbound = verify(&evidence(&good, None), &bindings(Some(vec![0; 32]))).unwrap();
        assert_eq!(unbound.init_data, None);
    }

    #[test]
    fn malformed_samples_are_named() {
        for evidence in [
            json!(null),
            json!({"svn": "1"}),
            json!({"svn": 1, "report_data": ""}),
            json!({"svn": "1", "report_data": "%"}),
            json!({"svn": "1", "report_data": "", "measurement": "00"}),
        ] {
            let failure = verify(&evidence, &bindings(None)).unwrap_err();
            assert!(matches!(failure, Failure::Malformed { .. }), "{evidence}");
        }
    }

    #[test]
    fn a_kind_is_accepted_only_when_it_is_listed() {
        let none = BTreeSet::new();
        let failure = accept("sample", &none).unwrap_err();
        assert_eq!(failure, Failure::NotAccepted { kind: Kind::Sample });
        assert!(accept("sample", &BTreeSet::from([Kind::Sample])).is_ok());
        for name in ["snp", "tdx", "Sample", ""] {
            let failure = accept(name, &BTreeSet::from([Kind::Sample])).unwrap_err();
            assert!(failure.to_string().contains("not configured"), "{name}");
        }
    }
}
