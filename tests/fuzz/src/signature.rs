//! Signatures as a registry or a lookaside serves them: all of it comes before anybody is known to have signed it.
//!
//! The keys and signatures of `signature/` were made for this by openssl and gpg.

use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use image_rs::registry::RegistryError;
use image_rs::signature::{self, Documents, Lookaside, Signable, SignatureStore};
use image_rs::{Digest, Policy};
use serde_json::{Value, json};

use crate::Target;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "signature_annotations",
        run: annotations,
        seeds: annotation_seeds,
    },
    Target {
        name: "signature_bundle",
        run: bundle,
        seeds: bundles,
    },
    Target {
        name: "signature_gpg",
        run: gpg,
        seeds: messages,
    },
    Target {
        name: "signature_referrers",
        run: referrers,
        seeds: lists,
    },
];

const KEY: &str = include_str!("signature/key.pem");
const ROOT: &str = include_str!("signature/root.pem");
const LEAF: &str = include_str!("signature/leaf.pem");
const RING: &str = include_str!("signature/ring.asc");
const PLAIN: &str = include_str!("signature/plain.b64");
const COMPRESSED: &str = include_str!("signature/compressed.b64");
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const COSIGN: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// 2030-01-01, when the certificates are valid.
const NOW: u64 = 1_893_456_000;

/// A repository that has one thing.
#[derive(Default)]
struct Store {
    manifest: Option<Bytes>,
    blob: Bytes,
    referrers: Option<Bytes>,
    aside: Option<Bytes>,
}

#[async_trait]
impl SignatureStore for Store {
    async fn manifest(&self, _: &str) -> Result<Option<Bytes>, RegistryError> {
        Ok(self.manifest.clone())
    }

    async fn blob(&self, _: &Digest, _: usize) -> Result<Bytes, RegistryError> {
        Ok(self.blob.clone())
    }

    async fn referrers(&self, _: &Digest) -> Result<Option<Bytes>, RegistryError> {
        Ok(self.referrers.clone())
    }

    async fn simple_signatures(&self, _: &Digest) -> Result<Option<Bytes>, RegistryError> {
        Ok(self.aside.clone())
    }

    async fn aside(&self, url: &str, _: usize) -> Result<Option<Bytes>, RegistryError> {
        Ok(self.aside.clone().filter(|_| url.ends_with("-1")))
    }
}

fn policy() -> Option<Policy> {
    let text = |text: &str| STANDARD.encode(text);
    let sigstore = |author: &str, value: Value| {
        json!({"type": "sigstoreSigned", author: value, "rekorPublicKeyData": text(KEY),
               "signedIdentity": {"type": "matchDigest"}})
    };
    let mut pki = sigstore(
        "pki",
        json!({"caRootsData": text(ROOT), "subjectEmail": "dev@team.example"}),
    );
    pki.as_object_mut()?.remove("rekorPublicKeyData");
    let fulcio =
        json!({"caData": text(ROOT), "oidcIssuer": "i", "subjectEmail": "dev@team.example"});
    let policy = json!({"default": [
        sigstore("keyData", json!(text(KEY))),
        sigstore("fulcio", fulcio),
        pki,
        {"type": "signedBy", "keyType": "GPGKeys", "keyData": text(RING)},
    ]});
    Policy::from_json(policy.to_string().as_bytes()).ok()
}

/// Nothing here is signed by all whom the policy asks for, so that an acceptance is a fault.
fn judge(store: &Store) {
    let bytes = Bytes::from_static(b"{}");
    let document = Signable {
        digest: Digest::of(&bytes),
        bytes,
    };
    let lookaside = Lookaside::from_json(br#"{"default-docker": {"lookaside": "file:///x"}}"#);
    let image = "registry.example/a/b:c".parse();
    let (Some(policy), Ok(documents), Ok(lookaside), Ok(image)) =
        (policy(), Documents::new(document, None), lookaside, image)
    else {
        panic!("the target's own inputs are good")
    };
    let Ok(demand) = policy.demand(&image) else {
        panic!("the policy asks for signatures")
    };
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let judged = signature::check(&demand, &image, &documents, store, &lookaside, now);
    match judged.now_or_never() {
        Some(Err(refusal)) => assert!(!refusal.to_string().is_empty()),
        Some(Ok(())) => panic!("accepted"),
        None => panic!("it waits for somebody"),
    }
}

fn artifact(media_type: &str, annotations: &Value) -> Option<Bytes> {
    let layer = json!({"mediaType": media_type, "digest": Digest::of(b""), "size": 9, "annotations": annotations});
    let manifest = json!({
        "schemaVersion": 2, "layers": [layer],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2},
    });
    Some(manifest.to_string().into())
}

