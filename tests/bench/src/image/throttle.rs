//! A slow line to the registry.
//!
//! ```text
//! pull ─► line of so many bytes a second ─► registry
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, stream};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use transport::{Client, ClientConfig, PlainHttp, Roots, TcpDial};

/// A line's pieces: small enough to be even.
const PIECE: usize = 16 * 1024;

/// How late a piece may be taken up and the line still be full.
const LATE: Duration = Duration::from_millis(20);

/// The line; it ends with the value.
#[derive(Debug)]
pub struct Line {
    address: String,
    task: JoinHandle<std::io::Result<()>>,
}

struct Far {
    registry: String,
    client: Client,
    bytes_per_second: f64,
    /// When the line is free again.
    free: Mutex<Instant>,
}

impl std::fmt::Debug for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Far")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl Line {
    /// Opens the line to `registry` (`host:port`).
    ///
    /// # Errors
    /// When nothing can be listened on.
    pub async fn start(registry: &str, bits_per_second: f64) -> Result<Self> {
        let mut config = ClientConfig::new(Roots::web());
        config.plain_http = PlainHttp::Allow;
        let far = Arc::new(Far {
            registry: registry.to_owned(),
            client: Client::new(Arc::new(TcpDial), config)?,
            bytes_per_second: bits_per_second / 8.0,
            free: Mutex::new(Instant::now()),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let app = Router::new().fallback(serve).with_state(far);
        let task = tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, task })
    }

    /// `host:port` of the near end.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(State(far): State<Arc<Far>>, request: Request) -> Response {
    far.serve(request).await.unwrap_or_else(|error| {
        let mut response = Response::new(Body::from(error.to_string()));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    })
}

impl Far {
    async fn serve(self: Arc<Self>, request: Request) -> Result<Response> {
        let path = request.uri().path().to_owned();
        let mut ask = axum::http::Request::builder()
            .method(request.method())
            .uri(format!("http://{}{path}", self.registry))
            .body(Bytes::new())?;
        copy_headers(
            request.headers(),
            ask.headers_mut(),
            &[header::ACCEPT, header::RANGE],
        );
        let answer = self.client.send_following(ask).await?;
        let mut response = Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            let passed = [
                header::CONTENT_TYPE,
                header::CONTENT_LENGTH,
                header::CONTENT_RANGE,
            ];
            copy_headers(answer.headers(), headers, &passed);
        }
        let pass = Pass {
            far: self,
            body: answer.into_body(),
            piece: Bytes::new(),
        };
        Ok(response.body(Body::from_stream(pass.stream()))?)
    }

    /// When the next `bytes` are through: all connections share the line.
    fn through(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        let took = Duration::from_secs_f64(bytes / self.bytes_per_second);
        let now = Instant::now();
        // A timer is late by a millisecond or two, which is no loss for a line that was not idle.
        *free = (*free).max(now.checked_sub(LATE).unwrap_or(now)) + took;
        *free
    }
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap, names: &[header::HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
}

/// One answer on its way through the line.
struct Pass {
    far: Arc<Far>,
    body: transport::Body,
    piece: Bytes,
}

impl Pass {
    fn stream(self) -> impl Stream<Item = Result<Bytes, transport::Error>> {
        stream::try_unfold(self, |mut pass| async move {
            while pass.piece.is_empty() {
                match pass.body.frame().await.transpose()? {
                    Some(frame) => pass.piece = frame.into_data().unwrap_or_default(),
                    None => return Ok(None),
                }
            }
            let piece = pass.piece.split_to(pass.piece.len().min(PIECE));
            tokio::time::sleep_until(pass.far.through(piece.len()).into()).await;
            Ok(Some((piece, pass)))
        })
    }
}
