//! What a guest asks for: the few requests of the OCI distribution API that concern blobs.
//!
//! The repository's name is read past: a blob is the same in each. Uploads name their digest when they begin
//! (`POST …/blobs/uploads/?digest=`), so that others can follow them and none is filled twice.

use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, Method, StatusCode, Uri};
use image_rs::Digest;

/// A repository's name, in bytes (OCI distribution 1.1 recommends it).
const MAX_NAME: usize = 255;

/// A request that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whether the API is spoken.
    Version,
    /// A blob from this byte on.
    Blob { digest: Digest, from: u64 },
    /// Whether a blob is there.
    Has(Digest),
    /// A new upload.
    Begin(Digest),
    /// More of an upload, which begins at this byte.
    More { upload: u64, from: Option<u64> },
    /// The end of an upload.
    Finish { upload: u64, digest: Digest },
    /// An upload is given up.
    Cancel { upload: u64 },
}

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The distribution API's code.
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            code,
            message,
        }
    }

    fn not_here(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", message)
    }
}

impl Asked {
    pub(super) fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Self, Refusal> {
        let path = uri.path();
        let nothing = || Refusal::not_here("there is nothing but /v2/<name>/blobs/");
        let rest = path.strip_prefix("/v2/").ok_or_else(nothing)?;
        if rest.is_empty() {
            return match *method {
                Method::GET | Method::HEAD => Ok(Self::Version),
                _ => Err(not_allowed()),
            };
        }
        let (name, tail) = rest.rsplit_once("/blobs/").ok_or_else(nothing)?;
        check_name(name)?;
        match tail.strip_prefix("uploads/") {
            Some("") if *method == Method::POST => Ok(Self::Begin(digest_of_query(uri)?)),
            Some("") => Err(not_allowed()),
            Some(upload) => Self::of_upload(method, uri, headers, upload),
            None => {
                let digest = digest(tail)?;
                match *method {
                    Method::GET => Ok(Self::Blob {
                        digest,
                        from: range(headers)?,
                    }),
                    Method::HEAD => Ok(Self::Has(digest)),
                    _ => Err(not_allowed()),
                }
            }
        }
    }

    fn of_upload(
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        upload: &str,
    ) -> Result<Self, Refusal> {
        let unknown = || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "BLOB_UPLOAD_UNKNOWN",
                "no such upload",
            )
        };
        let upload = number(upload).ok_or_else(unknown)?;
        match *method {
            Method::PATCH => Ok(Self::More {
                upload,
                from: begins(headers)?,
            }),
            Method::PUT => Ok(Self::Finish {
                upload,
                digest: digest_of_query(uri)?,
            }),
            Method::DELETE => Ok(Self::Cancel { upload }),
            _ => Err(not_allowed()),
        }
    }
}

fn not_allowed() -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "UNSUPPORTED",
        "this cannot be done here",
    )
}

/// Nothing is found by it, but what is no name is no request of ours.
fn check_name(name: &str) -> Result<(), Refusal> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
        let message = "this is no name of a repository";
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "NAME_INVALID",
            message,
        ));
    }
    Ok(())
}

fn digest(text: &str) -> Result<Digest, Refusal> {
    text.parse().map_err(|error: image_rs::digest::BadDigest| {
        Refusal::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string())
    })
}

fn digest_of_query(uri: &Uri) -> Result<Digest, Refusal> {
    let query = uri.query().unwrap_or_default().as_bytes();
    let mut pairs = url::form_urlencoded::parse(query);
    match pairs.find(|(key, _)| key == "digest") {
        Some((_, text)) => digest(&text),
        None => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            "name the blob: ?digest=",
        )),
    }
}

/// Only what our guest sends: from a byte to the end. Anything else may be answered whole (RFC 9110, section 14.2).
fn range(headers: &HeaderMap) -> Result<u64, Refusal> {
    let Some(value) = headers.get(RANGE) else {
        return Ok(0);
    };
    let text = value.to_str().unwrap_or_default();
    let first = text
        .strip_prefix("bytes=")
        .and_then(|text| text.strip_suffix('-'));
    Ok(first.and_then(number).unwrap_or(0))
}

