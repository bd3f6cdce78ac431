//! Administration with tokens of an OpenID Connect server, which is played here on loopback.

use crate::deployment;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Json, Router, routing::get};
use deployment::{Answer, Deployment, SECRET};
use http::{Method, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use kbs_protocol::ErrorKind;
use p256::{
    SecretKey,
    elliptic_curve::Generate,
    pkcs8::{EncodePrivateKey, LineEnding},
};
use serde_json::{Value, json};

const AUDIENCE: &str = "kbs-admin";

struct Issuer {
    url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    fetched: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = Arc::new(Mutex::new(Vec::new()));
        let fetched = Arc::new(AtomicUsize::new(0));
        let document = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let (served, counted) = (Arc::clone(&keys), Arc::clone(&fetched));
        let app = Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(async move || Json(document)),
            )
            .route(
                "/keys",
                get(async move || {
                    counted.fetch_add(1, Ordering::SeqCst);
                    Json(json!({"keys": *served.lock().unwrap()}))
                }),
            );
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, keys, fetched }
    }

    /// Publishes a new key; what signs under it.
    fn key(&self, kid: &str) -> Signer {
        let pem = SecretKey::generate_from_rng(&mut rand::rng())
            .to_pkcs8_pem(LineEnding::LF)
            .unwrap();
        let signer = Signer {
            key: EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
            algorithm: Algorithm::ES256,
            kid: kid.to_owned(),
            issuer: self.url.clone(),
        };
        self.publish(&signer);
        signer
    }

    fn publish(&self, signer: &Signer) {
        let mut jwk = Jwk::from_encoding_key(&signer.key, signer.algorithm).unwrap();
        jwk.common.key_id = Some(signer.kid.clone());
        let jwk = serde_json::to_value(jwk).unwrap();
        self.keys.lock().unwrap().push(jwk);
    }

    fn configured(&self, deployment: &str) -> String {
        format!(
            "{deployment}
             [[admin.issuer]]
             issuer = \"{}\"
             audience = \"{AUDIENCE}\"
             role_claim = \"/realm/roles\"
             [[admin.role]]
             name = \"team\"
             allow = [\"resource:write\", \"resource:read-metadata\"]
             resource_prefix = \"team\"
             ",
            self.url
        )
    }
}

struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    kid: String,
    issuer: String,
}

impl Signer {
    /// A header with an honest token of this role, after `bend` was at its claims.
    fn bearer(&self, role: &str, bend: impl FnOnce(&mut Value)) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mut claims = json!({
            "iss": self.issuer, "aud": [AUDIENCE], "exp": now.as_secs() + 300, "sub": "alice",
            "realm": {"roles": ["unknown", role]},
        });
        bend(&mut claims);
        let header = Header {
            kid: Some(self.kid.clone()),
            ..Header::new(self.algorithm)
        };
        let token = jsonwebtoken::encode(&header, &claims, &self.key).unwrap();
        format!("Bearer {token}")
    }
}

async fn ask(deployment: &Deployment, method: Method, path: &str, bearer: &str) -> Answer {
    let headers = [("authorization", bearer)];
    deployment.ask(method, path, &headers, SECRET).await
}

#[tokio::test]
async fn a_role_of_an_issuer_does_what_it_may_and_the_record_names_who_did() {
    let issuer = Issuer::start().await;
    let signer = issuer.key("1");
    let deployment = Deployment::start_with(&["sample"], |config| issuer.configured(&config));
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", "other/key/a", "--file", &secret]);
    let team = signer.bearer("team", |_| {});
    let set = ask(&deployment, Method::POST, "resource/team/key/a", &team).await;
    assert_eq!(set.status, StatusCode::OK, "{:?}", set.body);
    let list = ask(&deployment, Method::GET, "resource", &team)
        .await
        .json();
    let seen: Vec<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["path"].as_str().unwrap())
        .collect();
    assert_eq!(seen, ["team/key/a"]);
    for (method, path) in [
        (Method::POST, "resource/other/key/a"),
        (Method::POST, "resource/teams/key/a"),
        (Method::GET, "resource-history/other/key/a"),
        (Method::DELETE, "resource/team/key/a"),
        (Method::GET, "record"),
        (Method::POST, "resource-policy"),
    ] {
        let (kind, error) = ask(&deployment, method, path, &team).await.refusal();
        assert_eq!(kind, ErrorKind::AdminRoleDenied, "{path}");
        assert!(error.detail.contains("team"), "{}", error.detail);
    }
    let admin = signer.bearer("admin", |_| {});
    let record = ask(&deployment, Method::GET, "record?kind=resource", &admin).await;
    let record = record.json();
    let subject = record[1]["subject"].as_str().unwrap();
    assert!(subject.starts_with("role team alice of http"), "{subject}");
    assert!(!deployment.log().contains(&team["Bearer ".len()..]));
}

