//! The mirror of one guest: HTTP on a connection that opened with `MIRROR`.
//!
//! The guest is not trusted: connections, heads, pieces and uploads are bounded, and what it brings is not shown to
//! anybody as a blob before its digest held. One who follows a blob on its way knows that it is not checked yet.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use image_rs::Digest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::answer::{self, Answer, Said};
use super::request::{Asked, Refusal};
use super::store::{Store, StoreError};
use super::upload::Uploads;

/// Connections of one guest at a time.
const MAX_CONNECTIONS: usize = 32;
/// The head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// One piece of an upload, in bytes.
const MAX_PIECE: usize = 1024 * 1024;
/// How long a guest may take to ask; also how long a connection may wait for use.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a piece may take to come.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

/// The mirror as one guest sees it. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Mirror(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    cap: u64,
    store: OnceCell<Option<Store>>,
    uploads: Uploads,
    slots: Arc<Semaphore>,
}

impl Mirror {
    /// A mirror of at most `cap` bytes in `directory`, which is not touched before a guest asks for it.
    #[must_use]
    pub fn new(directory: PathBuf, cap: u64) -> Self {
        Self(Arc::new(Inner {
            directory,
            cap,
            store: OnceCell::new(),
            uploads: Uploads::default(),
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }))
    }

    /// A place for one more connection.
    pub(crate) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.slots).try_acquire_owned().ok()
    }

    /// Whether there is a store; it is opened when it is asked for first.
    pub(crate) async fn is_open(&self) -> bool {
        self.store().await.is_some()
    }

    async fn store(&self) -> Option<&Store> {
        let open = || async {
            let (directory, cap) = (self.0.directory.clone(), self.0.cap);
            let opened = blocking(move || Store::open(&directory, cap)).await;
            opened
                .inspect_err(|error| warn!(error = error.message, "this pod has no mirror"))
                .ok()
        };
        self.0.store.get_or_init(open).await.as_ref()
    }

    /// Speaks HTTP until the guest ends it.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let service = service_fn(|request| async move { self.answer(request).await });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(ASK_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            debug!(%error, "a connection to the mirror");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let asked = Asked::of(request.method(), request.uri(), request.headers());
        let answer = match asked {
            Ok(asked) => self.act(asked, request.into_body()).await,
            Err(refusal) => Err(refusal),
        };
        Ok(answer.unwrap_or_else(|refusal| answer::refused(&refusal)))
    }

    async fn act(&self, asked: Asked, body: Incoming) -> Result<Response<Said>, Refusal> {
        let Some(store) = self.store().await else {
            let message = "the mirror cannot be opened";
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                message,
            ));
        };
        match asked {
            Asked::Version => Ok(answer::plain(StatusCode::OK)),
            Asked::Has(digest) => self
                .read(store, digest)
                .await
                .map(|found| answer::has(&found)),
            Asked::Blob { digest, from } => answer::blob(self.read(store, digest).await?, from),
            Asked::Begin(digest) => self.begin(store, digest).await,
            Asked::More { upload, from } => self.more(upload, from, body).await,
            Asked::Finish { upload, digest } => self.finish(upload, digest, body).await,
            Asked::Cancel { upload } => {
                self.0.uploads.end(upload);
                Ok(answer::plain(StatusCode::NO_CONTENT))
            }
        }
    }

    async fn read(&self, store: &Store, digest: Digest) -> Result<super::Reading, Refusal> {
        let store = store.clone();
        let found = blocking(move || store.read(&digest)).await?;
        found.ok_or_else(|| {
            let message = "the mirror does not have this blob";
            Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message)
        })
    }

    async fn begin(&self, store: &Store, digest: Digest) -> Result<Response<Said>, Refusal> {
        let store = store.clone();
        let ingest = blocking(move || store.ingest(&digest)).await?;
        let upload = self.0.uploads.add(ingest).ok_or_else(|| {
            let message = "too many uploads are under way";
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
        })?;
        Ok(accepted(upload))
    }

    async fn more(
        &self,
        upload: u64,
        from: Option<u64>,
        body: Incoming,
    ) -> Result<Response<Said>, Refusal> {
        let bytes = piece(body).await?;
        let mut ingest = self.0.uploads.take(upload).ok_or_else(unknown)?;
        if from.is_some_and(|from| from != ingest.written()) {
            let message = format!("the next byte is {}", ingest.written());
            self.0.uploads.put(upload, ingest);
            return Err(Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "BLOB_UPLOAD_INVALID",
                message,
            ));
        }
        let written = blocking(move || ingest.write(&bytes).map(|()| ingest)).await;
        match written {
            Ok(ingest) => {
                self.0.uploads.put(upload, ingest);
                Ok(accepted(upload))
            }
            // What was written of it is gone with it.
            Err(refusal) => {
                self.0.uploads.end(upload);
                Err(refusal)
            }
        }
    }

    async fn finish(
        &self,
        upload: u64,
        digest: Digest,
        body: Incoming,
    ) -> Result<Response<Said>, Refusal> {
        let bytes = piece(body).await?;
        let mut ingest = self.0.uploads.take(upload).ok_or_else(unknown)?;
        self.0.uploads.end(upload);
        if *ingest.digest() != digest {
            let message = format!("this is the upload of {}", ingest.digest());
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "DIGEST_INVALID",
                message,
            ));
        }
        blocking(move || {
            if !bytes.is_empty() {
                ingest.write(&bytes)?;
            }
            ingest.finish()
        })
        .await?;
        debug!(%digest, "the mirror has a new blob");
        Ok(answer::plain(StatusCode::CREATED))
    }
}

fn accepted(upload: u64) -> Response<Said> {
    let mut response = answer::plain(StatusCode::ACCEPTED);
    let place = HeaderValue::from_str(&format!("/v2/blob/blobs/uploads/{upload}"));
    let headers = response.headers_mut();
    headers.extend(place.ok().map(|place| (LOCATION, place)));
    response
}

fn unknown() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "BLOB_UPLOAD_UNKNOWN",
        "no such upload",
    )
}

/// One piece of an upload, whole.
async fn piece(body: Incoming) -> Result<Bytes, Refusal> {
    let refuse = |status, message: &str| Refusal::new(status, "BLOB_UPLOAD_INVALID", message);
    let body = Limited::new(body, MAX_PIECE);
    match timeout(PIECE_TIMEOUT, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            "a piece is too large, or broke off",
        )),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            "a piece did not come in time",
        )),
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done.map_err(|error| refusal(&error)),
        Err(error) => Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "UNKNOWN",
            error.to_string(),
        )),
    }
}

fn refusal(error: &StoreError) -> Refusal {
    let (status, code) = match error {
        StoreError::Taken(_) => (StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID"),
        StoreError::Digest { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        StoreError::Full { .. } | StoreError::Disk => {
            (StatusCode::INSUFFICIENT_STORAGE, "SIZE_INVALID")
        }
        StoreError::Locked => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        StoreError::Io { .. } => {
            // Its paths are the host's business.
            warn!(%error, "the mirror");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Refusal::new(status, "UNKNOWN", "the mirror's files cannot be used");
        }
    };
    Refusal::new(status, code, error.to_string())
}
