//! Why a registry did not give what was asked for.

use http::StatusCode;
use serde::Deserialize;

use super::auth::AuthFileError;
use crate::digest::Digest;

/// Cap on the registry's own words in an error, in characters.
const WORDS_MAX: usize = 300;

/// A request to a registry that failed.
#[derive(Debug, thiserror::Error)]
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
    /// The registry's token service gave no token.
    #[error("{what}: the registry's token service {realm} gave no token: {detail}")]
    Token {
        /// What was asked for.
        what: String,
        /// The token service.
        realm: String,
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
            Self::Short { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::Digest { .. }
            | Self::TooLarge { .. }
            | Self::Status { .. }
            | Self::Credentials { .. }
            | Self::Token { .. }
            | Self::Url { .. } => false,
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
    let text: String = text
        .chars()
        .filter(|letter| !letter.is_control())
        .take(WORDS_MAX)
        .collect();
    if text.is_empty() {
        "no reason given".to_owned()
    } else {
        text
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
