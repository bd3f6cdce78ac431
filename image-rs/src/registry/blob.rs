//! A blob as a stream that survives broken connections and bad places.
//!
//! A connection that breaks goes on by `Range` where it stopped; a place that fails hands over to the next, which goes
//! on at the same byte, because a digest means the same bytes everywhere. When the digest does not hold in the end,
//! [`BlobStream::refuse`] begins anew at a place that is not to blame.

use std::fmt;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderValue, RANGE};
use http_body_util::BodyExt;
use transport::Body;

use super::node::Offer;
use super::rules::Site;
use super::send::Ask;
use super::walk::Walk;
use super::{Registry, RegistryError, range};
use crate::digest::Digest;

/// A connection that brought so many bytes before it broke was worth it.
const WORTHWHILE_BYTES: u64 = 64 * 1024;
/// Broken connections of one blob; a network that bad is not waited for.
const RESUMES_MAX: u32 = 100;

/// A blob on its way. Never more than its size in the manifest; the digest is for the reader to check.
#[expect(missing_debug_implementations, reason = "holds credentials")]
pub struct BlobStream {
    registry: Registry,
    what: String,
    digest: Digest,
    size: u64,
    /// The places, or why there is none, until it was told.
    walk: Result<Walk, Option<RegistryError>>,
    at: Option<At>,
    /// What goes back to the node's mirror, which did not have it.
    offer: Option<Offer>,
    /// Bytes handed out.
    position: u64,
    /// The end was handed out.
    is_done: bool,
    resumes: u32,
}

/// The place at hand.
struct At {
    site: Site,
    is_last: bool,
    /// The byte that it began with.
    began: u64,
    body: Option<Body>,
    /// What a server that ignores `Range` sends once more.
    skip: u64,
    /// Bytes of the open connection.
    brought: u64,
    /// Connections in a row that brought little.
    fruitless: u32,
}

/// Why there is no next piece.
enum Fault {
    /// The connection broke; the same place may go on.
    Broken(RegistryError),
    /// The place is no good.
    Bad(RegistryError),
}

impl BlobStream {
    pub(super) fn new(
        registry: Registry,
        what: String,
        digest: Digest,
        size: u64,
        walk: Result<Walk, RegistryError>,
    ) -> Self {
        Self {
            registry,
            what,
            digest,
            size,
            walk: walk.map_err(Some),
            at: None,
            offer: None,
            position: 0,
            is_done: size == 0,
            resumes: 0,
        }
    }

    /// The same, of a layer that is encrypted, which more places may know of.
    #[must_use]
    pub fn encrypted(mut self) -> Self {
        if let (Ok(walk), Some(node)) = (&mut self.walk, &self.registry.node) {
            node.lead(walk, true);
        }
        self
    }

