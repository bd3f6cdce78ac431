//! The client of a registry (OCI distribution 1.1): manifests, blobs, uploads.
//!
//! `/v2/` is never asked first: the first real request brings the challenge. Plain HTTP is spoken only to registries
//! that were named insecure. Everything that a registry sends has a cap, and its digest is checked over the bytes as
//! received; the registry itself is not trusted for more than being there.

mod auth;
mod blob;
mod error;
mod push;

pub use auth::{AuthFile, AuthFileError};
pub use blob::BlobStream;
pub use error::RegistryError;
pub use push::Upload;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::sync::Mutex;
use transport::{Body, bytes_capped};

use crate::digest::Digest;
use crate::manifest::{self, MANIFEST_BYTES_MAX};
use crate::reference::Reference;
use auth::Challenge;

/// Attempts of one request, the first included.
const ATTEMPTS: u32 = 3;
/// What the second attempt waits; each later one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Cap on the body of an error answer.
const ERROR_BYTES_MAX: usize = 16 * 1024;

/// Whom the client talks to, and as whom.
#[expect(missing_debug_implementations, reason = "holds credentials")]
#[derive(Default)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) that are spoken to over plain HTTP.
    pub insecure: BTreeSet<String>,
    /// Credentials.
    pub auth: AuthFile,
}

/// A client for every registry; clones share connections and tokens.
#[expect(missing_debug_implementations, reason = "holds credentials")]
#[derive(Clone)]
pub struct Registry {
    http: transport::Client,
    config: Arc<RegistryConfig>,
    /// By endpoint, repository and action: a token for one says nothing of another.
    tokens: Arc<Mutex<HashMap<TokenKey, HeaderValue>>>,
}

type TokenKey = (String, String, Action);

/// What is to be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Pull,
    Push,
}

/// A manifest as received.
#[derive(Debug, Clone)]
pub struct RawManifest {
    /// The exact bytes.
    pub bytes: Bytes,
    /// Their digest; the one asked for, where one was.
    pub digest: Digest,
    /// The media type in the answer's head, which may be missing or wrong.
    pub content_type: Option<String>,
}

/// One request to a repository.
#[derive(Clone)]
struct Ask<'a> {
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
    image: &'a Reference,
    action: Action,
    /// What to call it in an error.
    what: String,
}

impl Registry {
    /// A client over a transport, which must allow plain HTTP to what `config` names insecure.
    #[must_use]
    pub fn new(http: transport::Client, config: RegistryConfig) -> Self {
        Self {
            http,
            config: Arc::new(config),
            tokens: Arc::default(),
        }
    }

    /// Fetches the manifest that `image` names, by digest or by tag.
    ///
    /// # Errors
    /// See [`RegistryError`]; [`RegistryError::Digest`] when the bytes are not those of the pinned digest.
    pub async fn manifest(&self, image: &Reference) -> Result<RawManifest, RegistryError> {
        let what = format!("manifest of {image}");
        let url = self.url(image, &format!("manifests/{}", image.manifest_name()));
        let mut ask = Ask::get(url, image, what.clone());
        for media_type in manifest::ACCEPTED {
            ask.headers
                .append(ACCEPT, HeaderValue::from_static(media_type));
        }
        let answer = self.send_ok(&ask).await?;
        let content_type = answer
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let bytes = self.body(answer, MANIFEST_BYTES_MAX, &what).await?;
        let digest = match image.digest() {
            Some(expected) => checked(&bytes, expected, &what)?,
            None => Digest::of(&bytes),
        };
        Ok(RawManifest {
            bytes,
            digest,
            content_type,
        })
    }

