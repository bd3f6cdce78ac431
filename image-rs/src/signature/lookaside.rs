//! Where simple signatures are kept beside a registry: the `registries.d` of containers/image.
//!
//! The format is read as JSON, which is YAML as well; a reader for all of YAML would be the largest parser in the guest,
//! for two lines of text.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::digest::Digest;
use crate::policy;
use crate::reference::Reference;

/// Cap on the text, in bytes.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// Text that is no `registries.d`.
#[derive(Debug, thiserror::Error)]
pub enum LookasideError {
    /// A cap.
    #[error("the lookaside configuration has {0} bytes, more than {TEXT_BYTES_MAX}")]
    TooLong(usize),
    /// Not JSON of the format.
    #[error(
        "the lookaside configuration is not a registries.d in JSON (YAML's own notation is not read): {0}"
    )]
    Json(#[from] serde_json::Error),
    /// A place of another kind.
    #[error("the lookaside {0:?} is not a file:///, https:// or http:// URL")]
    Place(String),
}

/// The lookasides, by scope.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookaside {
    default: Option<String>,
    scopes: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    default_docker: Option<Entry>,
    #[serde(default)]
    docker: BTreeMap<String, Entry>,
}

/// What is only for those who sign is read and left alone; attachments are always looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    lookaside: Option<String>,
    sigstore: Option<String>,
    #[serde(rename = "lookaside-staging")]
    _lookaside_staging: Option<String>,
    #[serde(rename = "sigstore-staging")]
    _sigstore_staging: Option<String>,
    #[serde(rename = "use-sigstore-attachments")]
    _attachments: Option<bool>,
}

impl Entry {
    /// `lookaside` is the newer name, and counts where both are.
    fn place(self) -> Result<Option<String>, LookasideError> {
        let Some(place) = self.lookaside.or(self.sigstore) else {
            return Ok(None);
        };
        let known = ["file:///", "https://", "http://"];
        if known.iter().any(|scheme| place.starts_with(scheme)) {
            Ok(Some(place.trim_end_matches('/').to_owned()))
        } else {
            Err(LookasideError::Place(place))
        }
    }
}

impl Lookaside {
    /// Reads a `registries.d` file.
    ///
    /// # Errors
    /// See [`LookasideError`].
    pub fn from_json(json: &[u8]) -> Result<Self, LookasideError> {
        if json.len() > TEXT_BYTES_MAX {
            return Err(LookasideError::TooLong(json.len()));
        }
        let file: File = serde_json::from_slice(json)?;
        let default = file.default_docker.map(Entry::place).transpose()?.flatten();
        let mut scopes = BTreeMap::new();
        for (scope, entry) in file.docker {
            if let Some(place) = entry.place()? {
                scopes.insert(scope, place);
            }
        }
        Ok(Self { default, scopes })
    }

    /// The directory of an image's signatures, if there is a lookaside for it.
    pub(super) fn place(&self, image: &Reference, digest: &Digest) -> Option<String> {
        let scopes = policy::scopes(image);
        let own = scopes.iter().find_map(|scope| self.scopes.get(scope));
        let base = own.or(self.default.as_ref())?;
        let (repository, algorithm) = (image.repository(), digest.algorithm().name());
        Some(format!("{base}/{repository}@{algorithm}={}", digest.hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_lookaside_counts() {
        let json = br#"{"default-docker": {"sigstore": "file:///var/lib/sigs"},
            "docker": {"quay.io/a": {"lookaside": "https://sigs.example/a/", "sigstore-staging": "file:///w"},
                       "quay.io/b": {"use-sigstore-attachments": true}}}"#;
        let lookaside = Lookaside::from_json(json).unwrap();
        let digest = Digest::of(b"");
        let place = |image: &str| lookaside.place(&image.parse().unwrap(), &digest).unwrap();
        let end = format!("@sha256={}", digest.hex());
        assert_eq!(
            place("quay.io/a/x:v1"),
            format!("https://sigs.example/a/a/x{end}")
        );
        assert_eq!(
            place("busybox"),
            format!("file:///var/lib/sigs/library/busybox{end}")
        );
        assert_eq!(place("quay.io/b"), format!("file:///var/lib/sigs/b{end}"));
        let none = Lookaside::default();
        assert_eq!(none.place(&"busybox".parse().unwrap(), &digest), None);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            &br#"{"docker": {"a": {"lookasid": "file:///x"}}}"#[..],
            br#"{"default-docker": {"lookaside": "ftp://x"}}"#,
            b"default-docker:\n  sigstore: file:///x\n",
        ] {
            assert!(Lookaside::from_json(bad).is_err());
        }
    }
}
