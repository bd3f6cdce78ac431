//! From a URL to a connection: dial, then TLS, each with its own deadline and its own error.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::{
    BoxedStream, Dial, Error, Phase, PlainHttp, Proxies, Roots, RootsError, Timeouts, Trust,
    proxy::Proxy,
    roots::{refusal, unverified},
};

/// What the HTTP stack calls for a new connection.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) dial: Arc<dyn Dial>,
    pub(crate) tls: Arc<Tls>,
    pub(crate) plain_http: Arc<PlainHttp>,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) timeouts: Timeouts,
}

/// Whose certificates are taken, by host.
pub(crate) struct Tls {
    everybody: Trusting,
    hosts: BTreeMap<String, Trusting>,
}

struct Trusting {
    connector: TlsConnector,
    /// In words, for a refusal.
    roots: String,
}

impl Tls {
    pub(crate) fn new(roots: &Roots, hosts: &BTreeMap<String, Trust>) -> Result<Self, RootsError> {
        let chained = |roots: &Roots| {
            Ok(Trusting {
                connector: TlsConnector::from(Arc::new(roots.client_config()?)),
                roots: roots.to_string(),
            })
        };
        let special = |(host, trust): (&String, &Trust)| {
            let trusting = match trust {
                Trust::Roots(roots) => chained(roots)?,
                Trust::Unverified => Trusting {
                    connector: TlsConnector::from(Arc::new(unverified()?)),
                    roots: "all".to_owned(),
                },
            };
            Ok((host.to_ascii_lowercase(), trusting))
        };
        Ok(Self {
            everybody: chained(roots)?,
            hosts: hosts
                .iter()
                .map(special)
                .collect::<Result<_, RootsError>>()?,
        })
    }

    fn of(&self, target: &Target) -> &Trusting {
        let host = target.host.to_ascii_lowercase();
        let named = self.hosts.get(&target.to_string().to_ascii_lowercase());
        named
            .or_else(|| self.hosts.get(&host))
            .unwrap_or(&self.everybody)
    }
}

impl Service<Uri> for Connector {
    type Response = Conn;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Conn, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Conn, Error> {
        let target = Target::of(uri)?;
        if !target.secure && !self.plain_http.allows(&target) {
            return Err(Error::PlainHttp {
                host: target.to_string(),
            });
        }
        let proxy = self.proxies.of(&target);
        let stream = match proxy {
            None => self.dial(&target).await?,
            Some(proxy) => self.dial_proxy(proxy, &target).await?,
        };
        let stream = if target.secure {
            self.handshake(&target, stream).await?
        } else {
            stream
        };
        Ok(Conn {
            stream: TokioIo::new(stream),
            // A tunnel is not a proxy to the HTTP stack.
            proxied: proxy.is_some() && !target.secure,
        })
    }

    async fn dial(&self, target: &Target) -> Result<BoxedStream, Error> {
        let dialling = self.dial.dial(&target.host, target.port);
        timeout(self.timeouts.dial, dialling)
            .await
            .map_err(|_| Error::Timeout {
                host: target.to_string(),
                phase: Phase::Dial,
                after: self.timeouts.dial,
            })?
            .map_err(|error| Error::Dial {
                host: target.to_string(),
                kind: error.kind(),
                cause: error.to_string(),
            })
    }

    /// A stream to `target` through the proxy, or, for plain HTTP, the stream to the proxy.
    async fn dial_proxy(&self, proxy: &Proxy, target: &Target) -> Result<BoxedStream, Error> {
        let failed = |cause: String| Error::Proxy {
            proxy: proxy.target.to_string(),
            cause,
        };
        let stream = match self.dial(&proxy.target).await {
            // That the relay will not carry it cannot be cured, and has its own code.
            Err(error @ Error::Dial { .. }) if !error.is_transient() => return Err(error),
            dialled => dialled.map_err(|error| failed(error.to_string()))?,
        };
        let mut stream = if proxy.target.secure {
            self.handshake(&proxy.target, stream).await?
        } else {
            stream
        };
        if target.secure {
            let after = self.timeouts.head;
            timeout(after, proxy.open(&mut stream, target))
                .await
                .map_err(|_| failed(format!("no answer within {} ms", after.as_millis())))?
                .map_err(failed)?;
        }
        Ok(stream)
    }

    async fn handshake(&self, target: &Target, stream: BoxedStream) -> Result<BoxedStream, Error> {
        let host = target.to_string();
        let name = ServerName::try_from(target.host.clone()).map_err(|error| Error::Request {
            url: host.clone(),
            cause: error.to_string(),
        })?;
        let trusting = self.tls.of(target);
        match timeout(self.timeouts.tls, trusting.connector.connect(name, stream)).await {
            Err(_) => Err(Error::Timeout {
                host,
                phase: Phase::Tls,
                after: self.timeouts.tls,
            }),
            Ok(Err(error)) => Err(tls_error(host, &error, &trusting.roots)),
            Ok(Ok(stream)) => Ok(Box::new(stream)),
        }
    }
}

fn tls_error(host: String, error: &io::Error, roots: &str) -> Error {
    let rustls = error.get_ref().and_then(|e| e.downcast_ref());
    match rustls.and_then(refusal) {
        Some(cause) => Error::Untrusted {
            host,
            cause,
            roots: roots.to_owned(),
        },
        None => Error::Tls {
            host,
            cause: error.to_string(),
        },
    }
}

/// Where a URL leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) secure: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Target {
    pub(crate) fn of(uri: &Uri) -> Result<Self, Error> {
        let refuse = |cause: &str| Error::Request {
            url: shown(uri),
            cause: cause.to_owned(),
        };
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(refuse("the scheme is neither https nor http")),
        };
        let authority = uri.authority().ok_or_else(|| refuse("no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("a user in the URL: use the Authorization header"));
        }
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(refuse("no host"));
        }
        Ok(Self {
            secure,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
        })
    }
}

/// A URL without what may be a secret in it: a user, and the query of one that is signed.
fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{}", uri.path())
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A connection as the HTTP stack wants it.
pub(crate) struct Conn {
    stream: TokioIo<BoxedStream>,
    proxied: bool,
}

impl Connection for Conn {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_leads_to_a_host_and_a_port() {
        let target = |uri: &str| Target::of(&uri.parse().unwrap());
        assert_eq!(target("https://a.b/x").unwrap().to_string(), "a.b:443");
        assert_eq!(target("http://a:1").unwrap().to_string(), "a:1");
        let v6 = target("https://[::1]:8080/").unwrap();
        assert_eq!(
            (v6.host.as_str(), v6.to_string().as_str()),
            ("::1", "[::1]:8080")
        );
        assert!(target("ftp://a").is_err());
        assert!(target("https://user:pw@a/").is_err());
        assert!(target("/path").is_err());
    }
}
