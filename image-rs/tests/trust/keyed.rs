//! `sigstoreSigned` with keys, in cosign's older form.

use image_rs::signature::{Reason, SIGNATURES_MAX};
use image_rs::{Digest, Policy};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use crate::maker::{Log, base64, hashedrekord, payload, simple_payload};
use crate::store::{IMAGE, Store, check, manifest, policy, reason, refusal};

const RSA: &str = include_str!("../../ocicrypt/tests/vectors/rsa.pem");

fn signed_by(pem: &str) -> Value {
    json!({"type": "sigstoreSigned", "keyData": base64(pem)})
}

fn layer(key: &KeyPair, payload: Vec<u8>) -> (Vec<u8>, Value) {
    let signature = base64(key.sign(&payload).unwrap());
    (
        payload,
        json!({"dev.cosignproject.cosign/signature": signature}),
    )
}

fn store(layers: &[(Vec<u8>, Value)]) -> Store {
    let mut store = Store::default();
    store.cosign(&manifest(), layers);
    store
}

fn own_payload() -> Vec<u8> {
    payload(&manifest().digest, IMAGE)
}

fn one(key: &KeyPair) -> Policy {
    policy(&json!([signed_by(&key.public_key_pem())]))
}

#[tokio::test]
async fn every_kind_of_key_signs() {
    let kinds = [
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
        KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
        KeyPair::from_pem(RSA).unwrap(),
    ];
    for key in kinds {
        let store = store(&[layer(&key, own_payload())]);
        let result = check(&one(&key), &store).await;
        result.unwrap_or_else(|error| panic!("{:?}: {error}", key.algorithm()));
    }
}

#[tokio::test]
async fn a_signature_in_several_lines_is_read() {
    let key = KeyPair::generate().unwrap();
    let payload = own_payload();
    let mut text = base64(key.sign(&payload).unwrap());
    text.insert(40, '\n');
    let annotations = json!({"dev.cosignproject.cosign/signature": text});
    check(&one(&key), &store(&[(payload, annotations)]))
        .await
        .unwrap();
}

#[tokio::test]
async fn no_signature_is_a_refusal_that_says_so() {
    let key = KeyPair::generate().unwrap();
    let refusal = refusal(check(&one(&key), &Store::default()).await);
    assert!(refusal.unmet[0].reasons.is_empty());
    let text = refusal.to_string();
    assert!(
        text.contains(IMAGE) && text.contains("sigstoreSigned") && text.contains("no signature"),
        "{text}"
    );
}

#[tokio::test]
async fn another_key_is_refused() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let store = store(&[layer(&other, own_payload())]);
    assert_eq!(
        reason(check(&one(&key), &store).await),
        Reason::Key("any key of the policy")
    );
    let both = json!([{"type": "sigstoreSigned",
        "keyDatas": [base64(key.public_key_pem()), base64(other.public_key_pem())]}]);
    check(&policy(&both), &store).await.unwrap();
}

#[tokio::test]
async fn a_changed_payload_is_refused() {
    let key = KeyPair::generate().unwrap();
    let (mut payload, annotations) = layer(&key, own_payload());
    payload.push(b' ');
    let store = store(&[(payload, annotations)]);
    assert!(matches!(
        reason(check(&one(&key), &store).await),
        Reason::Key(_)
    ));
}

#[tokio::test]
async fn a_signature_of_another_manifest_is_refused() {
    let key = KeyPair::generate().unwrap();
    let signed = Digest::of(b"another manifest");
    let store = store(&[layer(&key, payload(&signed, IMAGE))]);
    assert_eq!(
        reason(check(&one(&key), &store).await),
        Reason::Digest { signed }
    );
}

#[tokio::test]
async fn a_signature_for_another_name_is_refused() {
    let key = KeyPair::generate().unwrap();
    for name in ["quay.io/team/other:v1", "quay.io/team/app:v2"] {
        let store = store(&[layer(&key, payload(&manifest().digest, name))]);
        let expected = Reason::Identity {
            signed: name.to_owned(),
            rule: "matchRepoDigestOrExact",
        };
        assert_eq!(reason(check(&one(&key), &store).await), expected);
    }
    // What cosign writes unless it is told otherwise: no tag. It needs matchRepository, as with skopeo.
    let store = store(&[layer(&key, payload(&manifest().digest, "quay.io/team/app"))]);
    let reason = reason(check(&one(&key), &store).await);
    assert!(matches!(reason, Reason::NoTag { .. }), "{reason}");
    assert!(reason.to_string().contains("matchRepository"));
    let mut requirement = signed_by(&key.public_key_pem());
    requirement["signedIdentity"] = json!({"type": "matchRepository"});
    check(&policy(&json!([requirement])), &store).await.unwrap();
}

#[tokio::test]
async fn a_signature_of_another_kind_is_refused() {
    let key = KeyPair::generate().unwrap();
    let atomic = simple_payload("atomic container signature", &manifest().digest, IMAGE);
    let store = store(&[layer(&key, atomic)]);
    assert!(matches!(
        reason(check(&one(&key), &store).await),
        Reason::Format { .. }
    ));
}

