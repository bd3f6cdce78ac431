//! Why a registry did not give what was asked for.

use http::StatusCode;
use serde::Deserialize;

use super::auth::AuthFileError;
use super::walk::Tried;
use crate::digest::Digest;
use crate::reference::ReferenceError;
use crate::shown::shown_up_to;

/// Cap on the registry's own words in an error, in characters.
const WORDS_MAX: usize = 300;

/// A request to a registry that failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// 404.
    #[error("{what} does not exist: {detail}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry's words.
        detail: String,
    },
    /// 401 or 403, after the credentials at hand.
    #[error("{what} is not allowed with the credentials at hand: {detail}")]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// The registry's words.
        detail: String,
    },
    /// No answer, or none that came to its end.
    #[error("{what} cannot be fetched: {source}")]
    Unreachable {
        /// What was asked for.
        what: String,
        /// The step that failed.
        source: transport::Error,
    },
    /// Other bytes than those asked for.
    #[error("{what} is not what was asked for: expected {expected}, found {found}")]
    Digest {
        /// What was asked for.
        what: String,
        /// Its digest.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// A cap.
    #[error("{what} is larger than {cap} bytes")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// The cap, in bytes.
        cap: u64,
    },
    /// A blob that ends early, again and again.
    #[error("{what} ended after {found} of {expected} bytes")]
    Short {
        /// What was asked for.
        what: String,
        /// Its size in the manifest.
        expected: u64,
        /// How much came.
        found: u64,
    },
    /// Any other status.
    #[error("{what}: the registry answered {status}: {detail}")]
    Status {
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// The registry's words.
        detail: String,
    },
    /// The credentials for it cannot be used.
    #[error("{what}: {source}")]
    Credentials {
        /// What was asked for.
        what: String,
        /// Why.
        source: AuthFileError,
    },
    /// 429 or a status of the same kind, to the last attempt.
    #[error("{what}: the registry still answers {status} after {attempts} attempts: {detail}")]
    Busy {
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// How often it was asked.
        attempts: u32,
        /// The registry's words.
        detail: String,
    },
    /// A part of a blob that was not asked for.
    #[error("{what}: bytes {position} to {size} were asked for, and the registry sends {found:?}")]
    Range {
        /// What was asked for.
        what: String,
        /// The first byte that was asked for.
        position: u64,
        /// The blob's size.
        size: u64,
        /// The answer's `Content-Range`.
        found: String,
    },
    /// A blob of another size.
    #[error("{what} has {expected} bytes in the manifest, and the registry would send {found}")]
    Length {
        /// What was asked for.
        what: String,
        /// Its size in the manifest.
        expected: u64,
        /// The answer's `Content-Length`.
        found: u64,
    },
    /// Not a manifest, but a page, for instance of a portal that wants to be logged in to.
    #[error("{what} is not a manifest: what answers sent {found:?}; is it a registry?")]
    ContentType {
        /// What was asked for.
        what: String,
        /// The media type in the answer's head.
        found: String,
    },
    /// The owner's rule.
    #[error("{image} is blocked by the registry rule {prefix:?}")]
    Blocked {
        /// Which image.
        image: String,
        /// The rule's prefix.
        prefix: String,
    },
    /// A rule that makes a name that is none.
    #[error("{image} has no name at the location {location:?} of its registry rule: {source}")]
    Location {
        /// Which image.
        image: String,
        /// The rule's location, or that of a mirror.
        location: String,
        /// What is wrong.
        source: ReferenceError,
    },
    /// Bytes of a mirror that could not be used.
    #[error("{what} could not be used: {cause}")]
    Doubted {
        /// What was asked for.
        what: String,
        /// How the reader failed.
        cause: String,
    },
    /// A mirror that is left alone.
    #[error("not asked, because a moment ago: {cause}")]
    Resting {
        /// How it failed.
        cause: String,
    },
    /// Every place failed.
    #[error("{what} cannot be had at any place: {}", list(tried))]
    Nowhere {
        /// What was asked for.
        what: String,
        /// Each place with its error, the registry itself last.
        tried: Vec<Tried>,
    },
    /// The registry sends us to a token service that must not see our credentials.
    #[error("{what}: the registry names the token service {realm:?}, which is not asked: {reason}")]
    Realm {
        /// What was asked for.
        what: String,
        /// The token service.
        realm: String,
        /// Why.
        reason: String,
    },
    /// The registry's token service gave no token.
    #[error("{what}: the registry's token service {realm} gave no token: {detail}")]
    Token {
        /// What was asked for.
        what: String,
        /// The token service.
        realm: String,
        /// Whether it may give one in a moment.
        transient: bool,
        /// What went wrong.
        detail: String,
    },
    /// An address that is none, as a registry can send in a redirect of an upload.
    #[error("{what}: the address is not one: {reason}")]
    Url {
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
}

