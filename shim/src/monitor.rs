//! The sandbox's metrics for the host: HTTP on a Unix socket in the state directory, as Kata's shim
//! has it (`shim-monitor.sock`, `GET /metrics`), so that its collectors work and so does curl. `GET
//! /creations` is ours: how far the containers are that are being created. `GET /direct-volume/stats` and `POST
//! /direct-volume/resize` are Kata's again, for storage drivers.
//!
//! `GET /metrics/shim` and `GET /metrics/guest` are the two halves of the page, so that a guest that does not
//! answer keeps back nothing of what the host knows.
//!
//! Only root reaches the socket: the directory is its own. The shim always tells what the host knows of the
//! sandbox. What the guest tells is the guest's business: its owner's policy may refuse `GetMetricsRequest`,
//! and then `cloister_guest_metrics` and a comment say so.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::{debug, warn};
use transport::{BoxedStream, Dial};

use crate::creation::Creation;
use crate::disk::described::{Growth, MAX_REQUEST, RESIZE, RESIZE_TIMEOUT, STATS};
use crate::state_dir::StateDir;

/// The socket in the state directory; Kata's name.
const SOCKET: &str = "shim-monitor.sock";
/// Kata's path.
pub const METRICS: &str = "/metrics";
/// What the host knows of the sandbox: answered at once.
pub const OWN_METRICS: &str = "/metrics/shim";
/// What the guest tells of itself, and what became of the question.
pub const GUEST_METRICS: &str = "/metrics/guest";
/// How far the containers are that are being created: JSON, an array of [`Creation`].
pub const CREATIONS: &str = "/creations";
/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
/// Collectors at a time; more wait.
const MAX_CONNECTIONS: usize = 8;
/// How long a collector may take to ask.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a collector may stay: longer than the guest takes, and not for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Who knows the metrics.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// What the host knows as of now, in Prometheus' text format.
    fn own_metrics(&self) -> String;

    /// The same of what the guest tells, of other families.
    async fn guest_metrics(&self) -> String;

    /// The containers that are being created, and how far that is.
    fn creations(&self) -> Vec<Creation>;

    /// How full the volume of a device of the host is, as JSON.
    async fn volume_stats(&self, device: &str) -> Result<String, GuestError>;

    /// Makes a volume larger, whose device is already.
    async fn grow_volume(&self, growth: &Growth) -> Result<(), GuestError>;
}

/// Listens in the directory of a sandbox.
///
/// # Errors
/// As bind(2) fails.
pub fn listen(directory: &StateDir) -> io::Result<UnixListener> {
    let place = Place::of(directory)?;
    UnixListener::bind(place.socket())
}

/// Serves until the task is dropped.
pub async fn serve(listener: UnixListener, source: Arc<dyn Source>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "the monitor's socket");
                // Such as a lack of descriptors: it may pass.
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            if !speak_in_time(stream, source).await {
                debug!("a collector stayed too long");
            }
            drop(slot);
        });
    }
}

/// Speaks with a collector; answers whether it went in time. Who makes a volume larger may stay for that.
async fn speak_in_time(stream: UnixStream, source: Arc<dyn Source>) -> bool {
    let grows = AtomicBool::new(false);
    let mut connection = pin!(speak(stream, source, &grows));
    let in_time = tokio::time::timeout(CONNECTION_TIMEOUT, &mut connection).await;
    if in_time.is_err() && grows.load(Ordering::Relaxed) {
        return tokio::time::timeout(RESIZE_TIMEOUT, connection)
            .await
            .is_ok();
    }
    in_time.is_ok()
}

async fn speak(stream: UnixStream, source: Arc<dyn Source>, grows: &AtomicBool) {
    let service = service_fn(|request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(request, source, grows).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASK_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a collector");
    }
}

