//! Reading a policy, and deciding by a name alone.

use super::*;

const POLICY: &str = r#"{
    "default": [{"type": "reject"}],
    "transports": {"docker": {
        "ghcr.io": [{"type": "insecureAcceptAnything"}],
        "ghcr.io/evil": [{"type": "reject"}],
        "ghcr.io/evil/but/this:v1": [{"type": "insecureAcceptAnything"}],
        "quay.io/base": [{"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchExact"}}],
        "*.example.com": [{"type": "insecureAcceptAnything"}]
    }, "oci": {"": [{"type": "reject"}]}, "unheard-of": {"x y": [{"type": "reject"}]}}
}"#;

/// Whether the name alone is refused.
fn refused(policy: &Policy, image: &str) -> bool {
    let image = image.parse().unwrap();
    let demand = policy.demand(&image);
    matches!(demand, Err(PolicyError::Refused { .. }))
}

fn key() -> String {
    rcgen::KeyPair::generate().unwrap().public_key_pem()
}

fn default_of(requirement: &str) -> Result<PolicyFile, PolicyError> {
    let text = format!(r#"{{"default":[{requirement}]}}"#);
    PolicyFile::from_json(text.as_bytes())
}

#[test]
fn the_most_specific_scope_decides() {
    let policy = Policy::from_json(POLICY.as_bytes()).unwrap();
    for allowed in ["ghcr.io/a/b", "r.example.com/a", "ghcr.io/evil/but/this:v1"] {
        let image = allowed.parse().unwrap();
        let demand = policy.demand(&image).unwrap();
        assert!(!demand.needs_signatures(), "{allowed}");
    }
    for name in [
        "busybox",
        "ghcr.io/evil/x",
        "ghcr.io/evil/but/this:v2",
        "ghcr.io.evil.com/a/b",
        "quay.io/base/x",
    ] {
        assert!(refused(&policy, name), "{name}");
    }
    assert!(refused(&Policy::reject(), "busybox"));
    assert!(!refused(&Policy::accept_anything(), "busybox"));
}

#[test]
fn a_scope_whose_name_only_contains_another_does_not_count() {
    let text = r#"{"default": [{"type": "reject"}],
        "transports": {"docker": {"example.com/a": [{"type": "insecureAcceptAnything"}]}}}"#;
    let policy = Policy::from_json(text.as_bytes()).unwrap();
    assert!(!refused(&policy, "example.com/a/b"));
    assert!(refused(&policy, "evil.org/example.com/a"));
    assert!(refused(&policy, "example.com/ab"));
}

#[test]
fn one_requirement_that_refuses_is_enough() {
    let text = r#"{"default": [{"type": "insecureAcceptAnything"}, {"type": "reject"}]}"#;
    assert!(refused(
        &Policy::from_json(text.as_bytes()).unwrap(),
        "busybox"
    ));
}