    /// The next piece; `None` after the last byte.
    ///
    /// # Errors
    /// See [`RegistryError`], when no place is left.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while !self.is_done {
            let fault = match self.step().await {
                Ok(Some(piece)) if piece.is_empty() => continue,
                Ok(Some(piece)) => {
                    if let Some(offer) = self.offer.take() {
                        self.offer = offer.piece(&piece).await;
                    }
                    return Ok(Some(piece));
                }
                Ok(None) => break,
                Err(fault) => fault,
            };
            match fault {
                Fault::Bad(error) => self.leave(error)?,
                Fault::Broken(error) => self.resume(error).await?,
            }
        }
        self.is_done = true;
        if let Some(offer) = self.offer.take() {
            offer.end().await;
        }
        Ok(None)
    }

    /// The bytes that were handed out have another digest than the blob: begins anew, at a place that is not to blame.
    /// The reader throws away what it has.
    ///
    /// # Errors
    /// [`RegistryError::Digest`], when every place that is left gave wrong bytes.
    pub fn refuse(&mut self, found: Digest) -> Result<(), RegistryError> {
        self.begin_anew(RegistryError::Digest {
            what: self.what.clone(),
            expected: self.digest.clone(),
            found,
        })
    }

    /// The bytes that were handed out could not be used, and whether their digest holds is not known. Where a mirror
    /// gave any of them, begins anew like [`BlobStream::refuse`]; `false` where there is nobody to doubt.
    pub fn doubt(&mut self, cause: &dyn fmt::Display) -> bool {
        let is_doubtful = |at: &At| at.site.is_mirror || at.began > 0;
        let doubted = RegistryError::Doubted {
            what: self.what.clone(),
            cause: cause.to_string(),
        };
        self.at.as_ref().is_some_and(is_doubtful) && self.begin_anew(doubted).is_ok()
    }

    fn begin_anew(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.position = 0;
        self.is_done = false;
        self.offer = None;
        match &mut self.at {
            // Another place gave the beginning, and may have lied.
            Some(at) if at.began > 0 => {
                (at.began, at.skip, at.body) = (0, 0, None);
                Ok(())
            }
            _ => self.leave(error),
        }
    }

    /// A broken connection is opened again after a pause, unless its place never gets further.
    async fn resume(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.resumes += 1;
        let resumes = self.resumes;
        let retry = self.registry.config.retry;
        let Some(at) = &mut self.at else {
            return self.leave(error);
        };
        at.body = None;
        if at.brought >= WORTHWHILE_BYTES {
            at.fruitless = 0;
        }
        at.fruitless += 1;
        let most = self.registry.attempts(&at.site, at.is_last);
        if at.fruitless >= most || resumes >= RESUMES_MAX {
            return self.leave(error);
        }
        let pause = retry.pause(at.fruitless);
        tracing::debug!(what = self.what, position = self.position, %error, "a blob is resumed");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Leaves the place at hand for the next.
    fn leave(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let left = self.at.take();
        self.consider_offer(left.as_ref(), &error);
        match (&mut self.walk, left) {
            (Ok(walk), Some(at)) => walk.failed(&at.site, error),
            _ => return Err(error),
        }
        self.enter()
    }

    /// What the node's mirror lacks it is offered, from the first byte on.
    fn consider_offer(&mut self, left: Option<&At>, error: &RegistryError) {
        let is_miss = matches!(error, RegistryError::NotFound { .. });
        if let Some(node) = &self.registry.node
            && left.is_some_and(|at| at.site.is_node)
            && is_miss
            && self.position == 0
        {
            self.offer = Some(Offer::begin(node, &self.digest));
        }
    }

    fn enter(&mut self) -> Result<(), RegistryError> {
        let walk = match &mut self.walk {
            Ok(walk) => walk,
            Err(told) => {
                let gone = || RegistryError::Nowhere {
                    what: self.what.clone(),
                    tried: Vec::new(),
                };
                return Err(told.take().unwrap_or_else(gone));
            }
        };
        let Some(site) = walk.next() else {
            return Err(walk.end(&self.what));
        };
        self.at = Some(At {
            site,
            is_last: walk.is_last(),
            began: self.position,
            body: None,
            skip: 0,
            brought: 0,
            fruitless: 0,
        });
        Ok(())
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.at.is_none() {
            self.enter().map_err(Fault::Bad)?;
        }
        let Some(at) = &mut self.at else {
            return Ok(None);
        };
        if at.body.is_none() {
            // All bytes came, and only the end of the connection was broken.
            if self.position == self.size {
                return Ok(None);
            }
            let want = Want {
                what: &self.what,
                digest: &self.digest,
                position: self.position,
                size: self.size,
            };
            let opened = want.open(&self.registry, at).await;
            let (body, skip) = opened.map_err(Fault::Bad)?;
            (at.body, at.skip, at.brought) = (Some(body), skip, 0);
        }
        let Some(body) = &mut at.body else {
            return Ok(None);
        };
        let Some(frame) = body.frame().await else {
            at.body = None;
            if self.position == self.size {
                return Ok(None);
            }
            return Err(Fault::Broken(RegistryError::Short {
                what: self.what.clone(),
                expected: self.size,
                found: self.position,
            }));
        };
        let frame = frame.map_err(|source| {
            Fault::Broken(RegistryError::Unreachable {
                what: self.what.clone(),
                source,
            })
        })?;
        let Ok(mut piece) = frame.into_data() else {
            return Ok(Some(Bytes::new()));
        };
        let skipped = usize::try_from(at.skip)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        let piece = piece.split_off(skipped);
        at.skip -= skipped as u64;
        let bytes = piece.len() as u64;
        if bytes > self.size - self.position {
            return Err(Fault::Bad(RegistryError::TooLarge {
                what: self.what.clone(),
                cap: self.size,
            }));
        }
        at.brought += bytes;
        self.position += bytes;
        Ok(Some(piece))
    }
}

/// What is left of a blob.
struct Want<'a> {
    what: &'a str,
    digest: &'a Digest,
    position: u64,
    size: u64,
}

impl Want<'_> {
    /// Asks the place for it, and checks that the answer is that; also, how much comes before it.
    async fn open(&self, registry: &Registry, at: &At) -> Result<(Body, u64), RegistryError> {
        let path = format!("blobs/{}", self.digest);
        let mut ask = Ask {
            is_last: at.is_last,
            ..Ask::get(path, &at.site, self.what.to_owned())
        };
        if self.position > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.position));
            ask.headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let mut answer = registry.send(&ask).await?;
        if self.position > 0 && answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            ask.headers.remove(RANGE);
            answer = registry.send(&ask).await?;
        }
        let status = answer.status();
        if !status.is_success() {
            return Err(registry.refusal(&ask, answer).await);
        }
        let headers = answer.headers();
        let skip = range::skipped(self.what, status, headers, self.position, self.size)?;
        Ok((answer.into_body(), skip))
    }
}
