//! Why a policy is none, or why it refuses an image.

use super::value::Location;
use crate::signature::Refusal;

/// Why an image is not allowed, or a policy is not one.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A cap.
    #[error("the image policy has {found} {what}, more than {cap}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// The cap.
        cap: usize,
    },
    /// Not JSON of the format: a word, a field or a type of requirement that the format does not have.
    #[error("the image policy is not a containers-policy.json: {0}")]
    Json(#[source] serde_json::Error),
    /// Something that the format does not allow.
    #[error("the image policy, scope {scope:?}: {reason}")]
    Invalid {
        /// Where it stands.
        scope: String,
        /// What it is, and what to write instead.
        reason: String,
    },
    /// A key or a certificate that the policy names could not be had.
    #[error("the image policy needs {location}, which could not be fetched: {source}")]
    Value {
        /// Where it should have been.
        location: Location,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The policy refuses the image by its name.
    #[error("image {image} is refused by the image policy, scope {scope:?}")]
    Refused {
        /// Which image.
        image: String,
        /// Whose requirement it was.
        scope: String,
    },
    /// The policy asks for more of an image in a layout than its name, which is a path, can show.
    #[error(
        "image {image} is in a layout, and the image policy has requirements for layouts that are not judged here: \
         pull it from a registry, or let `default` accept it and have no `oci` transport"
    )]
    Layout {
        /// Which image.
        image: String,
    },
    /// No signature meets what the policy requires.
    #[error(transparent)]
    Unsigned(Box<Refusal>),
}

impl PolicyError {
    pub(super) fn invalid(scope: &str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            scope: scope.to_owned(),
            reason: reason.into(),
        }
    }
}