#[test]
fn a_policy_which_says_nothing_or_what_we_do_not_know_is_none() {
    for bad in [
        r"{}",
        r#"{"default":[]}"#,
        r#"{"default":null}"#,
        r#"{"default":[{"type":"maybe"}]}"#,
        r#"{"default":[{"type":"reject","x":1}]}"#,
        r#"{"default":[{"type":"reject"}],"x":1}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[]}}}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"docker://a":[{"type":"reject"}]}}}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"reject"}]}}}"#,
        r#"{"default":[{"type":"reject"}],"transports":{"oci":{"relative":[{"type":"reject"}]}}}"#,
        r#"{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}"#,
    ] {
        assert!(PolicyFile::from_json(bad.as_bytes()).is_err(), "{bad}");
    }
    let long = format!(
        r#"{{"default":[{}]}}"#,
        vec![r#"{"type":"reject"}"#; 40].join(",")
    );
    assert!(PolicyFile::from_json(long.as_bytes()).is_err());
}

#[test]
fn a_requirement_has_exactly_one_source_of_keys() {
    for (bad, why) in [
        (r#"{"type":"sigstoreSigned"}"#, "exactly one of keyPath"),
        (
            r#"{"type":"sigstoreSigned","keyPath":"/a","keyData":"YQ=="}"#,
            "more than one",
        ),
        (r#"{"type":"sigstoreSigned","keyPaths":[]}"#, "empty"),
        (
            r#"{"type":"sigstoreSigned","keyPath":"a"}"#,
            "absolute path",
        ),
        (
            r#"{"type":"sigstoreSigned","keyPath":"kbs://host/a/b/c"}"#,
            "kbs:///",
        ),
        (r#"{"type":"sigstoreSigned","keyData":"%"}"#, "base64"),
        (
            r#"{"type":"sigstoreSigned","fulcio":{"caPath":"/ca","oidcIssuer":"i","subjectEmail":"a@b"}}"#,
            "needs a rekorPublicKey",
        ),
        (
            r#"{"type":"sigstoreSigned","rekorPublicKeyPath":"/r","fulcio":{"caPath":"/ca","oidcIssuer":"i"}}"#,
            "subjectEmail and subjectURI",
        ),
        (
            r#"{"type":"sigstoreSigned","rekorPublicKeyPath":"/r","fulcio":{"oidcIssuer":"i","subjectEmail":"a@b"}}"#,
            "caPath and caData",
        ),
        (
            r#"{"type":"sigstoreSigned","pki":{"caRootsPath":"/ca"}}"#,
            "subjectHostname",
        ),
        (r#"{"type":"signedBy","keyType":"GPGKeys"}"#, "exactly one"),
        (
            r#"{"type":"signedBy","keyType":"X509Certificates","keyPath":"/a"}"#,
            "use GPGKeys",
        ),
        (
            r#"{"type":"signedBy","keyType":"keys","keyPath":"/a"}"#,
            "unknown keyType",
        ),
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyPath":"/a","signedIdentity":{"type":"exactReference","dockerReference":"a"}}"#,
            "dockerReference",
        ),
    ] {
        let error = default_of(bad).unwrap_err().to_string();
        assert!(error.contains(why), "{bad}: {error}");
    }
}

#[test]
fn what_is_no_key_is_refused_when_the_policy_is_loaded_and_not_when_an_image_is() {
    for (bad, why) in [
        (
            r#"{"type":"sigstoreSigned","keyData":"YQ=="}"#,
            "PUBLIC KEY",
        ),
        (
            r#"{"type":"signedBy","keyType":"GPGKeys","keyData":"YQ=="}"#,
            "keyring",
        ),
        (
            r#"{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}"#,
            "kbs:///a/b/c",
        ),
    ] {
        let error = default_of(bad).unwrap().build(&Values::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(why), "{bad}: {error}");
    }
}

/// Gives the key, and notes who was asked for what.
struct Source(String, std::sync::Mutex<Vec<Location>>);

#[async_trait::async_trait]
impl ValueSource for Source {
    async fn value(&self, location: &Location) -> Result<Vec<u8>, ValueError> {
        self.1.lock().unwrap().push(location.clone());
        match location {
            Location::Broker(uri) if uri.ends_with("/denied") => Err("ticket 7".into()),
            _ => Ok(self.0.clone().into_bytes()),
        }
    }
}

#[tokio::test]
async fn each_value_is_fetched_once_before_anything_is_judged() {
    let text = r#"{"default": [{"type": "sigstoreSigned", "keyPath": "kbs:///a/b/c"}],
        "transports": {"docker": {
            "a.example": [{"type": "sigstoreSigned", "keyPaths": ["/k", "kbs:///a/b/c"], "rekorPublicKeyPath": "/k"}]}}}"#;
    let source = Source(key(), std::sync::Mutex::default());
    let policy = PolicyFile::from_json(text.as_bytes()).unwrap();
    let policy = policy.load(&source).await.unwrap();
    assert!(
        policy
            .demand(&"busybox".parse().unwrap())
            .unwrap()
            .needs_signatures()
    );
    assert_eq!(source.1.lock().unwrap().len(), 2);

    let denied = default_of(r#"{"type":"sigstoreSigned","keyPath":"kbs:///a/b/denied"}"#).unwrap();
    let error = denied.load(&source).await.unwrap_err().to_string();
    assert!(
        error.contains("kbs:///a/b/denied") && error.contains("ticket 7"),
        "{error}"
    );
    let file = default_of(r#"{"type":"sigstoreSigned","keyPath":"/no/such/key"}"#).unwrap();
    let error = file.load(&Files).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/key"), "{error}");
}

#[test]
fn a_key_may_stand_in_the_policy_as_base64_and_as_it_is() {
    use base64::Engine as _;
    let pem = key();
    let base64 = base64::engine::general_purpose::STANDARD.encode(&pem);
    for data in [pem, base64] {
        let data = serde_json::Value::from(data);
        let text = format!(r#"{{"default":[{{"type":"sigstoreSigned","keyData":{data}}}]}}"#);
        Policy::from_json(text.as_bytes()).unwrap();
    }
}
