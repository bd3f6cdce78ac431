//! Uploads: blobs in chunks, then the manifest. Nothing can be pulled by its tag before its manifest is there.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION};
use http::{Method, Response, StatusCode};
use transport::Body;

use super::rules::Site;
use super::send::{Action, Address, Ask};
use super::{Registry, RegistryError};
use crate::digest::Digest;
use crate::reference::Reference;

/// A blob on its way to a registry.
#[expect(missing_debug_implementations, reason = "holds credentials")]
pub struct Upload {
    registry: Registry,
    site: Site,
    url: String,
    sent: u64,
}

impl Registry {
    /// Whether the registry already has a blob.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn has_blob(
        &self,
        image: &Reference,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let what = format!("blob {digest} of {image}");
        let site = self.direct(image);
        let ask = Ask {
            method: Method::HEAD,
            action: Action::Push,
            ..Ask::get(format!("blobs/{digest}"), &site, what)
        };
        let answer = self.send(&ask).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(self.refusal(&ask, answer).await),
        }
    }

    /// Starts to upload a blob.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn start_upload(&self, image: &Reference) -> Result<Upload, RegistryError> {
        let site = self.direct(image);
        let address = Address::Path("blobs/uploads/".to_owned());
        let ask = push(Method::POST, address, &site, "a new blob");
        let answer = self.send_ok(&ask).await?;
        let url = next_url(&self.url(&ask), &answer, &ask.what)?;
        Ok(Upload {
            registry: self.clone(),
            site,
            url,
            sent: 0,
        })
    }

    /// Uploads a small blob whole, unless the registry has it.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn push_blob(
        &self,
        image: &Reference,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        if !self.has_blob(image, &digest).await? {
            let mut upload = self.start_upload(image).await?;
            upload.send(bytes).await?;
            upload.finish(&digest).await?;
        }
        Ok(digest)
    }

    /// Uploads a manifest under the tag or digest of `image`.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn push_manifest(
        &self,
        image: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        let site = self.direct(image);
        let address = Address::Path(format!("manifests/{}", image.manifest_name()));
        let mut ask = push(Method::PUT, address, &site, "the manifest");
        let value = HeaderValue::from_str(media_type);
        let value = value.map_err(|error| RegistryError::Url {
            what: ask.what.clone(),
            reason: error.to_string(),
        })?;
        ask.headers.insert(CONTENT_TYPE, value);
        ask.body = bytes;
        self.send_ok(&ask).await?;
        Ok(digest)
    }
}

fn push<'a>(method: Method, address: Address, site: &'a Site, what: &str) -> Ask<'a> {
    Ask {
        method,
        address,
        action: Action::Push,
        ..Ask::get(
            String::new(),
            site,
            format!("upload of {what} to {}", site.image),
        )
    }
}

impl Upload {
    /// Sends the next chunk.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn send(&mut self, chunk: Bytes) -> Result<(), RegistryError> {
        if chunk.is_empty() {
            return Ok(());
        }
        let length = chunk.len() as u64;
        let range = format!("{}-{}", self.sent, self.sent + length - 1);
        let address = Address::Url(self.url.clone());
        let mut ask = push(Method::PATCH, address, &self.site, "a blob");
        let header = |text: &str| HeaderValue::from_str(text).ok();
        ask.headers
            .extend(header(&range).map(|value| (CONTENT_RANGE, value)));
        ask.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
        ask.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        ask.body = chunk;
        // Not tried again: a registry that took half of a chunk would refuse it at this position.
        let answer = self.registry.send_authorised(&ask).await?;
        if !answer.status().is_success() {
            return Err(self.registry.refusal(&ask, answer).await);
        }
        self.url = next_url(&self.url, &answer, &ask.what)?;
        self.sent += length;
        Ok(())
    }

    /// Ends the blob; the registry checks its digest.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn finish(self, digest: &Digest) -> Result<(), RegistryError> {
        let mut url = url::Url::parse(&self.url).map_err(|error| RegistryError::Url {
            what: self.url.clone(),
            reason: error.to_string(),
        })?;
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let address = Address::Url(url.into());
        let mut ask = push(Method::PUT, address, &self.site, "a blob's end");
        ask.headers
            .insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        self.registry.send_ok(&ask).await.map(|_| ())
    }
}

/// Where an upload goes on; it may be relative, but must not leave the scheme, host and port that our credentials are
/// for, nor bring others.
fn next_url(current: &str, answer: &Response<Body>, what: &str) -> Result<String, RegistryError> {
    let bad = |reason: &str| RegistryError::Url {
        what: what.to_owned(),
        reason: reason.to_owned(),
    };
    let location = answer
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| bad("the registry named no place to upload to"))?;
    let current = url::Url::parse(current).map_err(|error| bad(&error.to_string()))?;
    let next = current
        .join(location)
        .map_err(|error| bad(&error.to_string()))?;
    if !next.username().is_empty() || next.password().is_some() {
        return Err(bad(
            "the registry named a place to upload to with a user in it",
        ));
    }
    // An origin with a host is the same only with the same scheme and port, a default port written or not.
    if next.origin() != current.origin() {
        return Err(bad(
            "the registry sent the upload, and with it our credentials, to another scheme, host or port",
        ));
    }
    Ok(next.into())
}
