//! A server of OpenID Connect whose tokens are taken: its keys, fetched, kept and renewed.
//!
//! A token under a known key is judged with what is here. Only a token under a key that is not known
//! waits for a fetch, and of those there is one at a time and one in ten seconds, whatever comes in.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use http::Request;
use jsonwebtoken::{
    AlgorithmFamily, DecodingKey, Validation,
    jwk::{Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use transport::{Client, ClientConfig, PlainHttp, Roots, RootsError, TcpDial, bytes_capped};
use zeroize::Zeroizing;

use super::form::LEEWAY_SECONDS;
use crate::{
    config::{self, address::NEAR},
    current::Current,
    file,
};

/// Bytes of a discovery document or of a set of keys.
const DOCUMENT_BYTES: usize = 256 * 1024;
/// Keys of one issuer.
const KEYS: usize = 100;
/// Between two fetches that tokens ask for.
const PAUSE: Duration = Duration::from_secs(10);
/// Between two fetches that nobody asks for.
const RENEWAL: Duration = Duration::from_secs(3600);
/// The same after one that failed.
const RETRY: Duration = Duration::from_secs(60);
/// How long keys are believed that could not be fetched again: one of them may have been withdrawn.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// For one fetch, discovery included.
const PATIENCE: Duration = Duration::from_secs(10);
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// One issuer.
pub(crate) struct Issuer {
    pub(super) name: String,
    pub(super) role_claim: String,
    audience: String,
    source: Source,
    client: Client,
    keys: Current<Keys>,
    last_fetch: Mutex<Option<Instant>>,
}

enum Source {
    File(PathBuf),
    Keys(String),
    Discovery,
}

/// A key and its id, where it has one.
type Key = (Option<String>, DecodingKey);

/// The keys that were fetched last, and when; `None` until there were any.
type Keys = Option<(Instant, Vec<Key>)>;

impl Issuer {
    pub(super) fn new(config: &config::Issuer) -> Result<Self, IssuerError> {
        let source = match (&config.jwks_file, &config.jwks_uri) {
            (Some(file), _) => Source::File(file.clone()),
            (None, Some(uri)) => Source::Keys(uri.clone()),
            (None, None) => Source::Discovery,
        };
        let roots = match &config.ca {
            None => Roots::web(),
            Some(path) => Roots::pinned(&read_file(path)?)?,
        };
        // What is on this machine may do without TLS.
        let near = NEAR.map(|host| host.trim_matches(['[', ']']).to_owned());
        let client = ClientConfig {
            plain_http: PlainHttp::Hosts(BTreeSet::from(near)),
            ..ClientConfig::new(roots)
        };
        let keys = match &source {
            Source::File(path) => {
                let keys = parse(read_file(path)?.as_bytes())?;
                Some((Instant::now(), keys))
            }
            Source::Keys(_) | Source::Discovery => None,
        };
        Ok(Self {
            name: config.issuer.clone(),
            role_claim: config.role_claim.clone(),
            audience: config.audience.clone(),
            source,
            client: Client::new(Arc::new(TcpDial), client)?,
            keys: Current::new(keys),
            last_fetch: Mutex::new(None),
        })
    }

    /// The claims of a token that the issuer signed, for us, and that still holds.
    pub(super) async fn verify(&self, token: &str) -> Result<Value, VerifyError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| VerifyError::Token)?;
        let kid = header.kid.as_deref();
        let mut known = self.keys.load();
        if !knows(&known, kid) {
            self.fetch_unless_just_done().await;
            known = self.keys.load();
        }
        let Some(keys) = younger(&known, STALE) else {
            return Err(VerifyError::NoKeys);
        };
        keys.iter()
            .filter(|(id, _)| kid.is_none() || id.as_deref() == kid)
            .find_map(|(_, key)| {
                let mut rule = Validation::new_for_family(key.family());
                rule.validate_nbf = true;
                rule.leeway = LEEWAY_SECONDS;
                rule.set_issuer(&[&self.name]);
                rule.set_audience(&[&self.audience]);
                rule.set_required_spec_claims(&["exp", "iss", "aud"]);
                jsonwebtoken::decode::<Value>(token, key, &rule).ok()
            })
            .map(|verified| verified.claims)
            .ok_or(VerifyError::Token)
    }

    /// Fetches the keys at once and then every hour, sooner after a failure, until it is dropped.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            self.fetch_unless_just_done().await;
            let fresh = younger(&self.keys.load(), RENEWAL).is_some();
            tokio::time::sleep(if fresh { RENEWAL } else { RETRY }).await;
        }
    }

    async fn fetch_unless_just_done(&self) {
        let mut last = self.last_fetch.lock().await;
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        *last = Some(Instant::now());
        let fetched = tokio::time::timeout(PATIENCE, self.fetch()).await;
        match fetched.unwrap_or(Err(IssuerError::Timeout)) {
            Ok(keys) => {
                tracing::info!(issuer = self.name, keys = keys.len(), "keys of an issuer");
                self.keys.replace(Some((Instant::now(), keys)));
            }
            Err(error) => {
                tracing::warn!(issuer = self.name, %error, "the keys of an issuer cannot be fetched");
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, IssuerError> {
        let uri = match &self.source {
            Source::File(path) => return parse(read_file(path)?.as_bytes()),
            Source::Keys(uri) => uri.clone(),
            Source::Discovery => self.discover().await?,
        };
        parse(&self.get(&uri).await?)
    }

    async fn discover(&self) -> Result<String, IssuerError> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            jwks_uri: String,
        }
        let uri = format!("{}{DISCOVERY}", self.name.trim_end_matches('/'));
        let document: Document = serde_json::from_slice(&self.get(&uri).await?)
            .map_err(|_| IssuerError::Form("its discovery document"))?;
        if document.issuer != self.name {
            return Err(IssuerError::OtherIssuer(document.issuer));
        }
        Ok(document.jwks_uri)
    }

    async fn get(&self, uri: &str) -> Result<bytes::Bytes, IssuerError> {
        let request = Request::get(uri)
            .body(bytes::Bytes::new())
            .map_err(|_| IssuerError::Form("its address"))?;
        let answer = self.client.send_following(request).await?;
        if !answer.status().is_success() {
            return Err(IssuerError::Status(answer.status().as_u16()));
        }
        Ok(bytes_capped(answer.into_body(), DOCUMENT_BYTES).await?)
    }
}