impl RegistryError {
    /// Whether another attempt may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.is_transient(),
            Self::Token { transient, .. } => *transient,
            Self::Short { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Digest { .. }
            | Self::TooLarge { .. }
            | Self::Status { .. }
            | Self::Busy { .. }
            | Self::Range { .. }
            | Self::Length { .. }
            | Self::ContentType { .. }
            | Self::Blocked { .. }
            | Self::Location { .. }
            | Self::Doubted { .. }
            | Self::Resting { .. }
            | Self::Nowhere { .. }
            | Self::Realm { .. }
            | Self::Credentials { .. }
            | Self::Url { .. } => false,
        }
    }

    /// The error of the registry itself, where several places failed.
    #[must_use]
    pub fn decisive(&self) -> &Self {
        match self {
            Self::Nowhere { tried, .. } => tried.last().map_or(self, |tried| &tried.error),
            other => other,
        }
    }

    /// Whether the place is down, slow or lying, so that it will hardly do better for the next blob.
    pub(super) fn is_fault_of_place(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Digest { .. }
            | Self::TooLarge { .. }
            | Self::Short { .. }
            | Self::Busy { .. }
            | Self::Range { .. }
            | Self::Length { .. }
            | Self::ContentType { .. }
            | Self::Doubted { .. }
            | Self::Realm { .. }
            | Self::Token { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Status { .. }
            | Self::Blocked { .. }
            | Self::Location { .. }
            | Self::Resting { .. }
            | Self::Nowhere { .. }
            | Self::Credentials { .. }
            | Self::Url { .. } => false,
        }
    }

    pub(super) fn busy(what: &str, status: StatusCode, attempts: u32, body: &[u8]) -> Self {
        Self::Busy {
            what: what.to_owned(),
            status: status.as_u16(),
            attempts,
            detail: words(body),
        }
    }

    pub(super) fn from_status(what: &str, status: StatusCode, body: &[u8]) -> Self {
        let (what, detail) = (what.to_owned(), words(body));
        match status {
            StatusCode::NOT_FOUND => Self::NotFound { what, detail },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Unauthorized { what, detail },
            other => Self::Status {
                what,
                status: other.as_u16(),
                detail,
            },
        }
    }
}

fn list(tried: &[Tried]) -> String {
    let lines: Vec<String> = tried.iter().map(Tried::to_string).collect();
    lines.join("; ")
}

/// The codes and messages of a registry's error document, else the start of its text.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Document>(body) {
        Ok(document) => {
            let items = document
                .errors
                .iter()
                .map(|item| format!("{} ({})", item.message, item.code));
            items.collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    match text.as_str() {
        "" => "no reason given".to_owned(),
        text => shown_up_to(text, WORDS_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_own_words_are_told() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        let error = RegistryError::from_status("manifest of a", StatusCode::NOT_FOUND, body);
        assert_eq!(
            error.to_string(),
            "manifest of a does not exist: manifest unknown (MANIFEST_UNKNOWN)"
        );
        let error = RegistryError::from_status("x", StatusCode::FORBIDDEN, b"");
        assert!(
            matches!(error, RegistryError::Unauthorized { ref detail, .. } if detail == "no reason given")
        );
    }
}
