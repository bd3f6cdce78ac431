//! Sigstore bundles as referrers, as cosign 3 pushes them.

use image_rs::Digest;
use image_rs::signature::Reason;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};

use crate::maker::{
    EMAIL, Fulcio, ISSUER, Identity, Log, Logged, Login, base64, dsse, hashedrekord, intoto,
};
use crate::store::{Store, check, index, manifest, policy, reason};

const TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// A keyless bundle, each part of which a test can spoil.
struct Kit {
    fulcio: Fulcio,
    log: Log,
    identity: Identity,
    statement: Value,
    requirement: Value,
}

impl Kit {
    fn new() -> Self {
        let (fulcio, log) = (Fulcio::new(), Log::new());
        let identity = fulcio.issue(&Login::default(), None);
        let requirement = json!({
            "type": "sigstoreSigned",
            // cosign 3 sends no chain: the intermediate is the owner's to know.
            "fulcio": {"caData": base64(fulcio.chain()), "oidcIssuer": ISSUER, "subjectEmail": EMAIL},
            "rekorPublicKeyData": base64(log.pem()),
            "signedIdentity": {"type": "matchDigest"},
        });
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": manifest().digest.hex()}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        });
        Self {
            fulcio,
            log,
            identity,
            statement,
            requirement,
        }
    }

    fn sign(&self) -> (Vec<u8>, Vec<u8>) {
        let payload = serde_json::to_vec(&self.statement).unwrap();
        let head = format!("DSSEv1 28 {IN_TOTO} {} ", payload.len());
        let message = [head.as_bytes(), &payload].concat();
        let signature = self.identity.key.sign(&message).unwrap();
        (payload, signature)
    }

    fn bundle(&self) -> Value {
        self.bundle_logged(dsse)
    }

    fn bundle_logged(&self, entry: fn(&[u8], &[u8], &str) -> Logged) -> Value {
        let (payload, signature) = self.sign();
        let entry = self
            .log
            .entry(&entry(&payload, &signature, &self.identity.pem));
        let certificate = json!({"rawBytes": base64(&self.identity.der)});
        envelope(
            &payload,
            &signature,
            &json!({"certificate": certificate, "tlogEntries": [entry]}),
        )
    }

    async fn judge(&self, bundle: &Value) -> Result<(), image_rs::policy::PolicyError> {
        check(&policy(&json!([self.requirement])), &referred(bundle)).await
    }
}

fn envelope(payload: &[u8], signature: &[u8], material: &Value) -> Value {
    json!({
        "mediaType": TYPE, "verificationMaterial": material,
        "dsseEnvelope": {"payload": base64(payload), "payloadType": IN_TOTO,
            "signatures": [{"sig": base64(signature), "keyid": ""}]},
    })
}

fn referred(bundle: &Value) -> Store {
    let mut store = Store::default();
    let layers = [(TYPE, serde_json::to_vec(bundle).unwrap(), json!({}))];
    let artifact = store.artifact("x", TYPE, &layers);
    store.refer(&manifest().digest, &[(TYPE, artifact)]);
    store
}

#[tokio::test]
async fn a_bundle_counts_with_either_kind_of_entry() {
    let kit = Kit::new();
    kit.judge(&kit.bundle()).await.unwrap();
    kit.judge(&kit.bundle_logged(intoto)).await.unwrap();
    assert!(matches!(
        reason(kit.judge(&kit.bundle_logged(hashedrekord)).await),
        Reason::Entry("kind of signature")
    ));
}

#[tokio::test]
async fn a_chain_in_the_bundle_leads_to_the_root_alone() {
    let mut kit = Kit::new();
    kit.requirement["fulcio"]["caData"] = json!(base64(kit.fulcio.root()));
    let mut bundle = kit.bundle();
    assert!(matches!(reason(kit.judge(&bundle).await), Reason::Chain(_)));
    let material = bundle["verificationMaterial"].as_object_mut().unwrap();
    material.remove("certificate");
    let chain = [&kit.identity.der, &kit.fulcio.intermediate_der()];
    let chain: Vec<Value> = chain
        .iter()
        .map(|der| json!({"rawBytes": base64(der)}))
        .collect();
    material.insert(
        "x509CertificateChain".to_owned(),
        json!({"certificates": chain}),
    );
    kit.judge(&bundle).await.unwrap();
}

