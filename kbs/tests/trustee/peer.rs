//! The two clients, as they talk. Nothing of ours makes a body or a digest here.

use std::time::SystemTime;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use http::{Method, StatusCode};
use kbs_protocol::{Jwe, KeyKind, TeeKeyPair};
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::Value;
use sha2::{Digest, Sha256, Sha384};

use crate::{
    SECRET,
    deployment::{Answer, Deployment},
};

const AUTH: &str = r#"{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha256","sha384","sha512","sm3"]}}"#;
const IN_JSON: (&str, &str) = ("content-type", "application/json");
pub(crate) const ANY: (&str, &str) = ("accept", "*/*");
pub(crate) const GUEST: (&str, &str) = ("user-agent", "attestation-agent-kbs-client/0.1.0");
pub(crate) const OWNER: (&str, &str) = ("user-agent", "kbs-client/0.1.0");

/// `kbs-client config` with the token that Trustee's scripts make.
pub(crate) struct Owner {
    pub(crate) deployment: Deployment,
    key: Ed25519KeyPair,
}

impl Owner {
    pub(crate) fn start() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap();
        let kept = tempfile::NamedTempFile::new().unwrap();
        // What `openssl pkey -pubout` writes of such a key.
        let mut der = hex::decode("302a300506032b6570032100").unwrap();
        der.extend_from_slice(key.public_key().as_ref());
        let body = BASE64_STANDARD.encode(der);
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
        std::fs::write(kept.path(), pem).unwrap();
        let deployment = Deployment::start_with(&["sample"], |config| {
            let named = format!("public_keys = [{:?}]", kept.path());
            let devices = "accept = [\"sample\"]\naccept_devices = [\"sampledevice\"]";
            let changed = config.replace("public_keys = [\"admin.pub\"]", &named);
            changed.replace("accept = [\"sample\"]", devices)
        });
        Self { deployment, key }
    }

    pub(crate) fn token(&self, claims: &str) -> String {
        let header = r#"{"alg":"EdDSA","typ":"JWT"}"#;
        let signed = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
        let signed = signed.join(".");
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    fn admin(&self) -> String {
        let now = now();
        let exp = now + 315_360_000;
        self.token(&format!(
            r#"{{"iss":"issuer","role":"admin","aud":["kbs"],"iat":{now},"exp":{exp}}}"#
        ))
    }

    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: &str,
    ) -> Answer {
        let bearer = format!("Bearer {}", self.admin());
        let mut headers = vec![("authorization", bearer.as_str()), ANY, OWNER];
        headers.extend(kind.map(|kind| ("content-type", kind)));
        self.deployment
            .ask(method, path, &headers, body.to_owned())
            .await
    }

    /// They take 200 for a success, and no other status.
    async fn post(&self, path: &str, body: &str) {
        let answer = self
            .ask(Method::POST, path, Some("application/json"), body)
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {:?}", answer.body);
    }

    pub(crate) async fn set_resource(&self, path: &str) {
        let path = format!("resource/{path}");
        let kind = Some("application/octet-stream");
        let answer = self.ask(Method::POST, &path, kind, SECRET).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    }

    pub(crate) async fn set_resource_policy(&self, rego: &str) {
        let rego = BASE64_URL_SAFE_NO_PAD.encode(rego);
        self.post("resource-policy", &format!(r#"{{"policy":"{rego}"}}"#))
            .await;
    }

    pub(crate) async fn set_attestation_policy(&self, id: &str, rego: &str) {
        let rego = BASE64_URL_SAFE_NO_PAD.encode(rego);
        let body = format!(r#"{{"type":"rego","policy_id":"{id}","policy":"{rego}"}}"#);
        self.post("attestation-policy", &body).await;
    }

    pub(crate) async fn set_sample_reference_value(&self, payload: &str) {
        let payload = BASE64_STANDARD.encode(payload);
        let body = format!(r#"{{"payload":"{payload}","type":"sample","version":"0.1.0"}}"#);
        self.post("reference-value", &body).await;
    }
}

/// Init-data that a client sends.
#[derive(Clone, Copy)]
pub(crate) struct Sent<'a> {
    pub(crate) text: &'a str,
    /// Whether the launch bound it, as a TEE would show; their sample has no member for it.
    pub(crate) bound: bool,
}

/// `kbs_protocol` with its sample attester.
pub(crate) struct Client {
    key: TeeKeyPair,
    cookie: String,
    pub(crate) token: String,
}

impl Client {
    /// The handshake; `device` is its ENABLE_SAMPLE_DEVICE.
    pub(crate) async fn attest(
        deployment: &Deployment,
        kind: KeyKind,
        init_data: Option<Sent<'_>>,
        device: bool,
    ) -> Self {
        let (key, answer) = Self::attempt(deployment, kind, init_data, device).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        Self {
            key,
            cookie: answer.cookie(),
            token: answer.json()["token"].as_str().unwrap().to_owned(),
        }
    }

    pub(crate) async fn attempt(
        deployment: &Deployment,
        kind: KeyKind,
        init_data: Option<Sent<'_>>,
        device: bool,
    ) -> (TeeKeyPair, Answer) {
        let headers = [IN_JSON, ANY, GUEST];
        let answer = deployment.ask(Method::POST, "auth", &headers, AUTH).await;
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        let challenge = answer.json();
        let nonce = challenge["nonce"].as_str().unwrap();
        let hash = &challenge["extra-params"]["selected-hash-algorithm"];
        assert!(hash.is_null() || hash == "sha384", "{hash}");

        let key = TeeKeyPair::generate(kind).unwrap();
        let (sent, canonical) = jwk(&key);
        let devices = if device {
            let bound = format!(r#"{{"nonce":"{nonce}","tee-pubkey":{canonical}}}"#);
            let bound = BASE64_STANDARD.encode(Sha384::digest(bound));
            format!(r#"{{"sampledevice":{{"report_data":"{bound}","svn":"2"}}}}"#)
        } else {
            String::new()
        };
        let devices = Value::String(devices).to_string();
        let bound = format!(
            r#"{{"additional-evidence":{devices},"nonce":"{nonce}","tee-pubkey":{canonical}}}"#
        );
        let bound = BASE64_STANDARD.encode(Sha384::digest(bound));
        let launch = init_data.filter(|sent| sent.bound).map(|sent| {
            let digest = hex::encode(Sha256::digest(sent.text));
            format!(r#""init_data":"{digest}","#)
        });
        let launch = launch.unwrap_or_default();
        let init_data = init_data.map_or("null".to_owned(), |sent| {
            let text = Value::String(sent.text.to_owned());
            format!(r#"{{"format":"toml","body":{text}}}"#)
        });
        let body = format!(
            r#"{{"init-data":{init_data},"runtime-data":{{"nonce":"{nonce}","tee-pubkey":{sent}}},"tee-evidence":{{"primary_evidence":{{{launch}"report_data":"{bound}","svn":"1"}},"additional_evidence":{devices}}}}}"#
        );
        let cookie = answer.cookie();
        let headers = [IN_JSON, ANY, GUEST, ("cookie", &cookie)];
        let answer = deployment.ask(Method::POST, "attest", &headers, body).await;
        (key, answer)
    }

    /// A client that attested keeps the cookie and sends nothing else; one that was given a token sends
    /// that.
    pub(crate) async fn get(&self, deployment: &Deployment, path: &str) -> Answer {
        let path = format!("resource/{path}");
        let headers = [ANY, GUEST, ("cookie", self.cookie.as_str())];
        let by_cookie = deployment.ask(Method::GET, &path, &headers, "").await;
        let bearer = format!("Bearer {}", self.token);
        let headers = [("authorization", bearer.as_str()), ANY, GUEST];
        let by_token = deployment.ask(Method::GET, &path, &headers, "").await;
        assert_eq!(by_cookie.status, by_token.status);
        by_cookie
    }

    pub(crate) fn open(&self, answer: &Answer) -> Vec<u8> {
        assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
        let jwe: Jwe = serde_json::from_slice(&answer.body).unwrap();
        // They make the authenticated data anew of what they parsed, in this order.
        let text = BASE64_URL_SAFE_NO_PAD.decode(&jwe.protected).unwrap();
        let header: Value = serde_json::from_slice(&text).unwrap();
        let (alg, enc) = (&header["alg"], &header["enc"]);
        let again = match header.get("epk") {
            None => format!(r#"{{"alg":{alg},"enc":{enc}}}"#),
            Some(epk) => format!(
                r#"{{"alg":{alg},"enc":{enc},"epk":{{"crv":{},"kty":{},"x":{},"y":{}}}}}"#,
                epk["crv"], epk["kty"], epk["x"], epk["y"]
            ),
        };
        assert_eq!(String::from_utf8(text).unwrap(), again);
        self.key.open(&jwe).ok().unwrap().expose().to_vec()
    }
}

/// A public key as they send it, and as RFC 8785 has it.
fn jwk(key: &TeeKeyPair) -> (String, String) {
    let jwk = serde_json::to_value(key.public()).unwrap();
    let member = |name: &str| jwk[name].to_string();
    if jwk["kty"] == "RSA" {
        let (alg, e, n) = (member("alg"), member("e"), member("n"));
        return (
            format!(r#"{{"kty":"RSA","alg":{alg},"n":{n},"e":{e}}}"#),
            format!(r#"{{"alg":{alg},"e":{e},"kty":"RSA","n":{n}}}"#),
        );
    }
    let [alg, crv, x, y] = ["alg", "crv", "x", "y"].map(member);
    (
        format!(r#"{{"kty":"EC","crv":{crv},"alg":{alg},"x":{x},"y":{y}}}"#),
        format!(r#"{{"alg":{alg},"crv":{crv},"kty":"EC","x":{x},"y":{y}}}"#),
    )
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}
