//! Names in an archive, taken apart and checked before anything is opened.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use super::{Limits, UnpackError};

/// Cap on one component, in bytes: that of every Linux file system.
const COMPONENT_BYTES_MAX: usize = 255;
/// Cap on the components of a path, whatever the limits say: a tree is walked with a call and two descriptors for each.
const DEPTH_MAX: usize = 256;
/// Cap on a whole name, in bytes, whatever the limits say: `PATH_MAX` with its NUL.
const NAME_BYTES_MAX: usize = 4095;

/// A name below the root, joined by single slashes; no component is empty, `.` or `..`. The root itself is empty.
///
/// One buffer for a whole name, because an image has some hundred thousand of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct RelativePath(Vec<u8>);

impl RelativePath {
    /// Checks a name.
    pub(super) fn read(name: &[u8], limits: &Limits) -> Result<Self, UnpackError> {
        if name.starts_with(b"/") {
            return Err(UnpackError::Absolute(shown(name)));
        }
        let mut path = Self(Vec::with_capacity(name.len().min(NAME_BYTES_MAX)));
        if name.contains(&0) {
            return Err(UnpackError::Name(shown(name)));
        }
        let mut depth = 0;
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(UnpackError::Parent(shown(name))),
                long if long.len() > COMPONENT_BYTES_MAX => {
                    return Err(UnpackError::Name(shown(name)));
                }
                component => path.push(component),
            }
            depth += 1;
            path.check(depth, limits)?;
        }
        Ok(path)
    }

    /// Joins components that are known to be good; the whole is checked.
    pub(super) fn from_components(
        components: &[Vec<u8>],
        limits: &Limits,
    ) -> Result<Self, UnpackError> {
        let path = Self(components.join(&b'/'));
        path.check(components.len(), limits)?;
        Ok(path)
    }

    /// A part of a path that was read before.
    pub(super) fn below(part: &[u8]) -> Self {
        Self(part.to_vec())
    }

    /// What is left of `path` below this one; `None` when it is not below.
    pub(super) fn rest_of<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let rest = path.strip_prefix(self.0.as_slice())?;
        match self.0.is_empty() {
            true => Some(rest),
            false => rest.strip_prefix(b"/"),
        }
    }

    fn check(&self, depth: usize, limits: &Limits) -> Result<(), UnpackError> {
        let deepest = limits.path_depth.min(DEPTH_MAX);
        if depth > deepest {
            return Err(UnpackError::limit("path_depth", deepest as u64));
        }
        let cap = limits.path_bytes.min(NAME_BYTES_MAX);
        if self.0.len() > cap {
            return Err(UnpackError::limit("path_bytes", cap as u64));
        }
        Ok(())
    }

    fn push(&mut self, component: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(component);
    }

    /// Parent and last component; `None` for the root.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Some((&self.0[..slash], &self.0[slash + 1..])),
            None if self.0.is_empty() => None,
            None => Some((&[], &self.0)),
        }
    }

    pub(super) fn join(&self, name: &[u8]) -> Self {
        let mut path = Self(Vec::with_capacity(self.0.len() + 1 + name.len()));
        path.0.extend_from_slice(&self.0);
        path.push(name);
        path
    }

    /// As [`Self::join`], held to the limits: links can make a path longer than any name of an archive.
    pub(super) fn join_checked(&self, name: &[u8], limits: &Limits) -> Result<Self, UnpackError> {
        let path = self.join(name);
        path.check(path.depth(), limits)?;
        Ok(path)
    }

    /// How many components it has.
    pub(super) fn depth(&self) -> usize {
        components(&self.0).count()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same path with `from` at its beginning replaced.
    pub(super) fn moved(&self, from: &Self, to: &Self) -> Self {
        match self.0.strip_prefix(from.as_bytes()) {
            Some(b"") => to.clone(),
            Some(rest) => to.join(rest.strip_prefix(b"/").unwrap_or(rest)),
            None => self.clone(),
        }
    }
}

impl Borrow<[u8]> for RelativePath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// The components of a path that was read before.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty())
}

/// Takes `path` and all that is below it out of a map. No walk over the rest of it: a layer may do this for each entry.
pub(super) fn take_below<T>(
    map: &mut BTreeMap<RelativePath, T>,
    path: &RelativePath,
) -> Vec<(RelativePath, T)> {
    if map.is_empty() {
        return Vec::new();
    }
    if path.0.is_empty() {
        return std::mem::take(map).into_iter().collect();
    }
    let mut taken: Vec<_> = map.remove_entry(path).into_iter().collect();
    // A slash and the byte behind it: between them is what begins with the path and a slash.
    let (mut first, mut behind) = (path.0.clone(), path.0.clone());
    first.push(b'/');
    behind.push(b'/' + 1);
    taken.extend(map.extract_if(RelativePath(first)..RelativePath(behind), |_, _| true));
    taken
}

/// A name for an error: not longer than a line or two.
pub(super) fn shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 200;
    if name.is_empty() {
        return ".".to_owned();
    }
    String::from_utf8_lossy(&name[..name.len().min(4 * SHOWN_MAX)])
        .chars()
        .take(SHOWN_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &[u8]) -> Result<String, UnpackError> {
        RelativePath::read(name, &Limits::default()).map(|path| shown(path.as_bytes()))
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
        let long = |name: String, wanted: &str| {
            let error = read(name.as_bytes()).unwrap_err();
            assert!(
                matches!(error, UnpackError::Limit { setting, .. } if setting == wanted),
                "{error}"
            );
        };
        long("a/".repeat(200), "path_depth");
        long(format!("{}/", "a".repeat(250)).repeat(20), "path_bytes");
    }

    #[test]
    fn what_is_below_a_path_is_taken_and_nothing_else() {
        let path = |text: &str| RelativePath::read(text.as_bytes(), &Limits::default()).unwrap();
        let all = ["a", "a-b", "a/b", "a/b/c", "a0", "b/a"];
        let mut map: BTreeMap<_, ()> = all.map(|text| (path(text), ())).into();
        let taken = take_below(&mut map, &path("a"));
        let taken: Vec<_> = taken.iter().map(|(path, ())| shown(&path.0)).collect();
        assert_eq!(taken, ["a", "a/b", "a/b/c"]);
        let left: Vec<_> = map.keys().map(|path| shown(&path.0)).collect();
        assert_eq!(left, ["a-b", "a0", "b/a"]);
    }

    #[test]
    fn a_path_moves_with_its_beginning() {
        let path = |text: &str| RelativePath::read(text.as_bytes(), &Limits::default()).unwrap();
        let moved = |all: &str, from: &str, to: &str| {
            shown(path(all).moved(&path(from), &path(to)).as_bytes())
        };
        assert_eq!(moved("l/x/y", "l", "a/b"), "a/b/x/y");
        assert_eq!(moved("l", "l", "a"), "a");
        assert_eq!(moved("l/x", "l/x", ""), ".");
    }
}
