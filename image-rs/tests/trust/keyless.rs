//! `sigstoreSigned` with Fulcio and Rekor, in cosign's older form.

use image_rs::Policy;
use image_rs::signature::Reason;
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType, SigningKey as _};
use serde_json::{Value, json};

use crate::maker::{
    EMAIL, Fulcio, ISSUER, Identity, Log, Logged, Login, SIGNED_AT, base64, hashedrekord, payload,
};
use crate::store::{IMAGE, Store, check, manifest, policy, reason};

/// Everything that a good signature needs, each part of which a test can spoil.
struct Kit {
    fulcio: Fulcio,
    log: Log,
    identity: Identity,
    payload: Vec<u8>,
    signature: Vec<u8>,
    chain: Option<String>,
    logged: Logged,
    requirement: Value,
}

impl Kit {
    fn new() -> Self {
        Self::for_login(&Login::default())
    }

    fn for_login(login: &Login) -> Self {
        let (fulcio, log) = (Fulcio::new(), Log::new());
        let identity = fulcio.issue(login, None);
        let requirement = json!({
            "type": "sigstoreSigned",
            "fulcio": {"caData": base64(fulcio.root()), "oidcIssuer": ISSUER, "subjectEmail": EMAIL},
            "rekorPublicKeyData": base64(log.pem()),
        });
        let payload = payload(&manifest().digest, IMAGE);
        let signature = identity.key.sign(&payload).unwrap();
        Self {
            chain: Some(fulcio.chain()),
            logged: hashedrekord(&payload, &signature, &identity.pem),
            fulcio,
            log,
            identity,
            payload,
            signature,
            requirement,
        }
    }

    fn policy(&self) -> Policy {
        policy(&json!([self.requirement]))
    }

    fn annotations(&self) -> Value {
        let mut annotations = json!({
            "dev.cosignproject.cosign/signature": base64(&self.signature),
            "dev.sigstore.cosign/certificate": self.identity.pem,
            "dev.sigstore.cosign/bundle": self.log.annotation(&self.logged).to_string(),
        });
        if let Some(chain) = &self.chain {
            annotations["dev.sigstore.cosign/chain"] = json!(chain);
        }
        annotations
    }

    async fn judge(&self) -> Result<(), image_rs::policy::PolicyError> {
        self.judge_with(self.annotations()).await
    }

    async fn judge_with(&self, annotations: Value) -> Result<(), image_rs::policy::PolicyError> {
        let mut store = Store::default();
        store.cosign(&manifest(), &[(self.payload.clone(), annotations)]);
        check(&self.policy(), &store).await
    }
}

#[tokio::test]
async fn a_certificate_of_minutes_counts_for_as_long_as_the_log_has_its_time() {
    let kit = Kit::new();
    kit.judge().await.unwrap();
}

#[tokio::test]
async fn a_workflow_is_named_by_its_uri() {
    let uri = "https://github.com/team/app/.github/workflows/release.yml@refs/tags/v1";
    let login = Login {
        subject: SanType::URI(uri.try_into().unwrap()),
        ..Login::default()
    };
    let mut kit = Kit::for_login(&login);
    assert!(matches!(
        reason(kit.judge().await),
        Reason::Subject { found, .. } if found == [uri]
    ));
    let fulcio = kit.requirement["fulcio"].as_object_mut().unwrap();
    fulcio.remove("subjectEmail");
    fulcio.insert("subjectURI".to_owned(), json!(uri));
    kit.judge().await.unwrap();
    // To the letter: a workflow of a branch is not that of the tag.
    kit.requirement["fulcio"]["subjectURI"] = json!(uri.replace("refs/tags/v1", "refs/heads/main"));
    assert!(matches!(reason(kit.judge().await), Reason::Subject { .. }));
}

#[tokio::test]
async fn another_subject_or_issuer_is_refused() {
    let mut kit = Kit::new();
    kit.requirement["fulcio"]["subjectEmail"] = json!("dev@team.example.org");
    assert_eq!(
        reason(kit.judge().await),
        Reason::Subject {
            found: vec![EMAIL.to_owned()],
            wanted: "dev@team.example.org".to_owned(),
        }
    );
    let mut kit = Kit::new();
    kit.requirement["fulcio"]["oidcIssuer"] = json!("https://evil.example");
    assert!(matches!(reason(kit.judge().await), Reason::Issuer { .. }));
    // Two issuers in one certificate are none.
    let kit = Kit::for_login(&Login {
        older_issuer: "https://evil.example",
        ..Login::default()
    });
    assert!(matches!(reason(kit.judge().await), Reason::Issuer { .. }));
}