    /// Fetches a small blob whole: a configuration.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn small_blob(
        &self,
        image: &Reference,
        digest: &Digest,
        cap: usize,
    ) -> Result<Bytes, RegistryError> {
        let what = format!("blob {digest} of {image}");
        let answer = self
            .send_ok(&Ask::get(self.blob_url(image, digest), image, what.clone()))
            .await?;
        let bytes = self.body(answer, cap, &what).await?;
        checked(&bytes, digest, &what)?;
        Ok(bytes)
    }

    /// Opens a blob of `size` bytes as a stream; its digest is for the reader to check.
    #[must_use]
    pub fn blob(&self, image: &Reference, digest: &Digest, size: u64) -> BlobStream {
        BlobStream::new(self.clone(), image.clone(), digest.clone(), size)
    }

    fn url(&self, image: &Reference, rest: &str) -> String {
        let scheme = if self.is_insecure(image) {
            "http"
        } else {
            "https"
        };
        format!(
            "{scheme}://{}/v2/{}/{rest}",
            image.endpoint(),
            image.repository()
        )
    }

    fn blob_url(&self, image: &Reference, digest: &Digest) -> String {
        self.url(image, &format!("blobs/{digest}"))
    }

    fn is_insecure(&self, image: &Reference) -> bool {
        let registry = image.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        self.config.insecure.contains(registry) || self.config.insecure.contains(host)
    }

    async fn body(
        &self,
        answer: Response<Body>,
        cap: usize,
        what: &str,
    ) -> Result<Bytes, RegistryError> {
        bytes_capped(answer.into_body(), cap)
            .await
            .map_err(|error| match error {
                transport::Error::TooLarge { .. } => RegistryError::TooLarge {
                    what: what.to_owned(),
                    cap: cap as u64,
                },
                source => RegistryError::Unreachable {
                    what: what.to_owned(),
                    source,
                },
            })
    }

    /// Sends, and makes every status but 2xx an error.
    async fn send_ok(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let answer = self.send(ask).await?;
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(refusal(ask, answer).await)
        }
    }

    /// Sends with retries; answers a challenge once.
    async fn send(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let result = self.send_authorised(ask).await;
            let again = match &result {
                Ok(answer) => busy(answer.status()),
                Err(error) => error.is_transient(),
            };
            if !again || attempt == ATTEMPTS {
                return result;
            }
            tracing::debug!(what = ask.what, attempt, "a request is tried again");
            tokio::time::sleep(pause).await;
            pause *= 2;
            attempt += 1;
        }
    }

    async fn send_authorised(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let key = (
            ask.image.endpoint().to_owned(),
            ask.image.repository().to_owned(),
            ask.action,
        );
        let known = self.tokens.lock().await.get(&key).cloned();
        let answer = self.send_once(ask, known).await?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenges = answer.headers().get_all(WWW_AUTHENTICATE);
        let texts = challenges.iter().filter_map(|value| value.to_str().ok());
        let Some(challenge) = texts.filter_map(Challenge::parse).next() else {
            return Ok(answer);
        };
        let credential =
            self.config
                .auth
                .find(ask.image)
                .map_err(|source| RegistryError::Credentials {
                    what: ask.what.clone(),
                    source,
                })?;
        let Some(token) = auth::answer(&self.http, &challenge, credential, ask).await? else {
            return Ok(answer);
        };
        self.tokens.lock().await.insert(key, token.clone());
        self.send_once(ask, Some(token)).await
    }

    async fn send_once(
        &self,
        ask: &Ask<'_>,
        token: Option<HeaderValue>,
    ) -> Result<Response<Body>, RegistryError> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.url)
            .body(ask.body.clone())
            .map_err(|error| RegistryError::Url {
                what: ask.what.clone(),
                reason: error.to_string(),
            })?;
        *request.headers_mut() = ask.headers.clone();
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        let sent = match ask.method {
            Method::GET | Method::HEAD => self.http.send_following(request).await,
            _ => self.http.send(request).await,
        };
        sent.map_err(|source| RegistryError::Unreachable {
            what: ask.what.clone(),
            source,
        })
    }
}

impl<'a> Ask<'a> {
    fn get(url: String, image: &'a Reference, what: String) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            image,
            action: Action::Pull,
            what,
        }
    }
}

fn checked(bytes: &[u8], expected: &Digest, what: &str) -> Result<Digest, RegistryError> {
    match expected.check(bytes) {
        Ok(()) => Ok(expected.clone()),
        Err(found) => {
            let (what, expected) = (what.to_owned(), expected.clone());
            Err(RegistryError::Digest {
                what,
                expected,
                found,
            })
        }
    }
}

/// A registry that may do better in a moment.
fn busy(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// The error that an answer without success is; the registry's own words are told, cut short.
async fn refusal(ask: &Ask<'_>, answer: Response<Body>) -> RegistryError {
    let status = answer.status();
    let body = bytes_capped(answer.into_body(), ERROR_BYTES_MAX)
        .await
        .unwrap_or_default();
    RegistryError::from_status(&ask.what, status, &body)
}
