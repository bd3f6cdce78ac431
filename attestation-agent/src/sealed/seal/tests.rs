//! What is sealed opens under its terms, and under no others.

use super::super::{Content, Signed, VerifyingKey};
use super::*;

const KID: &str = "kbs:///default/key/signing";

fn resource(tag: &str) -> ResourceUri {
    format!("kbs:///default/secret/{tag}").parse().unwrap()
}

fn signer() -> (Sealer, VerifyingKey) {
    let key = SealKey::generate();
    let public = VerifyingKey::from_jwk(KID, key.public_jwk().as_bytes()).unwrap();
    let key = SealKey::from_jwk(key.to_jwk().as_bytes()).unwrap();
    (Sealer::new(&key, KID), public)
}

fn unsigned(payload: &Value) -> String {
    let payload = BASE64_URL_SAFE_NO_PAD.encode(payload.to_string());
    format!("sealed.fakejwsheader.{payload}.fakesignature")
}

#[test]
fn a_vault_names_a_resource_and_its_terms_are_signed() {
    let (sealer, key) = signer();
    let terms = Terms {
        name: Some("PASSWORD".to_owned()),
        init_data: Some("sha256:00".to_owned()),
        lease: Some(std::time::Duration::from_secs(60)),
    };
    let text = sealer.vault(&resource("db"), &terms);
    let signed = Signed::parse(&text).unwrap();
    assert_eq!(signed.kid().unwrap(), KID);
    let payload = signed.verified(KID, &key).unwrap();
    assert!(matches!(payload.content, Content::Vault(uri) if uri == resource("db")));
    assert_eq!(payload.terms, terms);
    assert!(payload.terms.check(Some("PASSWORD"), None).is_err());
}

#[test]
fn an_envelope_opens_with_its_key_alone() {
    let (sealer, key) = signer();
    let (secret, kek) = (Secret::from(b"hunter2".to_vec()), Secret::from(vec![7; 32]));
    let text = sealer.envelope(&secret, &resource("kek"), &kek, &Terms::default());
    let text = format!("{}\n", text.unwrap());
    let payload = Signed::parse(&text).unwrap().verified(KID, &key).unwrap();
    let Content::Envelope(envelope) = payload.content else {
        panic!("a vault")
    };
    assert_eq!(envelope.kek(), &resource("kek"));
    assert_eq!(envelope.open(&kek).ok().unwrap().expose(), b"hunter2");
    for other in [vec![8; 32], vec![7; 31], Vec::new()] {
        assert!(envelope.open(&Secret::from(other)).is_err());
    }
}

#[test]
fn no_byte_of_a_sealed_secret_can_be_changed() {
    let (sealer, key) = signer();
    let text = sealer.vault(&resource("db"), &Terms::default());
    for at in PREFIX.len()..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        let opened = Signed::parse(&changed).and_then(|signed| {
            let kid = signed.kid()?;
            if kid != KID {
                return Err(SealedError::UnknownKey { kid });
            }
            signed.verified(KID, &key).map(drop)
        });
        assert!(opened.is_err(), "byte {at}");
    }
    let (_, other) = signer();
    let other = Signed::parse(&text).unwrap().verified(KID, &other);
    assert!(matches!(other, Err(SealedError::Signature { .. })));
}

#[test]
fn what_peers_write_without_a_signature_is_read_only_where_asked() {
    let vault = json!({
        "version": "0.1.0", "type": "vault", "name": "kbs:///default/secret/db",
        "provider": "kbs", "provider_settings": {}, "annotations": {},
    });
    let text = unsigned(&vault);
    assert!(Signed::parse(&text).unwrap().kid().is_err());
    assert!(Signed::parse(&text).unwrap().unverified().is_ok());
}

#[test]
fn what_is_not_supported_is_named() {
    let vault = |member: &str, value: Value| {
        let mut vault = json!({
            "version": "0.1.0", "type": "vault", "name": "kbs:///default/secret/db",
            "provider": "kbs", "provider_settings": {}, "annotations": {},
        });
        vault[member] = value;
        let text = unsigned(&vault);
        let read = Signed::parse(&text).unwrap().unverified();
        read.unwrap_err().to_string()
    };
    for (member, value, named) in [
        ("version", json!("0.2.0"), "0.2.0"),
        ("type", json!("jar"), "jar"),
        ("provider", json!("aliyun"), "aliyun"),
        ("provider_settings", json!({"region": "x"}), "region"),
        ("name", json!("secret"), "secret"),
        ("more", json!(1), "not known"),
        (
            "annotations",
            json!({"cloister.leese": 1}),
            "cloister.leese",
        ),
        (
            "annotations",
            json!({"cloister.lease-seconds": 1}),
            "seconds",
        ),
    ] {
        let error = vault(member, value);
        assert!(error.contains(named), "{error}");
    }
    let mut envelope = json!({
        "version": "0.1.0", "type": "envelope", "provider": "kbs", "key_id": "kbs:///a/b/c",
        "encrypted_key": "", "encrypted_data": "", "wrap_type": "A256CTR", "iv": "",
        "provider_settings": {}, "annotations": {},
    });
    let refused = |envelope: &Value| {
        let text = unsigned(envelope);
        Signed::parse(&text).unwrap().unverified().unwrap_err()
    };
    assert!(refused(&envelope).to_string().contains("A256GCM"));
    envelope["wrap_type"] = json!("A256GCM");
    assert!(refused(&envelope).to_string().contains("iv"));
}

#[test]
fn what_is_no_sealed_secret_is_refused() {
    for text in [
        "",
        "sealed.",
        "sealed.a.b",
        "sealed.a..c",
        "sealed.a.b.c.d",
        "a.b.c",
    ] {
        assert_eq!(Signed::parse(text).err(), Some(SealedError::Form), "{text}");
    }
    let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"k"}"#);
    let text = format!("sealed.{none}.e30.");
    let kid = Signed::parse(&text).unwrap().kid();
    assert_eq!(kid, Err(SealedError::Algorithm("none".to_owned())));
}
