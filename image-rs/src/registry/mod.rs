//! The client of a registry (OCI distribution 1.1): manifests, blobs, uploads.
//!
//! ```text
//! name ─► Rules ─► Walk: mirror, mirror, registry ─► send: attempts ─► token ─► scheme, redirects ─► transport
//! ```
//!
//! `/v2/` is never asked first: the first real request brings the challenge. Plain HTTP and unverified TLS are spoken
//! only to what was named. Everything that a registry sends has a cap, and its digest is checked over the bytes as
//! received; neither registry nor mirror is trusted for more than being there. A mirror has credentials of its own or
//! none: those of the registry stay with the registry.

mod auth;
mod beside;
mod blob;
mod conf;
mod error;
mod node;
mod push;
mod range;
mod reach;
mod retry;
mod rules;
mod send;
mod signatures;
mod walk;

pub use auth::{AuthFile, AuthFileError};
pub use beside::Beside;
pub use blob::BlobStream;
pub use error::RegistryError;
pub use node::{NodeMirror, Share};
pub use push::Upload;
pub use reach::Reach;
pub use retry::Retry;
pub use rules::{Mirror, PullFromMirror, Rule, Rules, RulesError, Security};
pub use signatures::RepositorySignatures;
pub use walk::Tried;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use transport::{Body, bytes_capped};

use crate::digest::Digest;
use crate::manifest::{self, MANIFEST_BYTES_MAX};
use crate::reference::Reference;
use auth::Tokens;
use rules::{Need, NoSite, Site};
use send::Ask;
use walk::{Health, Schemes, Walk};

/// What a registry says that a manifest's digest is.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Whom the client talks to, and as whom.
#[expect(missing_debug_implementations, reason = "holds credentials")]
#[derive(Default)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) that are spoken to over plain HTTP, whatever the rules say.
    pub insecure: BTreeSet<String>,
    /// Credentials.
    pub auth: AuthFile,
    /// Mirrors, other locations, what is blocked.
    pub rules: Rules,
    /// How often and how soon a request is tried again.
    pub retry: Retry,
}

/// A client for every registry; clones share connections and tokens.
#[expect(missing_debug_implementations, reason = "holds credentials")]
#[derive(Clone)]
pub struct Registry {
    /// For registries whose certificate is verified.
    strict: transport::Client,
    /// For those that were named insecure; to others it is as strict.
    lax: transport::Client,
    config: Arc<RegistryConfig>,
    tokens: Tokens,
    health: Health,
    schemes: Schemes,
    node: Option<NodeMirror>,
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

impl Registry {
    /// A client over a transport of the caller's, which must allow plain HTTP to what `config` names insecure.
    #[must_use]
    pub fn new(http: transport::Client, config: RegistryConfig) -> Self {
        Self::over(http.clone(), http, config)
    }

    fn over(strict: transport::Client, lax: transport::Client, config: RegistryConfig) -> Self {
        Self {
            strict,
            lax,
            config: Arc::new(config),
            tokens: Tokens::default(),
            health: Health::default(),
            schemes: Schemes::default(),
            node: None,
        }
    }

    /// The same, which asks the node's own mirror for blobs first.
    #[must_use]
    pub fn with_node_mirror(self, mirror: NodeMirror) -> Self {
        let node = Some(mirror);
        Self { node, ..self }
    }

    /// Fetches the manifest that `image` names, by digest or by tag.
    ///
    /// # Errors
    /// See [`RegistryError`]; [`RegistryError::Digest`] when the bytes are not those of the pinned digest.
    pub async fn manifest(&self, image: &Reference) -> Result<RawManifest, RegistryError> {
        let what = format!("manifest of {image}");
        let mut walk = self.walk(image, Need::Manifest)?;
        while let Some(site) = walk.next() {
            match self.manifest_at(&site, walk.is_last(), &what).await {
                Ok(found) => return Ok(found),
                Err(error) => walk.failed(&site, error),
            }
        }
        Err(walk.end(&what))
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
        let mut walk = self.walk_of_blob(image)?;
        let mut missing = None;
        while let Some(site) = walk.next() {
            let ask = Ask {
                is_last: walk.is_last(),
                ..Ask::get(format!("blobs/{digest}"), &site, what.clone())
            };
            match self.fetch(&ask, cap, Some(digest)).await {
                Ok(Fetched { bytes, .. }) => {
                    if let Some(node) = missing {
                        NodeMirror::offer_whole(node, digest, bytes.clone());
                    }
                    return Ok(bytes);
                }
                Err(error) => {
                    if site.is_node && matches!(error, RegistryError::NotFound { .. }) {
                        missing = self.node.as_ref();
                    }
                    walk.failed(&site, error);
                }
            }
        }
        Err(walk.end(&what))
    }

    /// Opens a blob of `size` bytes as a stream; its digest is for the reader to check.
    #[must_use]
    pub fn blob(&self, image: &Reference, digest: &Digest, size: u64) -> BlobStream {
        let what = format!("blob {digest} of {image}");
        let walk = self.walk_of_blob(image);
        BlobStream::new(self.clone(), what, digest.clone(), size, walk)
    }

