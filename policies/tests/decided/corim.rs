//! Reference values out of CoRIMs that are made here, and out of broken ones.

use std::time::{Duration, UNIX_EPOCH};

use ciborium::{Value, cbor};
use policies::{
    corim::{Algorithm, CORIM_BYTES, Corim, CorimError, Draft},
    reference::{Provenance, ReferenceValue},
};
use serde_json::json;

fn bytes(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn tag(tag: u64, value: Value) -> Value {
    Value::Tag(tag, Box::new(value))
}

/// Reads an unsigned one, or a signed one that anybody signed.
fn reference_values(bytes: &[u8]) -> Result<Vec<ReferenceValue>, CorimError> {
    match Corim::read(bytes)? {
        Corim::Unsigned(manifest) => {
            manifest.reference_values(&Provenance::Unsigned(String::new()))
        }
        Corim::Signed(signed) => signed.reference_values(|_| Ok("anybody".to_owned())),
    }
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
        let values = reference_values(&bytes(&whole)).unwrap();
        let names: Vec<_> = values.iter().map(|value| value.name.as_str()).collect();
        let digests = "ACME/RoadRunner/00010203-0405-0607-0809-0a0b0c0d0e0f/digests";
        assert_eq!(names, [digests, "ACME/RoadRunner/claim7/raw_bytes"]);
        let at = |seconds| values[0].at(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(100), Some(json!(["ab".repeat(32)])));
        assert_eq!((at(99), at(200)), (None, None));
    }
}

/// A signed CoRIM with these headers, protected and not.
fn signed(protected: &Value, unprotected: Value, payload: Value) -> Value {
    let parts = vec![
        Value::Bytes(bytes(protected)),
        unprotected,
        payload,
        Value::Bytes(vec![7; 64]),
    ];
    tag(502, tag(18, Value::Array(parts)))
}

fn payload() -> Value {
    Value::Bytes(bytes(&corim()))
}

#[test]
fn a_signed_one_holds_while_manifest_and_signature_do_and_names_who_signed() {
    let (from, until) = (tag(1, 120.into()), tag(1, 190.into()));
    let meta = cbor!({0 => {0 => "ACME"}, 1 => {0 => from, 1 => until}}).unwrap();
    let meta = Value::Bytes(bytes(&meta));
    let headers = cbor!({
        1 => -35, 3 => "application/rim+cbor", 8 => meta, 15 => {1 => "ACME", 4 => 180, 5 => 110}
    });
    let whole = signed(
        &headers.unwrap(),
        cbor!({4 => Value::Bytes(vec![9])}).unwrap(),
        payload(),
    );
    let Corim::Signed(signed) = Corim::read(&bytes(&whole)).unwrap() else {
        panic!("it is signed");
    };
    assert_eq!(
        (signed.algorithm, &signed.key_id[..]),
        (Algorithm::Es384, &[9][..])
    );
    let seen = signed.reference_values(|signed| {
        // RFC 9052, section 4.4: the context, and no external data.
        assert!(signed.message.starts_with(b"\x84\x6aSignature1"));
        assert_eq!(signed.signature, [7; 64]);
        Ok::<_, CorimError>("vendor".to_owned())
    });
    let seen = seen.unwrap();
    let version = &seen[0].versions[0];
    assert_eq!(version.provenance, Provenance::Signer("vendor".to_owned()));
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!((version.not_before, version.not_after), (at(120), at(180)));
}

#[test]
fn a_signature_that_is_not_understood_whole_is_refused() {
    let rim = "application/rim+cbor";
    let none = || cbor!({}).unwrap();
    let wrong = [
        (cbor!({1 => -37, 3 => rim}), none(), "algorithm -37"),
        (cbor!({1 => "ES256", 3 => rim}), none(), "not a number"),
        (cbor!({3 => rim}), none(), "not a number"),
        (cbor!({1 => -7, 2 => [1], 3 => rim}), none(), "critical"),
        (cbor!({1 => -7}), none(), "content type"),
        (cbor!({1 => -7, 3 => "text/plain"}), none(), "content type"),
        (cbor!({3 => rim}), cbor!({1 => -7}).unwrap(), "protected"),
        (
            cbor!({1 => -7, 3 => rim}),
            cbor!({1 => -7}).unwrap(),
            "header 1 twice",
        ),
        (cbor!({1 => -7, 3 => rim, 4 => "id"}), none(), "kid"),
        (cbor!({1 => -7, 3 => rim, 8 => {}}), none(), "corim-meta"),
        (
            cbor!({1 => -7, 3 => rim, 15 => {4 => "now"}}),
            none(),
            "nbf and exp",
        ),
        (cbor!([]), none(), "headers"),
    ];
    for (headers, unprotected, word) in wrong {
        let whole = bytes(&signed(&headers.unwrap(), unprotected, payload()));
        let error = reference_values(&whole).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let right = cbor!({1 => -7, 3 => rim}).unwrap();
    let again = Value::Bytes(bytes(&signed(&right, none(), payload())));
    for payload in [Value::Null, Value::Bytes(vec![1, 2]), again] {
        assert!(reference_values(&bytes(&signed(&right, none(), payload))).is_err());
    }
    assert!(reference_values(&bytes(&tag(18, Value::Array(Vec::new())))).is_err());
    assert!(reference_values(&bytes(&signed(&right, none(), payload()))).is_ok());
}

#[test]
fn a_broken_one_never_panics() {
    let headers = cbor!({1 => -7, 3 => "application/rim+cbor"}).unwrap();
    let whole = signed(&headers, cbor!({}).unwrap(), payload());
    for good in [bytes(&corim()), bytes(&whole)] {
        for end in 0..good.len() {
            assert!(reference_values(&good[..end]).is_err());
        }
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0xff;
            drop(reference_values(&bad));
        }
        assert!(reference_values(&[good, vec![0]].concat()).is_err());
    }
    assert!(reference_values(&[0x81; 10_000]).is_err());
    assert!(reference_values(&vec![0; CORIM_BYTES + 1]).is_err());
}

#[test]
fn a_draft_is_read_back_under_its_names_alone_signed_or_not() {
    let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
    let draft = Draft::new("guest-7")
        .within(at(100), at(200))
        .digests("snp_launch_measurement", &[[1; 48], [2; 48]])
        .raw("xfam", &[0xe7, 2]);
    let signed = draft.signed(Algorithm::Es384, b"key", "owner", |message| {
        assert!(message.starts_with(b"\x84\x6aSignature1"));
        Ok::<_, CorimError>(vec![7; 96])
    });
    let signed = signed.unwrap();
    for whole in [&draft.unsigned().unwrap(), &signed] {
        let values = reference_values(whole).unwrap();
        assert_eq!(values.len(), 2);
        assert_eq!(values[0].name, "snp_launch_measurement");
        assert_eq!(values[1].name, "xfam");
        assert_eq!(values[1].versions[0].value, json!("e702"));
        let digests = json!(["01".repeat(48), "02".repeat(48)]);
        assert_eq!(values[0].versions[0].value, digests);
        let window = (
            values[0].versions[0].not_before,
            values[0].versions[0].not_after,
        );
        assert_eq!(window, (at(100), at(200)));
    }
    let Corim::Signed(read) = Corim::read(&signed).unwrap() else {
        panic!("it is signed");
    };
    assert_eq!(
        (read.algorithm, &read.key_id[..]),
        (Algorithm::Es384, &b"key"[..])
    );
    assert_eq!(read.signature, [7; 96]);
}