#[tokio::test]
async fn a_bundle_is_found_by_the_tag_where_a_registry_has_no_referrers() {
    let kit = Kit::new();
    let mut store = referred(&kit.bundle());
    let (subject, list) = store.referrers.drain().next().unwrap();
    store
        .manifests
        .insert(format!("sha256-{}", subject.hex()), list);
    check(&policy(&json!([kit.requirement])), &store)
        .await
        .unwrap();
    // Some lists do not say what they list.
    let artifact = Digest::of(&store.manifests["x"]);
    let tag = format!("sha256-{}", subject.hex());
    store.manifests.insert(tag, index(&[("", artifact)]));
    check(&policy(&json!([kit.requirement])), &store)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_attestation_is_not_a_signature() {
    let mut kit = Kit::new();
    kit.statement["predicateType"] = json!("https://slsa.dev/provenance/v1");
    assert_eq!(
        reason(kit.judge(&kit.bundle()).await),
        Reason::Predicate("https://slsa.dev/provenance/v1".to_owned())
    );
}

#[tokio::test]
async fn a_bundle_for_another_manifest_is_refused() {
    let mut kit = Kit::new();
    let signed = Digest::of(b"other");
    kit.statement["subject"][0]["digest"]["sha256"] = json!(signed.hex());
    assert_eq!(
        reason(kit.judge(&kit.bundle()).await),
        Reason::Digest { signed }
    );
    kit.statement["subject"] = json!([]);
    assert!(matches!(
        reason(kit.judge(&kit.bundle()).await),
        Reason::Format { .. }
    ));
}

#[tokio::test]
async fn a_bundle_that_names_no_repository_counts_only_where_the_owner_says_so() {
    let mut kit = Kit::new();
    kit.requirement["signedIdentity"] = json!({"type": "matchRepository"});
    let rule = "matchRepository";
    assert_eq!(
        reason(kit.judge(&kit.bundle()).await),
        Reason::NoIdentity { rule }
    );
    kit.statement["subject"][0]["name"] = json!("quay.io/team/app");
    kit.judge(&kit.bundle()).await.unwrap();
    kit.statement["subject"][0]["name"] = json!("quay.io/team/other");
    assert!(matches!(
        reason(kit.judge(&kit.bundle()).await),
        Reason::Identity { .. }
    ));
}

#[tokio::test]
async fn a_changed_envelope_is_refused() {
    let kit = Kit::new();
    let mut bundle = kit.bundle();
    bundle["dsseEnvelope"]["payload"] = json!(base64(b"{}"));
    assert_eq!(reason(kit.judge(&bundle).await), Reason::Entry("payload"));
    let mut bundle = kit.bundle();
    bundle["dsseEnvelope"]["payloadType"] = json!("text/plain");
    assert_eq!(
        reason(kit.judge(&bundle).await),
        Reason::Key("the key of its certificate")
    );
    let mut bundle = kit.bundle();
    bundle["dsseEnvelope"]["signatures"] = json!([]);
    assert!(matches!(
        reason(kit.judge(&bundle).await),
        Reason::TooMany { found: 0, .. }
    ));
}

#[tokio::test]
async fn each_part_of_a_proof_must_hold() {
    let kit = Kit::new();
    let good = kit.bundle();
    let entry = "/verificationMaterial/tlogEntries/0";
    let spoil = |path: &str, value: Value| {
        let mut bundle = good.clone();
        *bundle.pointer_mut(&format!("{entry}{path}")).unwrap() = value;
        bundle
    };
    let hash = json!(base64([7; 32]));
    let other_tree = Kit::new().bundle();
    let other_checkpoint = other_tree
        .pointer(&format!("{entry}/inclusionProof/checkpoint/envelope"))
        .unwrap();
    for (path, value, why) in [
        ("/inclusionProof/rootHash", hash.clone(), "does not lead"),
        ("/inclusionProof/hashes/0", hash, "does not lead"),
        ("/inclusionProof/logIndex", json!("0"), "does not lead"),
        ("/inclusionProof/logIndex", json!("99"), "does not lead"),
        ("/inclusionProof/hashes/0", json!("AAAA"), "32 bytes"),
        ("/inclusionProof/treeSize", json!("4"), "another tree"),
        (
            "/inclusionProof/checkpoint/envelope",
            other_checkpoint.clone(),
            "policy's Rekor",
        ),
        (
            "/inclusionProof/checkpoint/envelope",
            json!("x"),
            "malformed",
        ),
    ] {
        match reason(kit.judge(&spoil(path, value)).await) {
            Reason::Proof(found) => assert!(found.contains(why), "{path}: {found}"),
            other => panic!("{path}: {other}"),
        }
    }
    // The four bytes that name the key are another's.
    let checkpoint = good
        .pointer(&format!("{entry}/inclusionProof/checkpoint/envelope"))
        .and_then(Value::as_str)
        .unwrap();
    let (head, signature) = checkpoint.rsplit_once(' ').unwrap();
    let hinted = format!("{head} AAAA{}", &signature[4..]);
    assert!(matches!(
        reason(
            kit.judge(&spoil("/inclusionProof/checkpoint/envelope", json!(hinted)))
                .await
        ),
        Reason::Proof(_)
    ));
    let tampered = spoil("/canonicalizedBody", json!(base64(b"{}")));
    assert_eq!(reason(kit.judge(&tampered).await), Reason::EntryTimestamp);
    let later = spoil("/integratedTime", json!("1767229999"));
    assert_eq!(reason(kit.judge(&later).await), Reason::EntryTimestamp);
}

#[tokio::test]
async fn a_proof_without_a_promise_dates_no_certificate() {
    let kit = Kit::new();
    let mut bundle = kit.bundle();
    let entry = bundle
        .pointer_mut("/verificationMaterial/tlogEntries/0")
        .unwrap();
    entry.as_object_mut().unwrap().remove("inclusionPromise");
    assert!(matches!(
        reason(kit.judge(&bundle).await),
        Reason::NoEntry(why) if why.contains("timestamp")
    ));
}

#[tokio::test]
async fn a_proof_alone_is_enough_for_a_key() {
    let kit = Kit::new();
    let pem = kit.identity.key.public_key_pem();
    let (payload, signature) = kit.sign();
    let mut entry = kit.log.entry(&dsse(&payload, &signature, &pem));
    entry.as_object_mut().unwrap().remove("inclusionPromise");
    let material = json!({"publicKey": {"hint": "x"}, "tlogEntries": [entry]});
    let mut bundle = envelope(&payload, &signature, &material);
    let requirement = json!({
        "type": "sigstoreSigned", "keyData": base64(&pem), "rekorPublicKeyData": base64(kit.log.pem()),
        "signedIdentity": {"type": "matchDigest"},
    });
    check(&policy(&json!([requirement])), &referred(&bundle))
        .await
        .unwrap();
    let entry = bundle
        .pointer_mut("/verificationMaterial/tlogEntries/0")
        .unwrap();
    entry.as_object_mut().unwrap().remove("inclusionProof");
    assert!(matches!(
        reason(check(&policy(&json!([requirement])), &referred(&bundle)).await),
        Reason::NoEntry(_)
    ));
}

#[tokio::test]
async fn the_manifest_itself_may_be_what_is_signed() {
    let key = KeyPair::generate().unwrap();
    let document = manifest();
    let bundle = |digest: &Digest, signature: Vec<u8>| {
        json!({
            "mediaType": TYPE, "verificationMaterial": {"publicKey": {"hint": ""}},
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": base64(hex::decode(digest.hex()).unwrap())},
                "signature": base64(signature)},
        })
    };
    let requirement = json!({"type": "sigstoreSigned", "keyData": base64(key.public_key_pem()),
        "signedIdentity": {"type": "matchDigest"}});
    let policy = policy(&json!([requirement]));
    let signature = key.sign(&document.bytes).unwrap();
    let good = bundle(&document.digest, signature.clone());
    check(&policy, &referred(&good)).await.unwrap();
    let other = Digest::of(b"other");
    let lying = bundle(&other, signature);
    assert_eq!(
        reason(check(&policy, &referred(&lying)).await),
        Reason::Digest { signed: other }
    );
    let forged = bundle(&document.digest, key.sign(b"other").unwrap());
    assert!(matches!(
        reason(check(&policy, &referred(&forged)).await),
        Reason::Key(_)
    ));
}

