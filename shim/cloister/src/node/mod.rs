//! `cloister monitor`: one endpoint of Prometheus for all sandboxes of the node.
//!
//! ```text
//!   GET /metrics ─► ask: every shim-monitor.sock, at once ─► page ─┐
//!   @monitor.sock ─► reports of starts ─► counters ────────────────┴─► one text
//! ```
//!
//! A shim is asked within a deadline and for at most so many bytes, and its page is taken whole or not at all.
//! Which sandbox a sample is of is written here, from the name of its directory: no page says that itself. The
//! paths, and the labels `sandbox_id`, `cri_uid`, `cri_name` and `cri_namespace`, are kata-monitor's.

mod ask;
mod page;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shim::state_dir;
use shim::telemetry::report::{self, MAX_REPORT};
use tokio::net::{TcpListener, UnixDatagram, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use transport::BoxedStream;

use crate::keyprovider::{self, Socket};
use page::Node;

/// Collectors at a time; more wait.
const MAX_CONNECTIONS: usize = 16;
/// How long a collector may take to ask, and how long it may stay.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait where there are no descriptors to be had.
const PAUSE: Duration = Duration::from_secs(1);
/// Prometheus' text format, and plain text.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
const INDEX: &str = "/metrics             the node's metrics and those of all sandboxes\n\
    /metrics?sandbox=ID  those of one sandbox\n\
    /sandboxes           the sandboxes' ids\n\
    /agent-url           answers 404: no agent has an address on the host\n";

/// What to serve.
#[derive(Debug, Args)]
pub(super) struct Monitor {
    /// Where to listen: ADDRESS:PORT, or the absolute path of a Unix socket.
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: Place,
}

/// Where the monitor listens.
#[derive(Debug, Clone)]
enum Place {
    Address(SocketAddr),
    Socket(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.starts_with('/') {
            return Ok(Self::Socket(path.into()));
        }
        let no = "use ADDRESS:PORT, such as 127.0.0.1:8090, or an absolute path";
        text.parse().map(Self::Address).map_err(|_| no.to_owned())
    }
}

enum Listener {
    Tcp(TcpListener),
    /// With the socket, which is removed at the end.
    Unix(UnixListener, Socket),
}

impl Monitor {
    pub(super) async fn run(self) -> Result<()> {
        let root = state_dir::root();
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root);
        made.with_context(|| format!("make {}", root.display()))?;
        // One that cannot serve takes nothing from one that does.
        let listener = Listener::bind(&self.listen).await?;
        let reports = report::listen(&root)
            .with_context(|| format!("take reports of starts in {}", root.display()))?;
        reports.socket.set_nonblocking(true)?;
        let socket = UnixDatagram::from_std(reports.socket.try_clone()?)?;
        println!("{listener}");
        let node = Arc::new(Node::new(root));
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        tokio::select! {
            () = serve(&listener, &node) => {}
            () = take_reports(&socket, &node) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }
}

impl Listener {
    async fn bind(place: &Place) -> Result<Self> {
        match place {
            Place::Address(address) => {
                let bound = TcpListener::bind(address).await;
                bound
                    .map(Self::Tcp)
                    .with_context(|| format!("listen on {address}"))
            }
            Place::Socket(path) => {
                // Nobody who lives is pushed aside, and nothing that is no socket.
                let (bound, socket) = keyprovider::bind(path)?;
                Ok(Self::Unix(bound, socket))
            }
        }
    }

    async fn accept(&self) -> io::Result<BoxedStream> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener, ..) => Box::new(listener.accept().await?.0),
        })
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "http://{address}/metrics"),
                Err(error) => write!(f, "{error}"),
            },
            Self::Unix(_, socket) => write!(f, "unix:{}", socket.path().display()),
        }
    }
}

async fn take_reports(socket: &UnixDatagram, node: &Node) {
    let mut bytes = [0; MAX_REPORT];
    loop {
        match socket.recv(&mut bytes).await {
            Ok(length) => node.take(bytes.get(..length).unwrap_or_default()),
            Err(error) => {
                eprintln!("cloister: reports of starts: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(listener: &Listener, node: &Arc<Node>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("cloister: a collector: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let node = Arc::clone(node);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let node = Arc::clone(&node);
                async move { Ok::<_, Infallible>(answer(&request, &node).await) }
            });
            let spoken = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ASK_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // How it ends is the collector's business.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, spoken).await;
            drop(slot);
        });
    }
}

async fn answer<B>(request: &Request<B>, node: &Node) -> Response<Full<Bytes>> {
    let wanted = |name: &str| {
        let query = request.uri().query().unwrap_or_default();
        let values = query.split('&').filter_map(|pair| pair.split_once('='));
        // An id has nothing that would be escaped.
        let mut values = values.filter(|(key, value)| *key == name && !value.is_empty());
        values.next().map(|(_, value)| value.to_owned())
    };
    let mut kind = PLAIN;
    let (status, text): (_, Bytes) = match (request.method(), request.uri().path()) {
        (method, _) if method != Method::GET => (
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is answered\n".into(),
        ),
        (_, "/metrics") => match wanted("sandbox") {
            None => {
                kind = METRICS;
                (StatusCode::OK, node.page().await)
            }
            Some(sandbox) => match node.page_of(&sandbox, wanted("namespace").as_deref()).await {
                Ok(text) => {
                    kind = METRICS;
                    (StatusCode::OK, text.into())
                }
                Err((status, why)) => (status, format!("{why}\n").into()),
            },
        },
        (_, "/sandboxes") => (StatusCode::OK, node.list().into()),
        (_, "/agent-url") => (
            StatusCode::NOT_FOUND,
            "no agent has an address on the host: its shim alone has the connection\n".into(),
        ),
        (_, "/") => (StatusCode::OK, INDEX.into()),
        _ => (StatusCode::NOT_FOUND, INDEX.into()),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_place_is_an_address_or_a_path() {
        let place = |text: &str| text.parse::<Place>();
        assert!(matches!(place("127.0.0.1:0"), Ok(Place::Address(_))));
        assert!(matches!(place("[::1]:8090"), Ok(Place::Address(_))));
        for path in ["/run/m.sock", "unix:/run/m.sock", "unix:///run/m.sock"] {
            assert!(matches!(place(path), Ok(Place::Socket(path)) if path.ends_with("m.sock")));
        }
        assert!(place("8090").is_err() && place("m.sock").is_err());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert!(Listener::bind(&Place::Socket(path.clone())).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        // A dead one's socket is taken over, a living one's is not.
        let path = root.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = Listener::bind(&Place::Socket(path.clone())).await.unwrap();
        let mode = std::fs::symlink_metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Listener::bind(&Place::Socket(path.clone())).await.is_err());
        drop(first);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_paths_are_kata_monitors_and_nothing_else_is_answered() {
        let root = tempfile::tempdir().unwrap();
        let node = Node::new(root.path().to_owned());
        let ask = async |method: Method, path: &str| {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .body(())
                .unwrap();
            answer(&request, &node).await.status().as_u16()
        };
        for (path, status) in [
            ("/metrics", 200),
            ("/sandboxes", 200),
            ("/metrics?sandbox=none", 404),
            ("/metrics?sandbox=../x", 404),
            ("/agent-url?sandbox=x", 404),
            ("/debug/pprof/", 404),
        ] {
            assert_eq!(ask(Method::GET, path).await, status, "{path}");
        }
        assert_eq!(ask(Method::POST, "/metrics").await, 405);
    }
}