fn annotations(data: &[u8]) {
    let Ok(annotations) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    judge(&Store {
        manifest: artifact(COSIGN, &annotations),
        blob: Bytes::from_static(b"payload"),
        ..Store::default()
    });
}

fn bundle(data: &[u8]) {
    judge(&Store {
        manifest: artifact(BUNDLE, &json!({})),
        blob: Bytes::copy_from_slice(data),
        ..Store::default()
    });
}

fn gpg(data: &[u8]) {
    judge(&Store {
        aside: Some(Bytes::copy_from_slice(data)),
        ..Store::default()
    });
    let _ = Lookaside::from_json(data);
}

fn referrers(data: &[u8]) {
    judge(&Store {
        referrers: Some(Bytes::copy_from_slice(data)),
        ..Store::default()
    });
}

fn body() -> String {
    let body = json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
        "data": {"hash": {"algorithm": "sha256", "value": "00"}},
        "signature": {"content": "AAAA", "publicKey": {"content": STANDARD.encode(LEAF)}}}});
    STANDARD.encode(body.to_string())
}

fn annotation_seeds() -> Vec<Vec<u8>> {
    let bundle = json!({"SignedEntryTimestamp": "AAAA",
        "Payload": {"body": body(), "integratedTime": NOW, "logIndex": 1, "logID": "00"}});
    let seed = json!({
        "dev.cosignproject.cosign/signature": "AAAA", "dev.sigstore.cosign/certificate": LEAF,
        "dev.sigstore.cosign/chain": ROOT, "dev.sigstore.cosign/bundle": bundle.to_string(),
    });
    vec![seed.to_string().into_bytes()]
}

fn bundles() -> Vec<Vec<u8>> {
    let der: String = LEAF.lines().filter(|line| !line.starts_with('-')).collect();
    let hash = STANDARD.encode([7; 32]);
    let note = format!("log - 1\n2\n{hash}\n\n\u{2014} log AAAAAAAA\n");
    let proof = json!({"logIndex": "1", "rootHash": hash, "treeSize": "2", "hashes": [hash],
        "checkpoint": {"envelope": note}});
    let bundle = |content: &str, value: Value| {
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"certificate": {"rawBytes": der}, "tlogEntries": [{
                "logIndex": "1", "logId": {"keyId": hash}, "integratedTime": "1893456000",
                "inclusionProof": proof, "canonicalizedBody": body()}]},
            content: value,
        });
        bundle.to_string().into_bytes()
    };
    let envelope = json!({"payload": "e30=", "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "AAAA"}]});
    let digest: String = Digest::of(b"{}").hex().to_owned();
    let digest: Vec<u8> = digest.into_bytes().chunks(2).map(from_hex).collect();
    let message = json!({"messageDigest": {"algorithm": "SHA2_256", "digest": STANDARD.encode(digest)},
        "signature": "AAAA"});
    vec![
        bundle("dsseEnvelope", envelope),
        bundle("messageSignature", message),
    ]
}

fn from_hex(pair: &[u8]) -> u8 {
    std::str::from_utf8(pair)
        .ok()
        .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        .unwrap_or_default()
}

fn messages() -> Vec<Vec<u8>> {
    let blob = |text: &str| STANDARD.decode(text.replace('\n', "")).unwrap_or_default();
    vec![blob(PLAIN), blob(COMPRESSED), br#"{"docker": {}}"#.to_vec()]
}

fn lists() -> Vec<Vec<u8>> {
    let list = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "m", "artifactType": BUNDLE, "digest": Digest::of(b"x"), "size": 1}]});
    vec![list.to_string().into_bytes()]
}
