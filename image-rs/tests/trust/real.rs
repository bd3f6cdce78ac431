//! Signatures in a real registry, through a whole pull; the simple ones are by skopeo and gpg. (Debian's skopeo is built
//! without sigstore, so that those are made here.)

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use image_rs::policy::PolicyError;
use image_rs::signature::{Lookaside, Reason};
use image_rs::{Digest, Policy, PullConfig, PullError};
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use crate::maker::{base64, payload};
use crate::room::{LayerBuilder, NoKeys, Pack, Room, need_tool, push_image};
use crate::store::{index, policy, reason, refusal};

const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A registry with one image, `plain:v1`, which nobody signed.
async fn room() -> Option<Room> {
    if !need_tool("skopeo") || !need_tool("gpg") {
        return None;
    }
    let room = Room::open().await?;
    let layer = LayerBuilder::new().file("motd", "hello").finish();
    push_image(&room.image("plain:v1"), &[(layer, Pack::Gzip)], None).await;
    Some(room)
}

/// Runs skopeo with a `registries.d` that writes attachments, and simple signatures into a directory.
fn skopeo(room: &Room, args: &[&str], home: Option<&Path>) {
    let registries = room.path("registries.d");
    std::fs::create_dir_all(&registries).unwrap();
    let config = json!({"default-docker": {
        "use-sigstore-attachments": true, "lookaside": place(room), "lookaside-staging": place(room)}});
    std::fs::write(registries.join("all.yaml"), config.to_string()).unwrap();
    let mut command = Command::new("skopeo");
    if let Some(home) = home {
        command.env("GNUPGHOME", home);
    }
    let output = command
        .arg("--insecure-policy")
        .arg("--registries.d")
        .arg(&registries)
        .args(args)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {args:?}: {errors}");
}

fn place(room: &Room) -> String {
    format!("file://{}", room.path("lookaside").display())
}

async fn pull(room: &Room, policy: Policy, name: &str) -> Result<(), PullError> {
    let mut config = PullConfig::new(policy);
    let lookaside = json!({"default-docker": {"sigstore": place(room)}}).to_string();
    config.lookaside = Lookaside::from_json(lookaside.as_bytes()).unwrap();
    let target = room.path(&format!("root-{}", name.replace([':', '/', '@'], "-")));
    let result = room
        .puller_with(config, Arc::new(NoKeys))
        .pull(&room.image(name), &target)
        .await;
    if result.is_ok() {
        std::fs::remove_dir_all(&target).unwrap();
    } else {
        assert!(!target.exists());
    }
    result.map(|_| ())
}

fn why(result: Result<(), PullError>) -> Result<(), PolicyError> {
    match result {
        Err(PullError::Policy(error)) => Err(error),
        Err(other) => panic!("{other}"),
        Ok(()) => Ok(()),
    }
}

/// Pushes an artifact of one layer.
async fn push(
    room: &Room,
    name: &str,
    media_type: &str,
    layer: Vec<u8>,
    annotations: &Value,
) -> Digest {
    let (registry, image) = (room.registry(), room.image(name));
    let size = layer.len();
    let digest = registry.push_blob(&image, layer.into()).await.unwrap();
    let config = Bytes::from_static(b"{}");
    let config = registry.push_blob(&image, config).await.unwrap();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": media_type, "digest": digest, "size": size, "annotations": annotations}],
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let pushed = registry.push_manifest(&image, kind, manifest.into()).await;
    pushed.unwrap()
}

fn sigstore(key: &KeyPair, identity: &Value) -> Policy {
    policy(
        &json!([{"type": "sigstoreSigned", "keyData": base64(key.public_key_pem()),
        "signedIdentity": identity}]),
    )
}

async fn digest_of(room: &Room, name: &str) -> Digest {
    let puller = room.puller(Arc::new(NoKeys));
    let resolved = puller.resolve(&room.image(name)).await.unwrap();
    resolved.reference_digest
}

