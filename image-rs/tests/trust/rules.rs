//! Which document a signature may be for, whose name counts, and what is asked of a registry.

use image_rs::signature::{Documents, DocumentsError, Reason, Signable};
use image_rs::{Digest, Policy};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use crate::maker::{base64, payload};
use crate::store::{IMAGE, Store, check, check_as, manifest, policy, reason, refusal, signable};

fn index_of(digest: &Digest) -> Signable {
    signable(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
                       "platform": {"os": "linux", "architecture": "amd64"}}],
    }))
}

fn signed(key: &KeyPair, document: &Signable, name: &str) -> Store {
    let payload = payload(&document.digest, name);
    let signature = base64(key.sign(&payload).unwrap());
    let mut store = Store::default();
    let annotations = json!({"dev.cosignproject.cosign/signature": signature});
    store.cosign(document, &[(payload, annotations)]);
    store
}

fn policy_of(key: &KeyPair, identity: &Value) -> Policy {
    policy(
        &json!([{"type": "sigstoreSigned", "keyData": base64(key.public_key_pem()),
        "signedIdentity": identity}]),
    )
}

#[tokio::test]
async fn a_signature_of_the_index_or_of_the_manifest_taken_from_it_counts() {
    let key = KeyPair::generate().unwrap();
    let policy = policy_of(&key, &json!({"type": "matchExact"}));
    let (manifest, index) = (manifest(), index_of(&manifest().digest));
    let documents = Documents::new(index.clone(), Some(manifest.clone())).unwrap();
    let of_index = signed(&key, &index, IMAGE);
    check_as(&policy, &of_index, IMAGE, &documents)
        .await
        .unwrap();
    let asked = of_index.asked.lock().unwrap().clone();
    assert!(
        !asked.iter().any(|it| it.contains(manifest.digest.hex())),
        "{asked:?}"
    );
    let of_manifest = signed(&key, &manifest, IMAGE);
    check_as(&policy, &of_manifest, IMAGE, &documents)
        .await
        .unwrap();
    // Another image of the index may be signed, and is not this one.
    let of_other = signed(&key, &signable(&json!({"other": 1})), IMAGE);
    refusal(check_as(&policy, &of_other, IMAGE, &documents).await);
}

#[tokio::test]
async fn a_manifest_that_is_not_in_the_index_is_no_part_of_it() {
    let stranger = signable(&json!({"layers": []}));
    let error = Documents::new(index_of(&manifest().digest), Some(stranger)).unwrap_err();
    assert!(matches!(error, DocumentsError::NotListed { .. }), "{error}");
    let lie = Signable {
        digest: Digest::of(b"x"),
        ..manifest()
    };
    let error = Documents::new(lie, None).unwrap_err();
    assert!(matches!(error, DocumentsError::Digest { .. }), "{error}");
    let error = Documents::new(manifest(), Some(manifest())).unwrap_err();
    assert!(matches!(error, DocumentsError::NotListed { .. }), "{error}");
}

#[tokio::test]
async fn a_digest_of_another_algorithm_is_as_good() {
    let key = KeyPair::generate().unwrap();
    let digest: Digest = {
        use sha2::Digest as _;
        let hash = sha2::Sha512::digest(&manifest().bytes);
        format!("sha512:{}", hex::encode(hash)).parse().unwrap()
    };
    let (policy, payload) = (
        policy_of(&key, &json!({"type": "matchExact"})),
        payload(&digest, IMAGE),
    );
    let signature = base64(key.sign(&payload).unwrap());
    let mut store = Store::default();
    let annotations = json!({"dev.cosignproject.cosign/signature": signature});
    store.cosign(&manifest(), &[(payload, annotations)]);
    check(&policy, &store).await.unwrap();
}

#[tokio::test]
async fn the_rule_judges_the_name_that_was_asked_for() {
    let key = KeyPair::generate().unwrap();
    let documents = Documents::new(manifest(), None).unwrap();
    let remap = policy_of(
        &key,
        &json!({"type": "remapIdentity", "prefix": "copy.example/q", "signedPrefix": "quay.io"}),
    );
    let store = signed(&key, &manifest(), IMAGE);
    let copied = "copy.example/q/team/app:v1";
    check_as(&remap, &store, copied, &documents).await.unwrap();
    let exact = policy_of(&key, &json!({"type": "matchExact"}));
    assert!(matches!(
        reason(check_as(&exact, &store, copied, &documents).await),
        Reason::Identity { .. }
    ));
    let pinned = format!("quay.io/team/app@{}", manifest().digest);
    let usual = policy_of(&key, &json!({"type": "matchRepoDigestOrExact"}));
    check_as(&usual, &store, &pinned, &documents).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_fails_is_told_from_one_that_has_nothing() {
    let key = KeyPair::generate().unwrap();
    let policy = policy_of(&key, &json!({"type": "matchExact"}));
    let store = Store {
        broken: Some("referrers"),
        ..Store::default()
    };
    let found = refusal(check(&policy, &store).await);
    assert!(found.lacks_answers(), "{found}");
    assert!(!refusal(check(&policy, &Store::default()).await).lacks_answers());
    // What the other place has is enough.
    let mut store = signed(&key, &manifest(), IMAGE);
    store.broken = Some("referrers");
    check(&policy, &store).await.unwrap();
}

#[tokio::test]
async fn nobody_is_asked_for_what_no_requirement_needs() {
    let store = Store::default();
    check(&Policy::accept_anything(), &store).await.unwrap();
    assert!(store.asked.lock().unwrap().is_empty());
    let key = KeyPair::generate().unwrap();
    refusal(check(&policy_of(&key, &json!({"type": "matchExact"})), &store).await);
    let asked = store.asked.lock().unwrap().clone();
    assert!(
        !asked
            .iter()
            .any(|it| it.starts_with("aside") || it.starts_with("simple"))
    );
}

#[tokio::test]
async fn a_hostile_name_in_a_signature_does_not_reach_a_console() {
    let key = KeyPair::generate().unwrap();
    let policy = policy_of(&key, &json!({"type": "matchExact"}));
    let name = format!("a/b:\u{1b}[2J\n\u{202e}{}", "x".repeat(5000));
    let store = signed(&key, &manifest(), &name);
    let text = refusal(check(&policy, &store).await).to_string();
    assert!(
        text.len() < 1200 && !text.contains(|it: char| it.is_control() || it == '\u{202e}'),
        "{text}"
    );
}