#[tokio::test]
async fn a_certificate_that_was_not_valid_when_the_log_saw_it_is_refused() {
    for at in [SIGNED_AT - 3600, SIGNED_AT + 3600] {
        let mut kit = Kit::new();
        kit.logged.time = at;
        assert!(matches!(reason(kit.judge().await), Reason::Time { at: found, .. } if found == at));
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let mut kit = Kit::new();
    kit.requirement["fulcio"]["caData"] = json!(base64(Fulcio::new().root()));
    assert!(matches!(reason(kit.judge().await), Reason::Chain(_)));
    // And without the intermediate there is no way to the right one.
    let mut kit = Kit::new();
    kit.chain = None;
    assert!(matches!(reason(kit.judge().await), Reason::Chain(_)));
}

#[tokio::test]
async fn a_certificate_for_something_else_is_refused() {
    let kit = Kit::for_login(&Login {
        usage: ExtendedKeyUsagePurpose::ServerAuth,
        ..Login::default()
    });
    assert!(matches!(reason(kit.judge().await), Reason::Chain(_)));
}

#[tokio::test]
async fn a_chain_that_is_too_long_is_refused() {
    let mut kit = Kit::new();
    kit.chain = Some(kit.fulcio.chain().repeat(5));
    assert!(matches!(reason(kit.judge().await), Reason::Format { .. }));
}

#[tokio::test]
async fn a_timestamp_that_is_not_the_logs_is_refused() {
    let mut kit = Kit::new();
    kit.requirement["rekorPublicKeyData"] = json!(base64(Log::new().pem()));
    assert_eq!(reason(kit.judge().await), Reason::EntryTimestamp);

    let kit = Kit::new();
    for (field, value) in [
        ("integratedTime", json!(SIGNED_AT + 1)),
        ("logIndex", json!(42)),
    ] {
        let mut annotations = kit.annotations();
        let mut bundle = kit.log.annotation(&kit.logged);
        bundle["Payload"][field] = value;
        annotations["dev.sigstore.cosign/bundle"] = json!(bundle.to_string());
        assert_eq!(
            reason(kit.judge_with(annotations).await),
            Reason::EntryTimestamp,
            "{field}"
        );
    }
}

#[tokio::test]
async fn an_entry_for_something_else_is_refused() {
    let mut kit = Kit::new();
    let other = kit.fulcio.issue(&Login::default(), None);
    for (what, logged) in [
        (
            "payload",
            hashedrekord(b"other", &kit.signature, &kit.identity.pem),
        ),
        (
            "signature",
            hashedrekord(&kit.payload, b"other", &kit.identity.pem),
        ),
        (
            "certificate or key",
            hashedrekord(&kit.payload, &kit.signature, &other.pem),
        ),
    ] {
        kit.logged = logged;
        assert_eq!(reason(kit.judge().await), Reason::Entry(what));
    }
    kit.logged.body["kind"] = json!("rpm");
    assert!(matches!(reason(kit.judge().await), Reason::Unsupported(_)));
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let kit = Kit::new();
    let without = |name: &str| {
        let mut annotations = kit.annotations();
        annotations.as_object_mut().unwrap().remove(name);
        annotations
    };
    let no_certificate = kit
        .judge_with(without("dev.sigstore.cosign/certificate"))
        .await;
    assert_eq!(reason(no_certificate), Reason::NoCertificate);
    let no_entry = kit.judge_with(without("dev.sigstore.cosign/bundle")).await;
    assert!(matches!(reason(no_entry), Reason::NoEntry(_)));
}

#[tokio::test]
async fn a_signature_by_another_key_than_the_certificates_is_refused() {
    let mut kit = Kit::new();
    kit.signature = KeyPair::generate().unwrap().sign(&kit.payload).unwrap();
    kit.logged = hashedrekord(&kit.payload, &kit.signature, &kit.identity.pem);
    assert_eq!(
        reason(kit.judge().await),
        Reason::Key("the key of its certificate")
    );
}

#[tokio::test]
async fn where_the_policy_names_a_certificate_log_the_certificate_must_be_in_it() {
    let mut kit = Kit::new();
    let (ct, other) = (Log::new(), Log::new());
    kit.requirement["fulcio"]["ctPublicKeyData"] = json!(base64(ct.pem()));
    assert!(matches!(
        reason(kit.judge().await),
        Reason::CertificateLog(why) if why.contains("no timestamp of one")
    ));
    let login = Login {
        // Something long, so that lengths of the certificate take more bytes.
        extension: Some(vec![5; 300]),
        ..Login::default()
    };
    for (log, good) in [(&ct, true), (&other, false)] {
        kit.identity = kit.fulcio.issue(&login, Some(log));
        kit.signature = kit.identity.key.sign(&kit.payload).unwrap();
        kit.logged = hashedrekord(&kit.payload, &kit.signature, &kit.identity.pem);
        let result = kit.judge().await;
        if good {
            result.unwrap();
        } else {
            assert!(matches!(reason(result), Reason::CertificateLog(_)));
        }
    }
}

#[tokio::test]
async fn an_authority_of_the_owners_needs_no_log() {
    let mut kit = Kit::new();
    let pki = |email: &str| {
        json!({"type": "sigstoreSigned", "pki": {
            "caRootsData": base64(kit.fulcio.root()), "subjectEmail": email}})
    };
    let (good, bad) = (pki(EMAIL), pki("other@team.example"));
    kit.requirement = good;
    // The certificate lasted ten minutes, and nobody says that the signature is as old.
    assert!(matches!(reason(kit.judge().await), Reason::Time { .. }));
    let rekor = json!(base64(kit.log.pem()));
    kit.requirement["rekorPublicKeyData"] = rekor.clone();
    kit.judge().await.unwrap();
    kit.requirement = bad;
    kit.requirement["rekorPublicKeyData"] = rekor;
    assert!(matches!(reason(kit.judge().await), Reason::Subject { .. }));
}