    async fn manifest_at(
        &self,
        site: &Site,
        is_last: bool,
        what: &str,
    ) -> Result<RawManifest, RegistryError> {
        let path = format!("manifests/{}", site.image.manifest_name());
        let mut ask = Ask {
            is_last,
            ..Ask::get(path, site, what.to_owned())
        };
        for media_type in manifest::ACCEPTED {
            ask.headers
                .append(ACCEPT, HeaderValue::from_static(media_type));
        }
        let pinned = site.image.digest();
        let fetched = self.fetch(&ask, MANIFEST_BYTES_MAX, pinned).await?;
        Ok(RawManifest {
            bytes: fetched.bytes,
            digest: fetched.digest,
            content_type: fetched.content_type,
        })
    }

    /// Fetches a small thing whole, with its digest and media type; anew, when its connection breaks.
    async fn fetch(
        &self,
        ask: &Ask<'_>,
        cap: usize,
        expected: Option<&Digest>,
    ) -> Result<Fetched, RegistryError> {
        let attempts = self.attempts(ask.site, ask.is_last);
        let mut attempt = 1;
        loop {
            let answer = self.send_ok(ask).await?;
            match whole(answer, cap, expected, &ask.what).await {
                Err(error) if error.is_transient() && attempt < attempts => {
                    tracing::debug!(what = ask.what, attempt, %error, "an answer is asked for again");
                }
                done => return done,
            }
            tokio::time::sleep(self.config.retry.pause(attempt)).await;
            attempt += 1;
        }
    }

    fn attempts(&self, site: &Site, is_last: bool) -> u32 {
        let retry = &self.config.retry;
        if site.is_node {
            1
        } else if is_last {
            retry.attempts
        } else {
            retry.mirror_attempts
        }
    }

    fn walk_of_blob(&self, image: &Reference) -> Result<Walk, RegistryError> {
        let mut walk = self.walk(image, Need::Blob)?;
        if let Some(node) = &self.node {
            node.lead(&mut walk, false);
        }
        Ok(walk)
    }

    fn walk(&self, image: &Reference, need: Need) -> Result<Walk, RegistryError> {
        let sites = self.config.rules.sites(image, need);
        let mut sites = sites.map_err(|error| match error {
            NoSite::Blocked { prefix } => RegistryError::Blocked {
                image: image.to_string(),
                prefix,
            },
            NoSite::Name { location, source } => RegistryError::Location {
                image: image.to_string(),
                location,
                source,
            },
        })?;
        for site in &mut sites {
            self.name_insecure(site);
        }
        Ok(Walk::new(self.health.clone(), sites))
    }

    /// The registry of the name itself, for uploads.
    fn direct(&self, image: &Reference) -> Site {
        let mut site = Site::direct(image.clone(), self.config.rules.security(image));
        self.name_insecure(&mut site);
        site
    }

    fn name_insecure(&self, site: &mut Site) {
        let registry = site.image.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let insecure = &self.config.insecure;
        if insecure.contains(registry) || insecure.contains(host) {
            site.security = Security::PlainHttp;
        }
    }

    fn client_to(&self, site: &Site) -> &transport::Client {
        match &self.node {
            Some(node) if site.is_node => &node.http,
            _ => self.client(site.security),
        }
    }

    fn client(&self, security: Security) -> &transport::Client {
        match security {
            Security::Verified => &self.strict,
            Security::Insecure | Security::PlainHttp => &self.lax,
        }
    }
}

/// A small thing that was fetched whole.
struct Fetched {
    bytes: Bytes,
    digest: Digest,
    content_type: Option<String>,
    /// Its `Link`, where a list may say that it goes on.
    link: Option<String>,
}

/// Reads and checks a small answer. A manifest by tag has the registry's own word for its digest, which at least
/// finds damage.
async fn whole(
    answer: Response<Body>,
    cap: usize,
    expected: Option<&Digest>,
    what: &str,
) -> Result<Fetched, RegistryError> {
    let text = |name: &HeaderName| {
        let value = answer.headers().get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let (content_type, link) = (text(&CONTENT_TYPE), text(&LINK));
    let claimed = text(&CONTENT_DIGEST).and_then(|text| text.parse::<Digest>().ok());
    if let Some(found) = content_type.as_deref().filter(|found| is_page(found)) {
        return Err(RegistryError::ContentType {
            what: what.to_owned(),
            found: found.chars().take(80).collect(),
        });
    }
    let bytes = bytes_capped(answer.into_body(), cap)
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
        })?;
    let digest = match expected.or(claimed.as_ref()) {
        Some(expected) => checked(&bytes, expected, what)?,
        None => Digest::of(&bytes),
    };
    Ok(Fetched {
        bytes,
        digest,
        content_type,
        link,
    })
}

/// What portals and error pages are, and nothing of an image.
fn is_page(media_type: &str) -> bool {
    media_type
        .trim_start()
        .to_ascii_lowercase()
        .starts_with("text/html")
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
