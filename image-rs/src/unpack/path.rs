//! Names in an archive, taken apart and checked before anything is opened.

use super::{Limits, UnpackError};

/// Cap on one component, in bytes: that of every Linux file system.
const COMPONENT_BYTES_MAX: usize = 255;
/// Cap on a whole name, in bytes: `PATH_MAX`.
const NAME_BYTES_MAX: usize = 4096;

/// A name as components below the root; none of them is empty, `.` or `..`. The root itself has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct RelativePath(Vec<Vec<u8>>);

impl RelativePath {
    /// Checks a name.
    pub(super) fn read(name: &[u8], limits: &Limits) -> Result<Self, UnpackError> {
        if name.starts_with(b"/") {
            return Err(UnpackError::Absolute(shown(name)));
        }
        if name.len() > NAME_BYTES_MAX || name.contains(&0) {
            return Err(UnpackError::Name(shown(name)));
        }
        let mut components = Vec::new();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(UnpackError::Parent(shown(name))),
                long if long.len() > COMPONENT_BYTES_MAX => {
                    return Err(UnpackError::Name(shown(name)));
                }
                component => components.push(component.to_vec()),
            }
        }
        if components.len() > limits.path_depth {
            return Err(UnpackError::limit("path_depth", limits.path_depth as u64));
        }
        Ok(Self(components))
    }

    pub(super) fn from_components(components: Vec<Vec<u8>>) -> Self {
        Self(components)
    }

    /// Parent and last component; `None` for the root.
    pub(super) fn split(&self) -> Option<(Self, &[u8])> {
        let (name, parent) = self.0.split_last()?;
        Some((Self(parent.to_vec()), name))
    }

    pub(super) fn join(&self, name: &[u8]) -> Self {
        let mut components = self.0.clone();
        components.push(name.to_vec());
        Self(components)
    }

    pub(super) fn components(&self) -> &[Vec<u8>] {
        &self.0
    }

    pub(super) fn starts_with(&self, parent: &Self) -> bool {
        self.0.starts_with(&parent.0)
    }

    /// For the kernel; `.` for the root.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        if self.0.is_empty() {
            b".".to_vec()
        } else {
            self.0.join(&b'/')
        }
    }
}

impl std::fmt::Display for RelativePath {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&shown(&self.to_bytes()))
    }
}

/// A name for an error: not longer than a line or two.
pub(super) fn shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    String::from_utf8_lossy(name)
        .chars()
        .take(SHOWN_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &[u8]) -> Result<String, UnpackError> {
        RelativePath::read(name, &Limits::default()).map(|path| path.to_string())
    }

    #[test]
    fn names_lose_their_noise() {
        assert_eq!(read(b"./usr//bin/./sh").unwrap(), "usr/bin/sh");
        assert_eq!(read(b"./").unwrap(), ".");
    }

    #[test]
    fn names_that_leave_the_root_are_refused() {
        assert!(matches!(
            read(b"/etc/passwd"),
            Err(UnpackError::Absolute(_))
        ));
        assert!(matches!(read(b"a/../../etc"), Err(UnpackError::Parent(_))));
        assert!(matches!(read(b".."), Err(UnpackError::Parent(_))));
        assert!(matches!(read(b"a\0b"), Err(UnpackError::Name(_))));
        assert!(matches!(read(&[b'a'; 256]), Err(UnpackError::Name(_))));
        assert!(matches!(
            read("a/".repeat(200).as_bytes()),
            Err(UnpackError::Limit {
                setting: "path_depth",
                ..
            })
        ));
    }
}
