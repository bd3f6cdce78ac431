//! What stands beside an image and may be absent: lists of referrers, and signatures.
//!
//! It is asked for like a tag, because it grows: a mirror that may not resolve tags is not asked, and one that has
//! nothing says nothing of the registry itself. Nothing here is believed by where it came from.

use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue};
use http::{Method, Request, StatusCode};
use transport::bytes_capped;

use super::rules::Need;
use super::send::{Address, Ask};
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::manifest::{MANIFEST_BYTES_MAX, OCI_INDEX};
use crate::reference::Reference;

/// What of a manifest is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside<'a> {
    /// The index of what refers to it (OCI distribution 1.1).
    Referrers(&'a Digest),
    /// Its simple signatures (the API extension of OpenShift's registry).
    SimpleSignatures(&'a Digest),
}

impl Registry {
    /// A document beside `image`; `None` where the registry has none.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn beside(
        &self,
        image: &Reference,
        which: Beside<'_>,
    ) -> Result<Option<Bytes>, RegistryError> {
        let (what, address) = match which {
            Beside::Referrers(digest) => (
                format!("referrers of {digest} in {}", image.name()),
                Address::Path(format!("referrers/{digest}")),
            ),
            Beside::SimpleSignatures(digest) => (
                format!("simple signatures of {digest} in {}", image.name()),
                Address::Extension(format!("signatures/{digest}")),
            ),
        };
        let mut walk = self.walk(&image.unpinned(), Need::Manifest)?;
        while let Some(site) = walk.next() {
            let is_last = walk.is_last();
            let mut ask = Ask {
                address: address.clone(),
                is_last,
                ..Ask::get(String::new(), &site, what.clone())
            };
            ask.headers
                .insert(ACCEPT, HeaderValue::from_static(OCI_INDEX));
            match self.fetch(&ask, MANIFEST_BYTES_MAX, None).await {
                Ok((bytes, _, _)) => return Ok(Some(bytes)),
                Err(RegistryError::NotFound { .. }) if is_last => return Ok(None),
                Err(error) => walk.failed(&site, error),
            }
        }
        Err(walk.end(&what))
    }

    /// A document at a place that is no registry, and so without credentials; `None` where there is none.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn aside(&self, url: &str, cap: usize) -> Result<Option<Bytes>, RegistryError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(url)
            .body(Bytes::new());
        let request = request.map_err(|error| RegistryError::Url {
            what: url.to_owned(),
            reason: error.to_string(),
        })?;
        let unreachable = |source| RegistryError::Unreachable {
            what: url.to_owned(),
            source,
        };
        let answer = self
            .lax
            .send_following(request)
            .await
            .map_err(unreachable)?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let bytes = bytes_capped(answer.into_body(), cap).await;
                bytes.map(Some).map_err(unreachable)
            }
            status => Err(RegistryError::from_status(url, status, b"")),
        }
    }
}
