//! The client: a pool of connections over the dialler, deadlines, and redirects only on request.

use std::{collections::BTreeSet, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, COOKIE, LOCATION, PROXY_AUTHORIZATION, USER_AGENT},
};
use http_body_util::Full;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

use crate::{
    Body, Dial, Error, Pace, Phase, Proxies, Roots, RootsError, Way,
    connect::{Connector, Target, Tls},
    error::HEAD_BYTES,
};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 5;

/// Bytes of a redirect's target.
const LOCATION_BYTES: usize = 8 * 1024;

/// Connections that wait for use, for each host.
const IDLE_CONNECTIONS: usize = 8;

/// How long a connection waits for use.
const IDLE: Duration = Duration::from_secs(30);

/// An answer to come. In a box: each crate that awaits an `async fn` compiles it anew, and this one
/// has all of HTTP and TLS below it.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send + 'a>>;

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// What peers must chain to.
    pub roots: Roots,
    /// Who may be spoken to without TLS.
    pub plain_http: PlainHttp,
    /// The deadlines.
    pub timeouts: Timeouts,
}

impl ClientConfig {
    /// TLS only, with the usual deadlines.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self {
            roots,
            plain_http: PlainHttp::Refuse,
            timeouts: Timeouts::default(),
        }
    }
}

/// Who may be spoken to without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// Nobody.
    #[default]
    Refuse,
    /// Only these, as `host` (each port of it) or `host:port`.
    Hosts(BTreeSet<String>),
    /// Everybody.
    Allow,
}

impl PlainHttp {
    pub(crate) fn allows(&self, target: &Target) -> bool {
        match self {
            Self::Refuse => false,
            Self::Hosts(hosts) => {
                hosts.contains(&target.host) || hosts.contains(&target.to_string())
            }
            Self::Allow => true,
        }
    }
}

/// The deadlines of one attempt, by phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To open the stream.
    pub dial: Duration,
    /// For the TLS handshake.
    pub tls: Duration,
    /// From the request to the head of the answer.
    pub head: Duration,
    /// Between two pieces of a body.
    pub body: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(10),
            tls: Duration::from_secs(10),
            head: Duration::from_secs(30),
            body: Duration::from_secs(30),
        }
    }
}

/// An HTTP/1.1 client. Clones share connections.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    plain_http: Arc<PlainHttp>,
    proxies: Arc<Proxies>,
    timeouts: Timeouts,
    pace: Option<Pace>,
}

/// Stands in the extensions of an answer that came from another scheme, host or port than the one that was asked
/// first: whatever it says, a challenge for one, is not the word of that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirected;

impl Client {
    /// A client over a dialler.
    ///
    /// # Errors
    /// When the roots cannot be used; no roots at all is one such case.
    pub fn new(dial: Arc<dyn Dial>, config: ClientConfig) -> Result<Self, RootsError> {
        Self::with_way(dial, config, &Way::default())
    }

    /// A client to which some hosts are not like the others.
    ///
    /// # Errors
    /// When the roots cannot be used; no roots at all is one such case.
    pub fn with_way(
        dial: Arc<dyn Dial>,
        config: ClientConfig,
        way: &Way,
    ) -> Result<Self, RootsError> {
        let plain_http = Arc::new(config.plain_http);
        let proxies = Arc::new(way.proxies.clone());
        let connector = Connector {
            dial,
            tls: Arc::new(Tls::new(&config.roots, &way.hosts)?),
            plain_http: plain_http.clone(),
            proxies: proxies.clone(),
            timeouts: config.timeouts,
        };
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(HEAD_BYTES)
            .build(connector);
        Ok(Self {
            http,
            plain_http,
            proxies,
            timeouts: config.timeouts,
            pace: way.pace,
        })
    }

