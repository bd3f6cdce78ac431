//! Names of images: `[registry/]repository[:tag][@digest]`, made whole the way Docker does it.
//!
//! `busybox` is `docker.io/library/busybox:latest`. The grammar is that of the distribution project's `reference`
//! package; caps are its own (name 255, tag 128). The registry is written small, because hosts are the same in both
//! cases and no rule for one may be passed by with a capital letter.

use std::fmt;
use std::str::FromStr;

use crate::digest::{BadDigest, Digest};

/// Cap on registry and repository together, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Cap on a tag, in bytes.
const TAG_BYTES_MAX: usize = 128;
/// Cap on the whole text, in bytes.
const REFERENCE_BYTES_MAX: usize = 1024;
const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub's registry really listens.
const DOCKER_HUB_ENDPOINT: &str = "registry-1.docker.io";

/// Why text names no image.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing, or a cap.
    #[error(
        "an image name has 1 to {REFERENCE_BYTES_MAX} bytes, and its repository at most {NAME_BYTES_MAX}"
    )]
    Length,
    /// The registry's host or port.
    #[error("{0:?} is not a registry's host[:port]")]
    Registry(String),
    /// The repository.
    #[error(
        "{0:?} is not a repository: lower-case letters, digits, '.', '_' and '-' between slashes"
    )]
    Repository(String),
    /// The tag.
    #[error("{0:?} is not a tag: up to {TAG_BYTES_MAX} letters, digits, '.', '_' and '-'")]
    Tag(String),
    /// The digest.
    #[error(transparent)]
    Digest(#[from] BadDigest),
}

/// The name of an image. A digest, where there is one, wins over the tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as a name is written: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The registry as it is dialled.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        if self.registry == DOCKER_HUB {
            DOCKER_HUB_ENDPOINT
        } else {
            &self.registry
        }
    }

    /// The repository: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; absent only where a digest stands alone.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the image.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What stands behind `/manifests/`: the digest, else the tag.
    #[must_use]
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same repository, pinned to `digest`.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same name by its tag alone; `latest`, where it has none.
    #[must_use]
    pub(crate) fn unpinned(&self) -> Self {
        let tag = self.tag.clone().or_else(|| Some("latest".to_owned()));
        Self {
            tag,
            digest: None,
            ..self.clone()
        }
    }

    /// What has this tag or digest in the same repository.
    ///
    /// # Errors
    /// When `name` is neither.
    pub fn named(&self, name: &str) -> Result<Self, ReferenceError> {
        let (tag, digest) = if name.contains(':') {
            (None, Some(name.parse()?))
        } else {
            (Some(check_tag(name)?), None)
        };
        Ok(Self {
            tag,
            digest,
            ..self.clone()
        })
    }

    /// `registry/repository`, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        self.digest
            .as_ref()
            .map_or(Ok(()), |digest| write!(formatter, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() || text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::Length);
        }
        let (text, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        let (registry, rest) = match text.split_once('/') {
            Some((first, rest)) if is_registry(first) => {
                let small = first.to_ascii_lowercase();
                // A host by its capitals alone would be a user of Docker Hub when it is read again.
                if !is_registry(&small) {
                    return Err(ReferenceError::Registry(first.to_owned()));
                }
                (small, rest)
            }
            _ => (DOCKER_HUB.to_owned(), text),
        };
        let registry = if registry == "index.docker.io" {
            DOCKER_HUB.to_owned()
        } else {
            registry
        };
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(check_tag(tag)?)),
            None => (rest, None),
        };
        let library = registry == DOCKER_HUB && !repository.contains('/');
        let repository = if library {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        check_registry(&registry)?;
        check_repository(&repository)?;
        if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
            return Err(ReferenceError::Length);
        }
        let tag = if tag.is_none() && digest.is_none() {
            Some("latest".to_owned())
        } else {
            tag
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

/// Docker's rule: the first component is a host if it could not be a user's name.
pub(crate) fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase)
}

fn check_registry(registry: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Registry(registry.to_owned());
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            (
                "v6",
                if rest.is_empty() {
                    None
                } else {
                    Some(rest.strip_prefix(':').ok_or_else(bad)?)
                },
            )
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        let inside = label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        inside && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number > 0));
    if host.split('.').all(label) && port_is_good {
        Ok(())
    } else {
        Err(bad())
    }
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    let component = |component: &str| {
        let edge = |byte: Option<u8>| {
            byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let inside = component.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
        });
        let separators = ["..", "___", "._", "_.", ".-", "-.", "_-", "-_"];
        inside
            && edge(component.bytes().next())
            && edge(component.bytes().last())
            && !separators.iter().any(|pair| component.contains(pair))
    };
    if repository.split('/').all(component) {
        Ok(())
    } else {
        Err(ReferenceError::Repository(repository.to_owned()))
    }
}

fn check_tag(tag: &str) -> Result<String, ReferenceError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let inside = tag
        .bytes()
        .all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    if inside && tag.len() <= TAG_BYTES_MAX && tag.bytes().next().is_some_and(word) {
        Ok(tag.to_owned())
    } else {
        Err(ReferenceError::Tag(tag.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_made_whole() {
        let digest = Digest::of(b"");
        let cases = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            (
                "index.docker.io/library/a",
                "docker.io/library/a:latest".to_owned(),
            ),
            ("localhost/app", "localhost/app:latest".to_owned()),
            (
                "127.0.0.1:5055/test/bb:v1",
                "127.0.0.1:5055/test/bb:v1".to_owned(),
            ),
            ("[::1]:5000/a/b:v1", "[::1]:5000/a/b:v1".to_owned()),
            ("ghcr.io/a/b__c/d-e", "ghcr.io/a/b__c/d-e:latest".to_owned()),
            ("GHCR.io/a/b:V1", "ghcr.io/a/b:V1".to_owned()),
            ("LOCALHOST/a", "localhost/a:latest".to_owned()),
            (
                &format!("ghcr.io/a/b:v1@{digest}"),
                format!("ghcr.io/a/b:v1@{digest}"),
            ),
            (
                &format!("ghcr.io/a/b@{digest}"),
                format!("ghcr.io/a/b@{digest}"),
            ),
        ];
        for (text, whole) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole);
            assert_eq!(whole.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn docker_hub_is_dialled_where_it_listens() {
        assert_eq!(
            "busybox".parse::<Reference>().unwrap().endpoint(),
            "registry-1.docker.io"
        );
        assert_eq!(
            "quay.io/a/b".parse::<Reference>().unwrap().endpoint(),
            "quay.io"
        );
    }

    #[test]
    fn what_names_no_image_is_refused() {
        let long = format!("ghcr.io/{}", "a".repeat(250));
        let cases = [
            "",
            "UPPER/x/../y",
            "UPPER/x",
            "a//b",
            "a/../b",
            "ghcr.io/a/b:",
            "ghcr.io/a/b:-x",
            "ghcr.io/a b",
            "ghcr.io:99999/a",
            "ghcr.io/a@sha256:00",
            "-bad-.io/a",
            "ghcr.io/a/b:x/y",
            "[::1/a",
            &long,
            "a?b",
            "ghcr.io/a%2fb",
        ];
        for text in cases {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