#[tokio::test]
async fn what_a_bundle_has_too_much_or_too_old_is_named() {
    let kit = Kit::new();
    let mut unknown = kit.bundle();
    unknown["verificationMaterial"]["new"] = json!(1);
    assert!(matches!(
        reason(kit.judge(&unknown).await),
        Reason::Format { detail, .. } if detail.contains("new")
    ));
    let mut old = kit.bundle();
    old["mediaType"] = json!("application/vnd.dev.sigstore.bundle+json;version=0.1");
    assert!(matches!(
        reason(kit.judge(&old).await),
        Reason::Unsupported(_)
    ));
    let mut many = kit.bundle();
    let entry = many["verificationMaterial"]["tlogEntries"][0].clone();
    many["verificationMaterial"]["tlogEntries"] = json!(vec![entry; 9]);
    assert!(matches!(
        reason(kit.judge(&many).await),
        Reason::TooMany { found: 9, .. }
    ));
}

#[tokio::test]
async fn a_signature_by_notation_is_named_as_what_it_is() {
    let kit = Kit::new();
    let mut store = Store::default();
    let digest = Digest::of(b"n");
    store.refer(
        &manifest().digest,
        &[("application/vnd.cncf.notary.signature", digest)],
    );
    assert_eq!(
        reason(check(&policy(&json!([kit.requirement])), &store).await),
        Reason::Unsupported("a signature by notation".to_owned())
    );
}
