//! The mirror that the host of a guest keeps: blobs by digest, asked before any registry, and filled by guests.
//!
//! ```text
//! BlobStream ─► node's mirror ── has it ─► bytes, checked like any others
//!                     └─ 404 ─► registry ─► bytes ─┬─► reader
//!                                                  └─► Offer: the same bytes back to the mirror
//! ```
//!
//! The host is not trusted. It is asked for nothing but blobs, which have a digest; it sees no name, no credentials,
//! and no tag. A mirror that stalls, breaks off or lies costs a deadline or a blob, and after a few times it is not
//! asked again. What is offered is what the registry sent, encrypted where it is encrypted, and an offer never keeps
//! a pull waiting for long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, HeaderValue, LOCATION};
use http::{Method, Request, StatusCode};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use transport::{Client, ClientConfig, Dial, Pace, PlainHttp, Roots, RootsError, Timeouts, Way};

use super::RegistryError;
use super::walk::Walk;
use crate::digest::Digest;

/// The mirror's name, under which nobody can be dialled (RFC 6761, section 6.4).
pub(super) const HOST: &str = "mirror.invalid";
/// The repository of all blobs: the host need not know whose they are.
pub(super) const REPOSITORY: &str = "blob";
/// What the mirror has to bring in twice the deadline of a piece, in bytes: what is slower is no help.
const SPAN_BYTES: u64 = 4 * 1024 * 1024;
/// One piece of an upload, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait to be offered.
const WAITING: usize = 2;
/// How long one blob may wait for its offer, beside the part of its own time below.
const PATIENCE: Duration = Duration::from_millis(500);
/// The part of the time since its first byte that a blob may wait as well.
const PATIENCE_PART: u32 = 8;

/// Which blobs the mirror is asked for, and offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Encrypted layers only. The host learns which ones, and of the rest nothing.
    Encrypted,
    /// Whatever is pulled.
    All,
}

/// The mirror of the node that the guest runs on.
#[expect(missing_debug_implementations, reason = "holds a dialler")]
#[derive(Clone)]
pub struct NodeMirror {
    pub(super) http: Client,
    share: Share,
}

impl NodeMirror {
    /// The deadlines: the mirror is near, so they are short.
    pub const TIMEOUTS: Timeouts = Timeouts {
        dial: Duration::from_secs(5),
        tls: Duration::ZERO,
        head: Duration::from_secs(5),
        body: Duration::from_secs(5),
    };

    /// A mirror that is reached by `dial`, whatever name it is asked for.
    ///
    /// # Errors
    /// As [`Client::new`] has them.
    pub fn new(dial: Arc<dyn Dial>, share: Share) -> Result<Self, RootsError> {
        Self::with_timeouts(dial, share, Self::TIMEOUTS)
    }

    /// The same with other deadlines.
    ///
    /// # Errors
    /// As [`NodeMirror::new`].
    pub fn with_timeouts(
        dial: Arc<dyn Dial>,
        share: Share,
        timeouts: Timeouts,
    ) -> Result<Self, RootsError> {
        // TLS is never spoken: the bytes are public or encrypted, and checked by digest.
        let config = ClientConfig {
            plain_http: PlainHttp::Hosts([HOST.to_owned()].into()),
            timeouts,
            ..ClientConfig::new(Roots::web())
        };
        let way = Way {
            pace: Some(Pace {
                bytes: SPAN_BYTES,
                within: timeouts.body * 2,
            }),
            ..Way::default()
        };
        let http = Client::with_way(dial, config, &way)?;
        Ok(Self { http, share })
    }

    /// Puts the mirror before all other places, for a blob that it may know of.
    pub(super) fn lead(&self, walk: &mut Walk, is_encrypted: bool) {
        if is_encrypted || self.share == Share::All {
            walk.node_first();
        }
    }

    /// Offers a blob that is at hand.
    pub(super) fn offer_whole(&self, digest: &Digest, mut bytes: Bytes) {
        let (http, digest) = (self.http.clone(), digest.clone());
        tokio::spawn(async move {
            let mut upload = Upload::begin(http, digest).await?;
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
                upload.send(piece).await?;
            }
            upload.finish().await
        });
    }
}

/// A blob that is offered while it comes. Dropped before its end, it is given up.
pub(super) struct Offer {
    sender: mpsc::Sender<Bytes>,
    gathered: BytesMut,
    is_whole: Arc<AtomicBool>,
    began: Instant,
    waited: Duration,
}