    /// Sends a request with an absolute URL. Any status is an answer, a redirect too.
    ///
    /// # Errors
    /// When there is no answer; the variant is the step that failed.
    pub fn send(&self, request: Request<Bytes>) -> Answer<'_> {
        Box::pin(self.ask(request))
    }

    async fn ask(&self, mut request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let target = Target::of(request.uri())?;
        let host: Arc<str> = target.to_string().into();
        if !target.secure && !self.plain_http.allows(&target) {
            return Err(Error::PlainHttp {
                host: host.to_string(),
            });
        }
        let agent = HeaderValue::from_static(concat!("cloister/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(USER_AGENT).or_insert(agent);
        let mut after = self.timeouts.dial + self.timeouts.tls + self.timeouts.head;
        if let Some(proxy) = self.proxies.of(&target) {
            after += self.timeouts.tls + self.timeouts.head;
            // In a tunnel the other end is the peer, which must not see it.
            if let (false, Some(credentials)) = (target.secure, &proxy.credentials) {
                let headers = request.headers_mut();
                headers.insert(PROXY_AUTHORIZATION, credentials.clone());
            }
        }
        // The connector has deadlines of its own, which name their phase.
        let answer = timeout(after, self.http.request(request.map(Full::new)))
            .await
            .map_err(|_| Error::Timeout {
                host: host.to_string(),
                phase: Phase::Head,
                after,
            })?
            .map_err(|error| Error::unwrap_from(&host, &error))?;
        tracing::trace!(%host, status = answer.status().as_u16(), "answer");
        Ok(answer.map(|body| Body::new(body, host, self.timeouts.body, self.pace)))
    }

    /// The same, and follows redirects of a GET or HEAD, at most five. Credentials do not leave the
    /// scheme, host and port that they were given to, and TLS is not left for plain HTTP.
    ///
    /// # Errors
    /// As [`Client::send`]; also when there are too many redirects, or one that must not be followed.
    pub async fn send_following(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let (mut parts, body) = request.into_parts();
        let first = Target::of(&parts.uri)?;
        for _ in 0..=REDIRECTS {
            let request = Request::from_parts(parts.clone(), body.clone());
            let mut answer = self.send(request).await?;
            let from = Target::of(&parts.uri)?;
            if !follows(&parts.method, answer.status()) {
                if from != first {
                    answer.extensions_mut().insert(Redirected);
                }
                return Ok(answer);
            }
            let next = next_uri(&parts.uri, &from, &answer)?;
            let to = Target::of(&next).map_err(|error| Error::Redirect {
                host: from.to_string(),
                cause: format!("to a URL that is refused: {error}"),
            })?;
            if from.secure && !to.secure {
                return Err(Error::Redirect {
                    host: from.to_string(),
                    cause: format!("from https to plain http at {to}"),
                });
            }
            if from != to {
                parts.headers.remove(AUTHORIZATION);
                parts.headers.remove(COOKIE);
            }
            parts.uri = next;
        }
        Err(Error::Redirect {
            host: Target::of(&parts.uri)?.to_string(),
            cause: format!("after {REDIRECTS} others"),
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

fn follows(method: &Method, status: StatusCode) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
        && matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn next_uri(uri: &Uri, from: &Target, answer: &Response<Body>) -> Result<Uri, Error> {
    let refuse = |cause: &str| Error::Redirect {
        host: from.to_string(),
        cause: cause.to_owned(),
    };
    let location = answer.headers().get(LOCATION);
    let location = location.ok_or_else(|| refuse("without a target"))?;
    if location.len() > LOCATION_BYTES {
        return Err(refuse("with a target that is too long"));
    }
    let location = location.to_str().map_err(|_| refuse("to no URL"))?;
    let base = url::Url::parse(&uri.to_string()).map_err(|_| refuse("from no URL"))?;
    let mut next = base.join(location).map_err(|_| refuse("to no URL"))?;
    next.set_fragment(None);
    next.as_str().parse().map_err(|_| refuse("to no URL"))
}