fn younger(keys: &Keys, age: Duration) -> Option<&[Key]> {
    let (fetched, keys) = keys.as_ref()?;
    (fetched.elapsed() < age).then_some(keys)
}

fn knows(keys: &Keys, kid: Option<&str>) -> bool {
    younger(keys, STALE)
        .is_some_and(|keys| kid.is_none() || keys.iter().any(|(id, _)| id.as_deref() == kid))
}

/// The public keys of a set that can sign; kinds that are not known here are passed over.
fn parse(text: &[u8]) -> Result<Vec<Key>, IssuerError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set =
        serde_json::from_slice(text).map_err(|_| IssuerError::Form("its set of keys"))?;
    let usable = |value| {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let signs =
            !matches!(&jwk.common.public_key_use, Some(other) if *other != PublicKeyUse::Signature);
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        (signs && key.family() != AlgorithmFamily::Hmac).then_some((jwk.common.key_id, key))
    };
    let keys: Vec<_> = set.keys.into_iter().take(KEYS).filter_map(usable).collect();
    if keys.is_empty() {
        return Err(IssuerError::NoKey);
    }
    Ok(keys)
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, IssuerError> {
    file::read_text(path, DOCUMENT_BYTES).map_err(|source| IssuerError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A token that this issuer does not vouch for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VerifyError {
    Token,
    /// Its keys could not be fetched yet.
    NoKeys,
}

/// An issuer that cannot be used, or not at this moment.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// A file.
    #[error("read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its certificate's roots.
    #[error("ca: {0}")]
    Roots(#[from] RootsError),
    /// No connection.
    #[error(transparent)]
    Transport(#[from] transport::Error),
    /// Too slow.
    #[error("no answer in {} seconds", PATIENCE.as_secs())]
    Timeout,
    /// An answer that is none.
    #[error("it answered {0}")]
    Status(u16),
    /// Something that does not read.
    #[error("{0} cannot be read")]
    Form(&'static str),
    /// Discovery leads elsewhere.
    #[error("its discovery document is of the issuer `{0}`")]
    OtherIssuer(String),
    /// No key in the set.
    #[error("its set has no RSA, P-256, P-384 or Ed25519 key for signatures")]
    NoKey,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_gives_its_signing_keys_and_no_shared_secret() {
        let ed = r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
        let foreign = r#"{"kty":"AKP","alg":"ML-DSA-65","pub":"AA"}"#;
        let secret = r#"{"kty":"oct","kid":"s","k":"c2VjcmV0"}"#;
        let enc = ed.replace("\"kid\"", "\"use\":\"enc\",\"kid\"");
        let set = |keys: &[&str]| format!("{{\"keys\":[{}]}}", keys.join(","));
        let keys = parse(set(&[secret, foreign, &enc, ed]).as_bytes()).unwrap();
        let ids: Vec<_> = keys.iter().map(|(id, _)| id.as_deref()).collect();
        assert_eq!(ids, [Some("a")]);
        for none in [set(&[secret]), set(&[]), "{}".to_owned(), String::new()] {
            assert!(parse(none.as_bytes()).is_err(), "{none}");
        }
    }
}
