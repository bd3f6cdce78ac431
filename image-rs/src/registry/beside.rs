//! What stands beside an image and may be absent: lists of referrers, and signatures.
//!
//! It is asked for like a tag, because it grows: a mirror that may not resolve tags is not asked, and one that has
//! nothing says nothing of the registry itself. Nothing here is believed by where it came from.

use bytes::Bytes;
use http::header::{ACCEPT, HeaderValue};
use http::{Method, Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use transport::bytes_capped;
use url::Url;

use super::rules::Need;
use super::send::{Address, Ask};
use super::{Fetched, Registry, RegistryError};
use crate::digest::Digest;
use crate::manifest::{MANIFEST_BYTES_MAX, OCI_INDEX};
use crate::reference::Reference;

/// Cap on the pages of a list.
const PAGES_MAX: usize = 16;

/// What of a manifest is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside<'a> {
    /// The index of what refers to it (OCI distribution 1.1).
    Referrers(&'a Digest),
    /// Its simple signatures (the API extension of OpenShift's registry).
    SimpleSignatures(&'a Digest),
}

/// A page of a list of referrers.
#[derive(Deserialize)]
struct List {
    manifests: Vec<Value>,
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
                Ok(first) => match self.rest_of_list(ask, first).await {
                    Ok(list) => return Ok(Some(list)),
                    Err(error) => walk.failed(&site, error),
                },
                Err(RegistryError::NotFound { .. }) if is_last => return Ok(None),
                Err(error) => walk.failed(&site, error),
            }
        }
        Err(walk.end(&what))
    }

    /// A list with its other pages, of which each names the next. A page counts only at the address of the first: a
    /// registry cannot send us, with its token, to another place.
    async fn rest_of_list(
        &self,
        mut ask: Ask<'_>,
        mut page: Fetched,
    ) -> Result<Bytes, RegistryError> {
        let Address::Path(first) = ask.address.clone() else {
            return Ok(page.bytes);
        };
        let path = format!("/v2/{}/{first}", ask.site.image.repository());
        let mut items = Vec::new();
        for number in 1.. {
            let next = page.link.as_deref().and_then(next_of);
            if number == 1 && next.is_none() {
                break;
            }
            let Ok(List { mut manifests }) = serde_json::from_slice(&page.bytes) else {
                // Whoever reads the list tells what is wrong with it.
                break;
            };
            items.append(&mut manifests);
            let query = next.and_then(|next| query_of(next, &path, ask.site.image.endpoint()));
            let Some(query) = query.filter(|_| number < PAGES_MAX) else {
                if page.link.is_some_and(|link| next_of(&link).is_some()) {
                    tracing::warn!(
                        what = ask.what,
                        pages = number,
                        "a list goes on elsewhere or too long"
                    );
                }
                return Ok(json!({ "manifests": items }).to_string().into());
            };
            ask.address = Address::Path(format!("{first}?{query}"));
            page = self.fetch(&ask, MANIFEST_BYTES_MAX, None).await?;
        }
        Ok(page.bytes)
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

/// The target with `rel="next"` in a `Link` (RFC 8288).
fn next_of(link: &str) -> Option<&str> {
    let mut links = link
        .split('<')
        .skip(1)
        .filter_map(|rest| rest.split_once('>'));
    let is_next = |parameters: &str| {
        parameters.split([';', ',']).any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let mut words = value.trim().trim_matches('"').split_ascii_whitespace();
            name.trim().eq_ignore_ascii_case("rel") && words.any(|word| word == "next")
        })
    };
    links
        .find(|(_, parameters)| is_next(parameters))
        .map(|(target, _)| target)
}

/// What asks for the next page, when that is at the same address.
fn query_of(target: &str, path: &str, endpoint: &str) -> Option<String> {
    let base = Url::parse(&format!("https://{endpoint}{path}")).ok()?;
    let url = base.join(target).ok()?;
    // The scheme is ours; a port that a scheme goes without is written by nobody.
    let is_same =
        url.host() == base.host() && url.port() == base.port() && url.path() == base.path();
    let query = url.query().filter(|query| is_same && !query.is_empty());
    query.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_named_by_its_relation() {
        let path = "/v2/a/referrers/sha256:00";
        let next = |link: &str| next_of(link).and_then(|next| query_of(next, path, "r.test:5000"));
        for link in [
            "</v2/a/referrers/sha256:00?last=x>; rel=\"next\"",
            "<https://r.test:5000/v2/a/referrers/sha256:00?last=x>;rel=next",
            "</p>; rel=\"prev\", <?last=x>; title=\"t\"; REL=\"last next\"",
        ] {
            assert_eq!(next(link).as_deref(), Some("last=x"), "{link}");
        }
        for link in [
            "</v2/a/referrers/sha256:00?last=x>; rel=\"prev\"",
            "<https://evil.test:5000/v2/a/referrers/sha256:00?last=x>; rel=next",
            "<//evil.test/v2/a/referrers/sha256:00?last=x>; rel=next",
            "<https://r.test/v2/a/referrers/sha256:00?last=x>; rel=next",
            "</v2/b/referrers/sha256:00?last=x>; rel=next",
            "</v2/a/referrers/sha256:00>; rel=next",
            "rel=next",
            "<",
        ] {
            assert_eq!(next(link), None, "{link}");
        }
    }
}