async fn answer<B>(
    request: Request<B>,
    source: Arc<dyn Source>,
    grows: &AtomicBool,
) -> Response<Full<Bytes>>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (head, body) = request.into_parts();
    let mut content_type = TEXT;
    let (status, text) = match (&head.method, head.uri.path()) {
        (&Method::GET, CREATIONS) => {
            content_type = JSON;
            // Words and numbers always serialize.
            let text = serde_json::to_string(&source.creations()).unwrap_or_default();
            (StatusCode::OK, text)
        }
        (&Method::GET, METRICS) => {
            let guests = source.guest_metrics().await;
            (StatusCode::OK, guests + &source.own_metrics())
        }
        (&Method::GET, OWN_METRICS) => (StatusCode::OK, source.own_metrics()),
        (&Method::GET, GUEST_METRICS) => (StatusCode::OK, source.guest_metrics().await),
        (&Method::GET, STATS) => {
            content_type = JSON;
            stats(head.uri.query().unwrap_or_default(), source.as_ref()).await
        }
        (&Method::POST, RESIZE) => resize(body, source, grows).await,
        (_, METRICS | OWN_METRICS | GUEST_METRICS | CREATIONS | STATS) => (
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET is answered\n".to_owned(),
        ),
        (_, RESIZE) => (
            StatusCode::METHOD_NOT_ALLOWED,
            "only POST is answered\n".to_owned(),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            format!(
                "there is nothing but {METRICS}, {OWN_METRICS}, {GUEST_METRICS}, {CREATIONS}, {STATS} \
                 and {RESIZE}\n"
            ),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let content_type = http::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// How full a volume is, whose device is the query's `path`.
async fn stats(query: &str, source: &dyn Source) -> (StatusCode, String) {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let Some((_, device)) = pairs.find(|(name, _)| name == "path") else {
        let text = "name the volume's device: ?path=<device>\n";
        return (StatusCode::BAD_REQUEST, text.to_owned());
    };
    match source.volume_stats(&device).await {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => failed(&error),
    }
}

async fn resize<B>(body: B, source: Arc<dyn Source>, grows: &AtomicBool) -> (StatusCode, String)
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let body = Limited::new(body, MAX_REQUEST).collect().await;
    let growth = body.map_err(|error| error.to_string()).and_then(|body| {
        serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())
    });
    let growth: Growth = match growth {
        Ok(growth) => growth,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    grows.store(true, Ordering::Relaxed);
    // What was begun is done whether or not anybody waits for it: the guest does not stop halfway.
    let grown = tokio::spawn(async move { source.grow_volume(&growth).await }).await;
    grows.store(false, Ordering::Relaxed);
    let ended =
        |error: tokio::task::JoinError| Err(GuestError::new(ErrorCode::Internal, "disk", error));
    match grown.unwrap_or_else(ended) {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(error) => failed(&error),
    }
}

fn failed(error: &GuestError) -> (StatusCode, String) {
    let status = match error.code {
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, format!("{error}\n"))
}

/// Connects to the monitor of a sandbox.
///
/// # Errors
/// As connect(2) fails.
pub async fn connect(directory: &StateDir) -> io::Result<UnixStream> {
    let place = Place::of(directory)?;
    UnixStream::connect(place.socket()).await
}

/// The way to the monitor of a sandbox, for an HTTP client. Host and port are not looked at.
#[derive(Debug, Clone)]
pub struct MonitorDial(pub StateDir);

#[async_trait]
impl Dial for MonitorDial {
    async fn dial(&self, _host: &str, _port: u16) -> io::Result<BoxedStream> {
        Ok(Box::new(connect(&self.0).await?))
    }
}

/// An open directory. A socket's address has at most 107 bytes (unix(7)), which the path of a state
/// directory may exceed; the path by an open descriptor never does.
struct Place(File);

impl Place {
    fn of(directory: &StateDir) -> io::Result<Self> {
        File::open(directory.path()).map(Self)
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", self.0.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::creation::Progress;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use transport::{Client, ClientConfig, PlainHttp, Roots, bytes_capped};

    struct Fixed(&'static str);

    #[async_trait]
    impl Source for Fixed {
        fn own_metrics(&self) -> String {
            self.0.to_owned()
        }

        async fn guest_metrics(&self) -> String {
            "g 2\n".to_owned()
        }

        fn creations(&self) -> Vec<Creation> {
            vec![Creation {
                container: "c".into(),
                progress: Progress::default(),
            }]
        }

        async fn volume_stats(&self, device: &str) -> Result<String, GuestError> {
            Ok(format!("{device} is full"))
        }

        async fn grow_volume(&self, growth: &Growth) -> Result<(), GuestError> {
            let text = format!("{} has no {} bytes", growth.device, growth.bytes);
            Err(GuestError::new(ErrorCode::NotFound, "disk", text))
        }
    }

    async fn ask(source: Fixed, method: Method, path: &str) -> (u16, String) {
        ask_with(source, method, path, "").await
    }

    async fn ask_with(
        source: Fixed,
        method: Method,
        path: &str,
        body: &'static str,
    ) -> (u16, String) {
        let root = tempfile::tempdir().unwrap();
        // Longer than an address of a socket may be.
        let directory = StateDir::at(&root.path().join("x".repeat(120)));
        directory.create().unwrap();
        let listener = listen(&directory).unwrap();
        assert!(directory.path().join(SOCKET).exists());
        let server = tokio::spawn(serve(listener, Arc::new(source)));
        let mut config = ClientConfig::new(Roots::web());
        config.plain_http = PlainHttp::Allow;
        let client = Client::new(Arc::new(MonitorDial(directory)), config).unwrap();
        let request = Request::builder()
            .method(method)
            .uri(format!("http://shim{path}"))
            .body(Bytes::from(body))
            .unwrap();
        let (head, body) = client.send(request).await.unwrap().into_parts();
        let body = bytes_capped(body, 4096).await.unwrap();
        server.abort();
        let text = String::from_utf8(body.to_vec()).unwrap();
        (head.status.as_u16(), text)
    }

    #[tokio::test]
    async fn the_metrics_are_the_sources() {
        for (path, page) in [
            (METRICS, "g 2\na 1\n"),
            (OWN_METRICS, "a 1\n"),
            (GUEST_METRICS, "g 2\n"),
        ] {
            let answer = ask(Fixed("a 1\n"), Method::GET, path).await;
            assert_eq!(answer, (200, page.to_owned()));
        }
    }

    #[tokio::test]
    async fn what_is_being_created_is_told_whether_or_not_there_is_a_guest() {
        let (status, text) = ask(Fixed(""), Method::GET, CREATIONS).await;
        let told: Vec<Creation> = serde_json::from_str(&text).unwrap();
        assert_eq!((status, told[0].container.as_str()), (200, "c"));
    }

    #[tokio::test]
    async fn volumes_are_asked_for_by_their_device_and_made_larger() {
        let full = ask(
            Fixed(""),
            Method::GET,
            "/direct-volume/stats?path=%2Fdev%2Fx",
        )
        .await;
        assert_eq!(full, (200, "/dev/x is full".to_owned()));
        let unnamed = ask(Fixed(""), Method::GET, "/direct-volume/stats").await;
        assert_eq!(unnamed.0, 400);
        let growth = r#"{"VolumePath":"/dev/x","Size":7}"#;
        let (status, text) = ask_with(Fixed(""), Method::POST, RESIZE, growth).await;
        assert_eq!(status, 404);
        assert!(text.contains("/dev/x has no 7 bytes"), "{text}");
        let (status, _) = ask_with(Fixed(""), Method::POST, RESIZE, "{").await;
        assert_eq!(status, 400);
    }

    /// Has volumes that take minutes to grow, and knows how many have.
    #[derive(Default)]
    struct Slow {
        begun: tokio::sync::Notify,
        done: AtomicU32,
    }

    #[async_trait]
    impl Source for Slow {
        fn own_metrics(&self) -> String {
            String::new()
        }

        async fn guest_metrics(&self) -> String {
            std::future::pending().await
        }

        fn creations(&self) -> Vec<Creation> {
            Vec::new()
        }

        async fn volume_stats(&self, _device: &str) -> Result<String, GuestError> {
            Ok(String::new())
        }

        async fn grow_volume(&self, _growth: &Growth) -> Result<(), GuestError> {
            self.begun.notify_one();
            tokio::time::sleep(CONNECTION_TIMEOUT * 4).await;
            self.done.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_growth_may_take_minutes_and_is_done_though_nobody_waits() {
        let source = Arc::new(Slow::default());
        let body = r#"{"VolumePath":"/dev/x","Size":7}"#;
        let growth = format!(
            "POST {RESIZE} HTTP/1.1\r\nHost: shim\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let asked = async |request: &str| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(request.as_bytes()).await.unwrap();
            let connection = tokio::spawn(speak_in_time(theirs, source.clone()));
            (ours, connection)
        };
        let (mut ours, connection) = asked(&growth).await;
        let mut answer = String::new();
        ours.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(connection.await.unwrap());
        source.begun.notified().await;
        let (ours, connection) = asked(&growth).await;
        source.begun.notified().await;
        drop(ours);
        connection.await.unwrap();
        tokio::time::sleep(CONNECTION_TIMEOUT * 5).await;
        assert_eq!(source.done.load(Ordering::Relaxed), 2);
        // Nobody else stays so long.
        let slow = format!("GET {GUEST_METRICS} HTTP/1.1\r\nHost: shim\r\n\r\n");
        let (_ours, connection) = asked(&slow).await;
        assert!(!connection.await.unwrap());
    }

    #[tokio::test]
    async fn there_is_nothing_else_to_do_here() {
        for (method, path, status) in [
            (Method::POST, METRICS, 405),
            (Method::POST, CREATIONS, 405),
            (Method::POST, STATS, 405),
            (Method::GET, RESIZE, 405),
            (Method::GET, "/", 404),
            (Method::PUT, "/policy", 404),
        ] {
            assert_eq!(ask(Fixed("a 1\n"), method, path).await.0, status);
        }
    }
}
