//! The names of resources: three checked segments, and the `kbs:///` form that images carry.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limit::{SEGMENT_CHARS, URI_CHARS};

/// `<repository>/<type>/<tag>`, each segment checked: letters, digits, `_`, `-`, and dots after the
/// first character. So no segment can climb out of a store or hide in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourcePath {
    repository: String,
    kind: String,
    tag: String,
}

impl ResourcePath {
    /// Checks three segments.
    ///
    /// # Errors
    /// When a segment breaks the rule.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<Self, ResourceError> {
        Ok(Self {
            repository: segment(repository)?,
            kind: segment(kind)?,
            tag: segment(tag)?,
        })
    }

    /// The first segment.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The second segment; `type` on the wire.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The third segment.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// All three, as a policy sees them.
    #[must_use]
    pub fn segments(&self) -> [&str; 3] {
        [&self.repository, &self.kind, &self.tag]
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.repository, self.kind, self.tag)
    }
}

impl FromStr for ResourcePath {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(repository), Some(kind), Some(tag), None) => Self::new(repository, kind, tag),
            _ => Err(ResourceError::Segments(shorten(text))),
        }
    }
}

impl TryFrom<String> for ResourcePath {
    type Error = ResourceError;

    fn try_from(text: String) -> Result<Self, ResourceError> {
        text.parse()
    }
}

impl From<ResourcePath> for String {
    fn from(path: ResourcePath) -> Self {
        path.to_string()
    }
}

/// `kbs:///<repository>/<type>/<tag>`. A host between the slashes is passed over, as peers do: which
/// broker is asked is decided by the guest's measured configuration, never by an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceUri {
    path: ResourcePath,
}

impl ResourceUri {
    /// The resource that is named.
    #[must_use]
    pub fn path(&self) -> &ResourcePath {
        &self.path
    }
}

impl From<ResourcePath> for ResourceUri {
    fn from(path: ResourcePath) -> Self {
        Self { path }
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kbs:///{}", self.path)
    }
}

impl FromStr for ResourceUri {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        if text.len() > URI_CHARS {
            return Err(ResourceError::TooLong);
        }
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| ResourceError::Scheme(shorten(text)))?;
        match scheme.strip_prefix("kbs") {
            Some("" | "+resource") => {}
            Some(plugin) if plugin.starts_with('+') => {
                return Err(ResourceError::Plugin(shorten(&plugin[1..])));
            }
            Some(_) | None => return Err(ResourceError::Scheme(shorten(scheme))),
        }
        let (_host, path) = rest
            .split_once('/')
            .ok_or_else(|| ResourceError::Segments(shorten(rest)))?;
        Ok(Self {
            path: path.parse()?,
        })
    }
}

impl TryFrom<String> for ResourceUri {
    type Error = ResourceError;

    fn try_from(text: String) -> Result<Self, ResourceError> {
        text.parse()
    }
}

impl From<ResourceUri> for String {
    fn from(uri: ResourceUri) -> Self {
        uri.to_string()
    }
}

/// A name that is not one of a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// Not three segments.
    #[error("`{0}` is not `<repository>/<type>/<tag>`")]
    Segments(String),
    /// A segment with a character that is not allowed, or an empty one.
    #[error(
        "`{0}` is no segment of a resource: use letters, digits, `_`, `-`, and dots after the first character"
    )]
    Segment(String),
    /// Longer than the cap.
    #[error("longer than {URI_CHARS} characters, or a segment longer than {SEGMENT_CHARS}")]
    TooLong,
    /// Not `kbs`.
    #[error("`{0}` is not a `kbs:///` URI")]
    Scheme(String),
    /// A plugin that hands out something other than resources.
    #[error("plugin `{0}` is not supported: use `kbs:///<repository>/<type>/<tag>`")]
    Plugin(String),
}

fn segment(text: &str) -> Result<String, ResourceError> {
    if text.len() > SEGMENT_CHARS {
        return Err(ResourceError::TooLong);
    }
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match text.as_bytes() {
        [first, rest @ ..] if word(*first) && rest.iter().all(|b| word(*b) || *b == b'.') => {
            Ok(text.to_owned())
        }
        _ => Err(ResourceError::Segment(shorten(text))),
    }
}

/// A piece of a hostile name that is safe to print.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 64;
    text.chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_three_segments() {
        for text in [
            "kbs:///default/key/1",
            "kbs+resource:///default/key/1",
            "kbs://host:8080/default/key/1",
        ] {
            let uri: ResourceUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), "kbs:///default/key/1");
            assert_eq!(uri.path().segments(), ["default", "key", "1"]);
        }
    }

    #[test]
    fn names_that_climb_or_hide_are_refused() {
        for text in [
            "a/b",
            "a/b/c/d",
            "../b/c",
            "a//c",
            "a/.b/c",
            "a/b/c%2f",
            "a/b/\u{e9}",
            "a/b/",
            "a/b/c\n",
        ] {
            assert!(text.parse::<ResourcePath>().is_err(), "{text:?}");
            assert!(format!("kbs:///{text}").parse::<ResourceUri>().is_err());
        }
        assert!("a/b/c.tar-1_2".parse::<ResourcePath>().is_ok());
        assert!("kbs+nebula-ca:///a/b/c".parse::<ResourceUri>().is_err());
        assert!("https:///a/b/c".parse::<ResourceUri>().is_err());
        let long = "x".repeat(SEGMENT_CHARS + 1);
        assert!(ResourcePath::new(&long, "a", "b").is_err());
    }
}
