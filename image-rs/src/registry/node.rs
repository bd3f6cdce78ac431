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
/// One piece of an upload, in bytes.
const PIECE_BYTES: usize = 512 * 1024;
/// Pieces of the registry that wait to be offered.
const WAITING: usize = 16;
/// How long one blob may wait for its offer altogether.
const PATIENCE: Duration = Duration::from_millis(500);

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
                bytes: 256 * 1024,
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
    pub(super) fn offer_whole(&self, digest: &Digest, bytes: Bytes) {
        let (http, digest) = (self.http.clone(), digest.clone());
        tokio::spawn(async move {
            if let Some(mut upload) = Upload::begin(http, digest).await
                && upload.send(bytes).await.is_some()
            {
                upload.finish().await;
            }
        });
    }
}

/// A blob that is offered while it comes. Dropped before its end, it is given up.
pub(super) struct Offer {
    sender: mpsc::Sender<Next>,
    patience: Duration,
}

enum Next {
    Piece(Bytes),
    End,
}

impl Offer {
    pub(super) fn begin(mirror: &NodeMirror, digest: &Digest) -> Self {
        let (sender, next) = mpsc::channel(WAITING);
        tokio::spawn(carry(mirror.http.clone(), digest.clone(), next));
        Self {
            sender,
            patience: PATIENCE,
        }
    }

    /// Hands on a piece; `None` where the mirror is too slow or wants no more.
    pub(super) async fn piece(mut self, piece: &Bytes) -> Option<Self> {
        let began = Instant::now();
        let sent = self.sender.send(Next::Piece(piece.clone()));
        match timeout(self.patience, sent).await {
            Ok(Ok(())) => {
                self.patience = self.patience.saturating_sub(began.elapsed());
                Some(self)
            }
            Ok(Err(_)) => None,
            Err(_) => {
                tracing::debug!("the node's mirror is too slow to be filled");
                None
            }
        }
    }

    /// Every byte was handed on.
    pub(super) fn end(self) {
        let _ = self.sender.try_send(Next::End);
    }
}

/// Carries pieces to the mirror until the end, the mirror's no, or until the reader gives up.
async fn carry(http: Client, digest: Digest, mut next: mpsc::Receiver<Next>) {
    let Some(mut upload) = Upload::begin(http, digest).await else {
        return;
    };
    let mut gathered = BytesMut::new();
    loop {
        match next.recv().await {
            Some(Next::Piece(piece)) => {
                gathered.extend_from_slice(&piece);
                if gathered.len() < PIECE_BYTES {
                    continue;
                }
                if upload.send(gathered.split().freeze()).await.is_none() {
                    return;
                }
            }
            Some(Next::End) => {
                if upload.send(gathered.freeze()).await.is_some() {
                    upload.finish().await;
                }
                return;
            }
            None => return upload.give_up().await,
        }
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

    async fn finish(mut self) {
        let digest = format!("?digest={}", self.digest);
        if self.ask(Method::PUT, &digest, Bytes::new()).await.is_some() {
            tracing::debug!(digest = %self.digest, "the node's mirror was filled");
        }
    }

    async fn give_up(mut self) {
        let _ = self.ask(Method::DELETE, "", Bytes::new()).await;
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