#[tokio::test]
async fn what_is_signed_under_cosigns_tag_is_pulled_and_nothing_else() {
    let Some(room) = room().await else { return };
    let key = KeyPair::generate().unwrap();
    let digest = digest_of(&room, "plain:v1").await;
    let payload = payload(&digest, &room.image("plain:v1").to_string());
    let signature = base64(key.sign(&payload).unwrap());
    let tag = format!("plain:sha256-{}.sig", digest.hex());
    let media_type = "application/vnd.dev.cosign.simplesigning.v1+json";
    let annotations = json!({"dev.cosignproject.cosign/signature": signature});
    push(&room, &tag, media_type, payload, &annotations).await;

    let exact = json!({"type": "matchExact"});
    pull(&room, sigstore(&key, &exact), "plain:v1")
        .await
        .unwrap();
    // The signature is for the name that was signed.
    let elsewhere = json!({"type": "exactReference", "dockerReference": "quay.io/a/b:v1"});
    let result = why(pull(&room, sigstore(&key, &elsewhere), "plain:v1").await);
    assert!(matches!(reason(result), Reason::Identity { .. }));
    // A moved tag: the signature of the old image is not one of the new.
    let layer = LayerBuilder::new().file("motd", "evil").finish();
    push_image(&room.image("plain:v1"), &[(layer, Pack::Gzip)], None).await;
    let error = refusal(why(pull(&room, sigstore(&key, &exact), "plain:v1").await));
    assert!(error.unmet[0].reasons.is_empty(), "{error}");
}

#[tokio::test]
async fn a_bundle_is_found_at_a_registry_that_knows_no_referrers() {
    let Some(room) = room().await else { return };
    let key = KeyPair::generate().unwrap();
    let digest = digest_of(&room, "plain:v1").await;
    let hex = hex::decode(digest.hex()).unwrap();
    let manifest = room.registry().manifest(&room.image("plain:v1")).await;
    let bundle = json!({
        "mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": ""}},
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": base64(hex)},
            "signature": base64(key.sign(&manifest.unwrap().bytes).unwrap())},
    });
    let bundle = serde_json::to_vec(&bundle).unwrap();
    let artifact = push(&room, "plain:bundle", BUNDLE, bundle, &json!({})).await;
    let tag = room.image(&format!("plain:sha256-{}", digest.hex()));
    let kind = "application/vnd.oci.image.index.v1+json";
    let list = index(&[(BUNDLE, artifact)]);
    let pushed = room.registry().push_manifest(&tag, kind, list).await;
    pushed.unwrap();
    let identity = json!({"type": "matchDigest"});
    pull(&room, sigstore(&key, &identity), "plain:v1")
        .await
        .unwrap();
    let other = KeyPair::generate().unwrap();
    let result = why(pull(&room, sigstore(&other, &identity), "plain:v1").await);
    assert!(matches!(reason(result), Reason::Key(_)));
}

#[tokio::test]
async fn what_skopeo_signs_with_gpg_is_pulled_and_nothing_else() {
    let Some(room) = room().await else { return };
    let home = tempfile::TempDir::new().unwrap();
    let gpg = |args: &[&str]| {
        let output = Command::new("gpg")
            .args(["--batch", "--quiet", "--passphrase", "", "--homedir"])
            .arg(home.path())
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    };
    let user = "owner@team.example";
    gpg(&["--quick-generate-key", user, "ed25519", "sign", "never"]);
    let ring = gpg(&["--export", user]);
    skopeo(
        &room,
        &[
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--sign-by",
            user,
            &room.docker("plain:v1"),
            &room.docker("simple:v1"),
        ],
        Some(home.path()),
    );
    let signed_by = |ring: &[u8]| {
        policy(&json!([{"type": "signedBy", "keyType": "GPGKeys", "keyData": base64(ring)}]))
    };
    pull(&room, signed_by(&ring), "simple:v1").await.unwrap();
    let error = refusal(why(pull(&room, signed_by(&ring), "plain:v1").await));
    assert!(error.unmet[0].reasons.is_empty(), "{error}");
    gpg(&[
        "--quick-generate-key",
        "other@team.example",
        "ed25519",
        "sign",
        "never",
    ]);
    let other = gpg(&["--export", "other@team.example"]);
    let result = why(pull(&room, signed_by(&other), "simple:v1").await);
    assert!(matches!(reason(result), Reason::Key(_)));
}

#[tokio::test]
async fn what_a_cache_already_has_is_judged_again() {
    let Some(room) = room().await else { return };
    let image = room.image("plain:v1");
    let trusting = room.puller(Arc::new(NoKeys));
    let resolved = trusting.resolve(&image).await.unwrap();
    let strict = room.puller_with(
        PullConfig::new(sigstore(
            &KeyPair::generate().unwrap(),
            &json!({"type": "matchExact"}),
        )),
        Arc::new(NoKeys),
    );
    let result = strict.check_signatures(&image, &resolved.documents).await;
    assert!(refusal(why(result)).unmet[0].reasons.is_empty());
    trusting
        .check_signatures(&image, &resolved.documents)
        .await
        .unwrap();
}
