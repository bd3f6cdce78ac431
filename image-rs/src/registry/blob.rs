//! A blob as a stream that survives broken connections: it goes on by `Range` where it stopped.

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderValue, RANGE};
use http_body_util::BodyExt;
use transport::Body;

use super::{Ask, FIRST_PAUSE, Registry, RegistryError, refusal};
use crate::digest::Digest;
use crate::reference::Reference;

/// Attempts in a row that bring no byte.
const FRUITLESS_MAX: u32 = 4;

/// A blob on its way. Never more than its size in the manifest; the digest is for the reader to check.
#[expect(missing_debug_implementations, reason = "holds credentials")]
pub struct BlobStream {
    registry: Registry,
    image: Reference,
    digest: Digest,
    size: u64,
    position: u64,
    body: Option<Body>,
    /// What a server that ignores `Range` sends once more.
    skip: u64,
    fruitless: u32,
}

impl BlobStream {
    pub(super) fn new(registry: Registry, image: Reference, digest: Digest, size: u64) -> Self {
        Self {
            registry,
            image,
            digest,
            size,
            position: 0,
            body: None,
            skip: 0,
            fruitless: 0,
        }
    }

    /// The next piece; `None` after the last byte.
    ///
    /// # Errors
    /// See [`RegistryError`]; broken connections are errors only after several attempts without a byte.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match self.step().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(piece) => {
                    self.fruitless = 0;
                    return Ok(piece);
                }
                Err(error) if error.is_transient() && self.fruitless + 1 < FRUITLESS_MAX => {
                    self.body = None;
                    tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.fruitless)).await;
                    self.fruitless += 1;
                    tracing::debug!(digest = %self.digest, position = self.position, "a blob is resumed");
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn what(&self) -> String {
        format!("blob {} of {}", self.digest, self.image)
    }

    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None if self.position == self.size && self.size > 0 => return Ok(None),
            None => self.open().await?,
        };
        let Some(frame) = body.frame().await else {
            return self.end();
        };
        let frame = frame.map_err(|source| RegistryError::Unreachable {
            what: self.what(),
            source,
        })?;
        self.body = Some(body);
        let Ok(mut piece) = frame.into_data() else {
            return Ok(Some(Bytes::new()));
        };
        let skipped = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        let piece = piece.split_off(skipped);
        self.skip -= skipped as u64;
        self.position += piece.len() as u64;
        if self.position > self.size {
            return Err(RegistryError::TooLarge {
                what: self.what(),
                cap: self.size,
            });
        }
        Ok(Some(piece))
    }

    fn end(&self) -> Result<Option<Bytes>, RegistryError> {
        if self.position == self.size {
            return Ok(None);
        }
        Err(RegistryError::Short {
            what: self.what(),
            expected: self.size,
            found: self.position,
        })
    }

    async fn open(&mut self) -> Result<Body, RegistryError> {
        let url = self.registry.blob_url(&self.image, &self.digest);
        let mut ask = Ask::get(url, &self.image, self.what());
        if self.position > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.position));
            ask.headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let answer = self.registry.send(&ask).await?;
        self.skip = match answer.status() {
            StatusCode::PARTIAL_CONTENT => 0,
            status if status.is_success() => self.position,
            _ => return Err(refusal(&ask, answer).await),
        };
        Ok(answer.into_body())
    }
}