#[tokio::test]
async fn a_layer_without_a_signature_is_refused() {
    let key = KeyPair::generate().unwrap();
    for annotations in [
        json!({}),
        json!({"dev.cosignproject.cosign/signature": "%"}),
    ] {
        let store = store(&[(own_payload(), annotations)]);
        assert!(matches!(
            reason(check(&one(&key), &store).await),
            Reason::Format { .. }
        ));
    }
}

#[tokio::test]
async fn one_good_signature_among_bad_ones_is_enough() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let bad = layer(&other, own_payload());
    let good = layer(&key, own_payload());
    let all = store(&[bad.clone(), good]);
    check(&one(&key), &all).await.unwrap();
    // And where none is good, each has its reason.
    let stale = layer(&key, payload(&Digest::of(b"old"), IMAGE));
    let refusal = refusal(check(&one(&key), &store(&[bad, stale])).await);
    let reasons: Vec<_> = refusal.unmet[0].reasons.iter().map(|it| &it.1).collect();
    assert!(matches!(
        reasons.as_slice(),
        [Reason::Key(_), Reason::Digest { .. }]
    ));
}

#[tokio::test]
async fn of_many_signatures_the_newest_count_and_all_are_told_shortly() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (good, bad) = (layer(&key, own_payload()), layer(&other, own_payload()));
    // Cosign appends: one more than are looked at, with the good one as the newest, then as the oldest.
    let mut layers = vec![bad.clone(); SIGNATURES_MAX + 8];
    layers.push(good);
    check(&one(&key), &store(&layers)).await.unwrap();
    layers.reverse();
    let store_of_many = store(&layers);
    let error = refusal(check(&one(&key), &store_of_many).await).to_string();
    let words = "the oldest 9 of 41 signatures were not looked at";
    assert!(error.contains(words), "{error}");
    {
        let asked = store_of_many.asked.lock().unwrap();
        let blobs = asked.iter().filter(|what| what.starts_with("blob"));
        assert_eq!(blobs.count(), SIGNATURES_MAX);
    }
    let text = refusal(check(&one(&key), &store(&vec![bad; SIGNATURES_MAX])).await).to_string();
    assert!(text.contains("and 16 more") && text.len() < 8000, "{text}");
}

#[tokio::test]
async fn a_payload_that_is_too_large_is_not_even_fetched() {
    let key = KeyPair::generate().unwrap();
    let store = store(&[layer(&key, vec![b' '; 70_000])]);
    assert!(matches!(
        reason(check(&one(&key), &store).await),
        Reason::TooMany { found: 70_000, .. }
    ));
    let asked = store.asked.lock().unwrap();
    assert!(!asked.iter().any(|what| what.starts_with("blob")));
}

#[tokio::test]
async fn every_requirement_must_be_met() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let both = policy(&json!([
        {"type": "insecureAcceptAnything"},
        signed_by(&key.public_key_pem()),
        signed_by(&other.public_key_pem()),
    ]));
    let (by_key, by_other) = (layer(&key, own_payload()), layer(&other, own_payload()));
    let refusal = refusal(check(&both, &store(std::slice::from_ref(&by_key))).await);
    assert_eq!(refusal.unmet.len(), 1);
    check(&both, &store(&[by_key, by_other])).await.unwrap();
}

#[tokio::test]
async fn a_key_with_a_log_needs_its_entry() {
    let (key, log, other) = (KeyPair::generate().unwrap(), Log::new(), Log::new());
    let mut requirement = signed_by(&key.public_key_pem());
    requirement["rekorPublicKeyDatas"] = json!([base64(log.pem())]);
    let policy = policy(&json!([requirement]));
    let (payload, annotations) = layer(&key, own_payload());
    let signature = key.sign(&payload).unwrap();
    let with = |bundle: Value, signature: &[u8]| {
        let text = bundle.to_string();
        let annotations = json!({"dev.cosignproject.cosign/signature": base64(signature),
            "dev.sigstore.cosign/bundle": text});
        store(&[(own_payload(), annotations)])
    };
    let logged = hashedrekord(&payload, &signature, &key.public_key_pem());
    check(&policy, &with(log.annotation(&logged), &signature))
        .await
        .unwrap();

    let without = store(&[(payload.clone(), annotations)]);
    assert!(matches!(
        reason(check(&policy, &without).await),
        Reason::NoEntry(_)
    ));
    let forged = with(other.annotation(&logged), &signature);
    assert_eq!(
        reason(check(&policy, &forged).await),
        Reason::EntryTimestamp
    );
    let stranger = KeyPair::generate().unwrap().public_key_pem();
    let logged = hashedrekord(&payload, &signature, &stranger);
    let swapped = with(log.annotation(&logged), &signature);
    assert_eq!(
        reason(check(&policy, &swapped).await),
        Reason::Entry("certificate or key")
    );
}