impl Offer {
    pub(super) fn begin(mirror: &NodeMirror, digest: &Digest) -> Self {
        let (sender, pieces) = mpsc::channel(WAITING);
        let is_whole = Arc::new(AtomicBool::new(false));
        let (http, digest) = (mirror.http.clone(), digest.clone());
        tokio::spawn(carry(http, digest, pieces, Arc::clone(&is_whole)));
        Self {
            sender,
            gathered: BytesMut::new(),
            is_whole,
            began: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// Hands on what came; `None` where the mirror is too slow or wants no more.
    pub(super) async fn piece(mut self, bytes: &[u8]) -> Option<Self> {
        self.gathered.extend_from_slice(bytes);
        while self.gathered.len() >= PIECE_BYTES {
            let piece = self.gathered.split_to(PIECE_BYTES).freeze();
            self.hand_on(piece).await?;
        }
        Some(self)
    }

    /// Every byte came.
    pub(super) async fn end(mut self) {
        let rest = self.gathered.split().freeze();
        if self.hand_on(rest).await.is_some() {
            self.is_whole.store(true, Ordering::Release);
        }
    }

    async fn hand_on(&mut self, piece: Bytes) -> Option<()> {
        let since = Instant::now();
        let most = PATIENCE + self.began.elapsed() / PATIENCE_PART;
        let sent = timeout(most.saturating_sub(self.waited), self.sender.send(piece)).await;
        self.waited += since.elapsed();
        if sent.is_err() {
            tracing::debug!("the node's mirror is too slow to be filled");
        }
        sent.ok()?.ok()
    }
}

/// Carries pieces to the mirror until the end, the mirror's no, or until the reader gives up.
async fn carry(
    http: Client,
    digest: Digest,
    mut pieces: mpsc::Receiver<Bytes>,
    is_whole: Arc<AtomicBool>,
) -> Option<()> {
    let mut upload = Upload::begin(http, digest).await?;
    while let Some(piece) = pieces.recv().await {
        upload.send(piece).await?;
    }
    if is_whole.load(Ordering::Acquire) {
        upload.finish().await
    } else {
        upload.give_up().await
    }
}

/// An upload by the distribution API, which names its digest when it begins.
struct Upload {
    http: Client,
    digest: Digest,
    place: String,
    sent: u64,
}

impl Upload {
    async fn begin(http: Client, digest: Digest) -> Option<Self> {
        let place = format!("/v2/{REPOSITORY}/blobs/uploads/?digest={digest}");
        let mut upload = Self {
            http,
            digest,
            place,
            sent: 0,
        };
        upload.ask(Method::POST, "", Bytes::new()).await?;
        Some(upload)
    }

    async fn send(&mut self, bytes: Bytes) -> Option<()> {
        let length = bytes.len() as u64;
        if length > 0 {
            self.ask(Method::PATCH, "", bytes).await?;
            self.sent += length;
        }
        Some(())
    }

    async fn finish(mut self) -> Option<()> {
        let digest = format!("?digest={}", self.digest);
        self.ask(Method::PUT, &digest, Bytes::new()).await?;
        tracing::debug!(digest = %self.digest, "the node's mirror was filled");
        Some(())
    }

    async fn give_up(mut self) -> Option<()> {
        self.ask(Method::DELETE, "", Bytes::new()).await
    }

    /// `None` when the mirror does not take it; nobody needs it to.
    async fn ask(&mut self, method: Method, query: &str, bytes: Bytes) -> Option<()> {
        let uri = format!("http://{HOST}{}{query}", self.place);
        let mut request = Request::builder().method(method.clone()).uri(uri);
        if method == Method::PATCH {
            let last = self.sent + (bytes.len() as u64).saturating_sub(1);
            let range = HeaderValue::from_str(&format!("{}-{last}", self.sent)).ok()?;
            request = request.header(CONTENT_RANGE, range);
        }
        let answer = self.http.send(request.body(bytes).ok()?).await;
        let answer = answer.inspect_err(|error| {
            tracing::debug!(%error, "the node's mirror is not filled");
        });
        let answer = answer.ok()?;
        let status = answer.status();
        if !status.is_success() {
            tracing::debug!(%status, digest = %self.digest, "the node's mirror takes no blob");
            return None;
        }
        if status == StatusCode::ACCEPTED {
            let place = answer.headers().get(LOCATION)?.to_str().ok()?;
            // A path of the mirror itself; whatever else it says leads nowhere.
            self.place = place.starts_with('/').then(|| place.to_owned())?;
        }
        Some(())
    }
}

/// What a failure of the mirror means for the next blob.
pub(super) fn is_refused(error: &RegistryError) -> bool {
    matches!(
        error,
        RegistryError::Unreachable {
            source: transport::Error::Dial {
                kind: std::io::ErrorKind::PermissionDenied,
                ..
            },
            ..
        }
    )
}