#[tokio::test]
async fn a_token_for_others_or_without_an_end_or_under_another_key_is_refused() {
    let issuer = Issuer::start().await;
    let signer = issuer.key("1");
    let deployment = Deployment::start_with(&["sample"], |config| issuer.configured(&config));
    let mut impostor = issuer.key("1");
    issuer.keys.lock().unwrap().pop();
    let bends: [fn(&mut Value); 7] = [
        |claims| claims["aud"] = "another".into(),
        |claims| claims["iss"] = "http://127.0.0.1:1".into(),
        |claims| claims["exp"] = 1.into(),
        |claims| drop(claims.as_object_mut().unwrap().remove("aud")),
        |claims| drop(claims.as_object_mut().unwrap().remove("exp")),
        |claims| drop(claims.as_object_mut().unwrap().remove("iss")),
        |claims| claims["nbf"] = 9_999_999_999_u64.into(),
    ];
    let mut bad: Vec<String> = bends
        .iter()
        .map(|bend| signer.bearer("admin", bend))
        .collect();
    bad.push(impostor.bearer("admin", |_| {}));
    impostor.kid = "2".to_owned();
    bad.push(impostor.bearer("admin", |_| {}));
    for bearer in &bad {
        let answer = ask(&deployment, Method::GET, "resource", bearer).await;
        assert_eq!(answer.refusal().0, ErrorKind::AdminAuthAccess);
    }
    let roleless = signer.bearer("admin", |claims| claims["realm"] = Value::Null);
    let answer = ask(&deployment, Method::GET, "resource", &roleless).await;
    assert_eq!(answer.refusal().0, ErrorKind::AdminRoleDenied);
    let good = signer.bearer("admin", |_| {});
    let answer = ask(&deployment, Method::GET, "resource", &good).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        issuer.fetched.load(Ordering::SeqCst),
        1,
        "tokens under unknown keys made it fetch again and again"
    );
}

#[tokio::test]
async fn keys_that_an_issuer_rotates_are_found() {
    let issuer = Issuer::start().await;
    issuer.key("1");
    let deployment = Deployment::start_with(&["sample"], |config| issuer.configured(&config));
    let rotated = issuer.key("2").bearer("admin", |_| {});
    for _ in 0..150 {
        let answer = ask(&deployment, Method::GET, "resource", &rotated).await;
        if answer.status == StatusCode::OK {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the new key was never fetched");
}

#[tokio::test]
async fn an_issuer_that_cannot_be_reached_stops_its_own_tokens_only() {
    let issuer = Issuer::start().await;
    let mut signer = issuer.key("1");
    "http://127.0.0.1:9".clone_into(&mut signer.issuer);
    let deployment = Deployment::start_with(&["sample"], |config| {
        issuer
            .configured(&config)
            .replace(&issuer.url, &signer.issuer)
    });
    let bearer = signer.bearer("admin", |_| {});
    let (kind, error) = ask(&deployment, Method::GET, "resource", &bearer)
        .await
        .refusal();
    assert_eq!(kind, ErrorKind::IssuerUnavailable);
    assert!(error.detail.contains(&signer.issuer), "{}", error.detail);
    deployment.own(&["resource", "list"]);
    assert!(deployment.log().contains("cannot be fetched"));
}

#[tokio::test]
async fn rsa_and_ed25519_keys_of_a_file_are_taken() {
    let issuer = Issuer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut signers = Vec::new();
    for (number, (kind, algorithm)) in [
        ("RSA", Algorithm::RS256),
        ("RSA", Algorithm::PS384),
        ("ED25519", Algorithm::EdDSA),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join("key.pem");
        let made = std::process::Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", kind, "-out"])
            .arg(&path)
            .output();
        match made {
            Ok(output) if output.status.success() => {}
            _ => return support::skip("needs `openssl`; `.ci/setup` installs it"),
        }
        let pem = std::fs::read(&path).unwrap();
        let key = EncodingKey::from_rsa_pem(&pem).or_else(|_| EncodingKey::from_ed_pem(&pem));
        let signer = Signer {
            key: key.unwrap(),
            algorithm,
            kid: number.to_string(),
            issuer: issuer.url.clone(),
        };
        issuer.publish(&signer);
        signers.push(signer);
    }
    let keys = dir.path().join("keys.json");
    let set = json!({"keys": *issuer.keys.lock().unwrap()});
    std::fs::write(&keys, set.to_string()).unwrap();
    let deployment = Deployment::start_with(&["sample"], |config| {
        let file = format!("audience = \"{AUDIENCE}\"\njwks_file = {keys:?}");
        let audience = format!("audience = \"{AUDIENCE}\"");
        issuer.configured(&config).replace(&audience, &file)
    });
    for signer in &signers {
        let bearer = signer.bearer("admin", |_| {});
        let answer = ask(&deployment, Method::GET, "resource", &bearer).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", signer.algorithm);
    }
    assert_eq!(issuer.fetched.load(Ordering::SeqCst), 0);
}
