//! CoCo's `sample`: JSON without a signature, `{"svn", "report_data"}`.
//!
//! Our own attester adds `init_data`, hex of the digest that the launch bound, so that the whole path
//! of init-data can be walked without a TEE. A guest of CoCo's has none; its init-data then stays
//! unbound, and no claim is made about it. (Trustee's verifier claims what was sent.)

use evidence::{
    Tee,
    sample::{REPORT_DATA_BYTES as FIELD_BYTES, SampleEvidence},
};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::{Bindings, Claims, Failure, REPORT_DATA_BYTES};

/// Characters of the longest member.
const TEXT_CHARS: usize = 256;
/// Trustee's verifier says this, a version and `debug` of every sample, whatever it ran. Its policies
/// for samples compare them with what the owner registered, so ours has to say the same.
const LAUNCH_DIGEST: &str = "abcde";

/// Verifies that a sample binds what it must; there is nothing else to verify.
///
/// # Errors
/// Names the member or the binding that is wrong.
pub fn verify<'a>(evidence: impl Deserializer<'a>, bindings: &Bindings) -> Result<Claims, Failure> {
    let sample =
        SampleEvidence::deserialize(evidence).map_err(|error| malformed(&error.to_string()))?;
    let texts = [
        Some(&sample.svn),
        Some(&sample.report_data),
        sample.init_data.as_ref(),
    ];
    if texts
        .into_iter()
        .flatten()
        .any(|text| text.len() > TEXT_CHARS)
    {
        return Err(malformed("a member is too long"));
    }
    let found = sample
        .report_data()
        .map_err(|error| malformed(&error.to_string()))?;
    if !binds(&found, &bindings.report_data) {
        return Err(Failure::ReportData {
            expected: hex::encode(bindings.report_data),
            found: hex::encode(found),
        });
    }
    let bound = sample
        .init_data()
        .map_err(|error| malformed(&error.to_string()))?;
    if let (Some(bound), Some(sent)) = (&bound, &bindings.init_data)
        && bound != sent
    {
        return Err(Failure::InitData {
            bound: bound.hex(),
            sent: sent.hex(),
        });
    }
    Ok(Claims {
        kind: Tee::Sample,
        evidence: json!({
            "svn": sample.svn,
            "launch_digest": LAUNCH_DIGEST,
            "platform_version": { "major": 1, "minor": 4 },
            "debug": false,
        }),
        report_data: hex::encode(bindings.report_data),
        init_data: bound.map(|digest| digest.hex()),
    })
}

/// The digest, bare or padded with zeros as a TEE's field would be.
pub(crate) fn binds(found: &[u8], expected: &[u8; REPORT_DATA_BYTES]) -> bool {
    found.len() <= FIELD_BYTES
        && found
            .split_at_checked(REPORT_DATA_BYTES)
            .is_some_and(|(digest, padding)| digest == expected && padding.iter().all(|b| *b == 0))
}

fn malformed(detail: &str) -> Failure {
    Failure::Malformed {
        kind: Tee::Sample,
        detail: crate::failure::shorten(detail),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use base64::{Engine, prelude::BASE64_STANDARD};
    use evidence::init_data::InitDataDigest;
    use serde_json::Value;

    use super::*;
    use crate::accept;

    fn bindings(init_data: Option<InitDataDigest>) -> Bindings {
        Bindings {
            report_data: [7; REPORT_DATA_BYTES],
            init_data,
        }
    }

    fn digest(byte: u8) -> InitDataDigest {
        InitDataDigest::from_bytes(&[byte; 32]).unwrap()
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
            let claims = verify(evidence(report_data, None), &bindings(None)).unwrap();
            assert_eq!(claims.evidence["svn"], "1");
            assert_eq!(claims.init_data, None);
        }
    }

    #[test]
    fn trustees_policies_for_samples_find_its_claims() {
        let claims = verify(evidence(&[7; REPORT_DATA_BYTES], None), &bindings(None)).unwrap();
        let expected = json!({
            "svn": "1",
            "launch_digest": "abcde",
            "platform_version": {"major": 1, "minor": 4},
            "debug": false,
        });
        assert_eq!(claims.evidence, expected);
    }

    #[test]
    fn other_report_data_is_refused_with_both_values() {
        for found in [
            &[8; REPORT_DATA_BYTES][..],
            &[7; 47],
            &[7; FIELD_BYTES],
            &[],
        ] {
            let failure = verify(evidence(found, None), &bindings(None)).unwrap_err();
            let explanation = failure.explain();
            assert_eq!(explanation.claim, "report_data");
            assert_eq!(explanation.found, hex::encode(found));
        }
    }

    #[test]
    fn init_data_must_be_what_the_launch_bound() {
        let good = [7; REPORT_DATA_BYTES];
        let bound = "AB".repeat(32);
        let sent = Some(digest(0xab));
        let claims = verify(evidence(&good, Some(&bound)), &bindings(sent)).unwrap();
        assert_eq!(claims.init_data, Some("ab".repeat(32)));
        let other = verify(evidence(&good, Some(&bound)), &bindings(Some(digest(0))));
        assert!(matches!(other, Err(Failure::InitData { .. })));
        let unbound = verify(evidence(&good, None), &bindings(Some(digest(0)))).unwrap();
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
        assert_eq!(failure, Failure::NotAccepted { kind: Tee::Sample });
        for kind in Tee::ALL {
            let all = BTreeSet::from(Tee::ALL);
            assert_eq!(accept(kind.name(), &all).unwrap(), kind);
        }
        for name in ["sgx", "Sample", "sampledevice", ""] {
            let failure = accept(name, &BTreeSet::from(Tee::ALL)).unwrap_err();
            assert!(failure.to_string().contains("not configured"), "{name}");
        }
    }
}
