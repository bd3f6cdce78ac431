//! Reference values out of CoRIMs that are made here, and out of broken ones.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, UNIX_EPOCH};

use ciborium::{Value, cbor};
use policies::corim::{CORIM_BYTES, CorimError, reference_values};
use serde_json::json;

fn bytes(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn tag(tag: u64, value: Value) -> Value {
    Value::Tag(tag, Box::new(value))
}

fn corim() -> Value {
    let digest = Value::Array(vec![1.into(), Value::Bytes(vec![0xab; 32])]);
    let uuid = tag(37, Value::Bytes((0..16).collect()));
    let raw = tag(560, Value::Bytes(vec![1, 2]));
    let comid = cbor!({
        1 => {0 => "id"},
        4 => {0 => [[
            {0 => {1 => "ACME", 2 => "RoadRunner"}},
            [{0 => uuid, 1 => {2 => [digest]}}, {0 => 7, 1 => {4 => raw}}]
        ]]}
    })
    .unwrap();
    let comid = tag(506, Value::Bytes(bytes(&comid)));
    let (begin, end) = (tag(1, 100.into()), tag(1, 200.into()));
    tag(
        501,
        cbor!({0 => "corim", 1 => [comid], 4 => {0 => begin, 1 => end}}).unwrap(),
    )
}

#[test]
fn values_have_trustees_names_and_the_manifests_validity() {
    for whole in [corim(), tag(500, tag(502, corim()))] {
        let values = reference_values(&bytes(&whole), "vendor").unwrap();
        let names: Vec<_> = values.iter().map(|value| value.name.as_str()).collect();
        let digests = "ACME/RoadRunner/00010203-0405-0607-0809-0a0b0c0d0e0f/digests";
        assert_eq!(names, [digests, "ACME/RoadRunner/claim7/raw_bytes"]);
        let at = |seconds| values[0].at(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(100), Some(json!(["ab".repeat(32)])));
        assert_eq!((at(99), at(200)), (None, None));
    }
}

#[test]
fn a_signed_one_is_refused_by_name_and_a_broken_one_never_panics() {
    let signed = tag(18, Value::Array(Vec::new()));
    assert_eq!(
        reference_values(&bytes(&signed), ""),
        Err(CorimError::Signed)
    );
    assert_eq!(
        reference_values(&bytes(&tag(502, signed)), ""),
        Err(CorimError::Signed)
    );
    let good = bytes(&corim());
    for end in 0..good.len() {
        assert!(reference_values(&good[..end], "").is_err());
    }
    for index in 0..good.len() {
        let mut bad = good.clone();
        bad[index] ^= 0xff;
        drop(reference_values(&bad, ""));
    }
    assert!(reference_values(&[good, vec![0]].concat(), "").is_err());
    assert!(reference_values(&[0x81; 10_000], "").is_err());
    assert!(reference_values(&vec![0; CORIM_BYTES + 1], "").is_err());
}