/// The first byte of a piece, where the guest says it.
fn begins(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(CONTENT_RANGE) else {
        return Ok(None);
    };
    let first = value.to_str().ok().and_then(|text| text.split_once('-'));
    match first.and_then(|(first, _)| number(first)) {
        Some(first) => Ok(Some(first)),
        None => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "BLOB_UPLOAD_INVALID",
            "Content-Range is <first>-<last>",
        )),
    }
}

fn number(text: &str) -> Option<u64> {
    let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &Method, path: &str) -> Result<Asked, StatusCode> {
        let uri: Uri = path.parse().unwrap();
        Asked::of(method, &uri, &HeaderMap::new()).map_err(|refusal| refusal.status)
    }

    #[test]
    fn blobs_are_asked_for_by_digest_and_nothing_else_is() {
        let digest = Digest::of(b"x");
        let blob = Asked::Blob {
            digest: digest.clone(),
            from: 0,
        };
        let path = format!("/v2/any/name/blobs/{digest}");
        assert_eq!(asked(&Method::GET, &path), Ok(blob.clone()));
        let with_namespace = format!("{path}?ns=registry.example");
        assert_eq!(asked(&Method::GET, &with_namespace), Ok(blob));
        assert_eq!(asked(&Method::HEAD, &path), Ok(Asked::Has(digest.clone())));
        assert_eq!(asked(&Method::GET, "/v2/"), Ok(Asked::Version));
        let hex = digest.hex();
        for (path, status) in [
            ("/".to_owned(), 404),
            ("/v2/a/manifests/latest".to_owned(), 404),
            (format!("/v2/a/manifests/{digest}"), 404),
            ("/v2/a/tags/list".to_owned(), 404),
            ("/v2/a/blobs/../../../etc/passwd".to_owned(), 400),
            (format!("/v2/a/blobs/sha256:../{hex}"), 400),
            (format!("/v2/a/blobs/sha256:{}", hex.to_uppercase()), 400),
            (format!("/v2/a/blobs/md5:{hex}"), 400),
            (format!("/v2/A/blobs/{digest}"), 400),
            (format!("/v2/{}/blobs/{digest}", "a".repeat(300)), 400),
            ("/v2/a/blobs/uploads/x".to_owned(), 404),
            ("/v2/a/blobs/uploads/-1".to_owned(), 404),
            ("/v2/a/blobs/uploads/".to_owned(), 405),
        ] {
            let found = asked(&Method::GET, &path).unwrap_err();
            assert_eq!(found.as_u16(), status, "{path}");
        }
        assert_eq!(
            asked(&Method::DELETE, &format!("/v2/a/blobs/{digest}")),
            Err(StatusCode::METHOD_NOT_ALLOWED)
        );
    }

    #[test]
    fn an_upload_names_its_digest() {
        let digest = Digest::of(b"x");
        let quoted = digest.to_string().replace(':', "%3A");
        let path = format!("/v2/a/blobs/uploads/?digest={quoted}");
        assert_eq!(
            asked(&Method::POST, &path),
            Ok(Asked::Begin(digest.clone()))
        );
        let unnamed = asked(&Method::POST, "/v2/a/blobs/uploads/");
        assert_eq!(unnamed, Err(StatusCode::BAD_REQUEST));
        let finish = asked(
            &Method::PUT,
            &format!("/v2/a/blobs/uploads/7?digest={digest}"),
        );
        assert_eq!(finish, Ok(Asked::Finish { upload: 7, digest }));
    }

    #[test]
    fn ranges_are_read_and_strange_ones_passed_over() {
        let from = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, http::HeaderValue::from_static(text));
            range(&headers).unwrap()
        };
        assert_eq!(from("bytes=17-"), 17);
        for strange in ["bytes=1-2", "bytes=-5", "lines=3-", "bytes=1-,4-", ""] {
            assert_eq!(from(strange), 0, "{strange}");
        }
    }
}
