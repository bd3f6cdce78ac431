//! Where a specification puts a cgroup: a path, or a unit of systemd's in a slice.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// The longest path, in bytes.
const MAX_PATH: usize = 4096;
/// The most directories of one path.
const MAX_DEPTH: usize = 32;
/// The longest name of a directory (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// Where systemd puts a unit whose slice is not named.
const DEFAULT_SLICE: &str = "system.slice";

/// What is wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlaceError {
    /// It has no name of a cgroup.
    #[error("it names no cgroup")]
    Empty,
    /// It is too long or deep.
    #[error("it has more than {MAX_PATH} bytes or {MAX_DEPTH} directories")]
    TooLong,
    /// One of its names is none.
    #[error("{0:?} is not the name of a cgroup")]
    Name(String),
    /// It has the form of systemd's, and its slice is none.
    #[error("{0:?} is not the name of a slice")]
    Slice(String),
    /// There is no such cgroup.
    #[error("there is no such cgroup")]
    Missing,
}

/// A place below the root of each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    path: PathBuf,
    is_unit: bool,
}

impl Place {
    /// Reads `linux.cgroupsPath`: `/a/b`, or `slice:prefix:name` as containerd writes it for systemd.
    /// Nothing where it is empty.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, PlaceError> {
        if text.len() > MAX_PATH {
            return Err(PlaceError::TooLong);
        }
        let parts: Vec<&str> = text.split(':').collect();
        let place = match parts[..] {
            [slice, prefix, name] if !text.starts_with('/') => Self {
                path: expand(slice)?.join(unit(prefix, name)?),
                is_unit: true,
            },
            _ => Self {
                path: plain(text)?,
                is_unit: false,
            },
        };
        Ok(Some(place).filter(|place| !place.path.as_os_str().is_empty()))
    }

    /// The path, without a slash at its start.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether those above it are slices, in which systemd alone decides what is counted.
    pub(super) fn is_unit(&self) -> bool {
        self.is_unit
    }
}

fn plain(text: &str) -> Result<PathBuf, PlaceError> {
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) if is_name(&name.to_string_lossy()) => path.push(name),
            other => {
                let name = other.as_os_str().to_string_lossy().into_owned();
                return Err(PlaceError::Name(name));
            }
        }
    }
    match path.components().count() {
        0..=MAX_DEPTH => Ok(path),
        _ => Err(PlaceError::TooLong),
    }
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)); `-.slice` is the root.
fn expand(slice: &str) -> Result<PathBuf, PlaceError> {
    let slice = if slice.is_empty() {
        DEFAULT_SLICE
    } else {
        slice
    };
    let refuse = || PlaceError::Slice(slice.to_owned());
    let stem = slice.strip_suffix(".slice").ok_or_else(refuse)?;
    if stem == "-" {
        return Ok(PathBuf::new());
    }
    let names: Vec<&str> = stem.split('-').collect();
    if !is_name(slice) || names.iter().any(|name| name.is_empty()) {
        return Err(refuse());
    }
    if names.len() >= MAX_DEPTH {
        return Err(PlaceError::TooLong);
    }
    Ok((1..=names.len())
        .map(|count| format!("{}.slice", names[..count].join("-")))
        .collect())
}

fn unit(prefix: &str, name: &str) -> Result<String, PlaceError> {
    let unit = match (prefix, name) {
        (_, "") => return Err(PlaceError::Empty),
        (_, name) if name.ends_with(".slice") => name.to_owned(),
        ("", name) => format!("{name}.scope"),
        (prefix, name) => format!("{prefix}-{name}.scope"),
    };
    match is_name(&unit) {
        true => Ok(unit),
        false => Err(PlaceError::Name(unit)),
    }
}

fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name.len() <= MAX_NAME
        && !name.contains('/')
        && !name.chars().any(char::is_control)
        // The files of a cgroup itself.
        && !name.starts_with("cgroup.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Result<Option<String>, PlaceError> {
        let place = Place::parse(text)?;
        Ok(place.map(|place| place.path.display().to_string()))
    }

    #[test]
    fn a_path_is_taken_from_the_root() {
        let wanted = Ok(Some("kubepods/burstable/pod1/abc".to_owned()));
        assert_eq!(path("/kubepods/burstable/pod1/abc"), wanted);
        assert_eq!(path("kubepods//burstable/./pod1/abc/"), wanted);
        for nothing in ["", "/", "/./"] {
            assert_eq!(path(nothing), Ok(None), "{nothing}");
        }
    }

    #[test]
    fn a_unit_lies_in_all_slices_of_its_slice() {
        let place = Place::parse("kubepods-besteffort-pod1_2.slice:cri-containerd:abc");
        let place = place.unwrap().unwrap();
        assert!(place.is_unit());
        assert_eq!(
            place.path(),
            Path::new(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-abc.scope"
            )
        );
        assert_eq!(path("::abc"), Ok(Some("system.slice/abc.scope".to_owned())));
        assert_eq!(path("-.slice:a:b"), Ok(Some("a-b.scope".to_owned())));
        assert_eq!(
            path("a.slice:x:b.slice"),
            Ok(Some("a.slice/b.slice".to_owned()))
        );
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let name = |name: &str| Err(PlaceError::Name(name.to_owned()));
        assert_eq!(path("/a/../../b"), name(".."));
        assert_eq!(path("/a/cgroup.procs"), name("cgroup.procs"));
        assert_eq!(path("a.slice:p:../x"), name("p-../x.scope"));
        assert_eq!(path("/a\nb"), name("a\nb"));
        assert_eq!(path("a.slice:p:"), Err(PlaceError::Empty));
        for slice in ["a", "a--b.slice", "-a.slice", "a/b.slice", "..slice/"] {
            let text = format!("{slice}:p:n");
            assert_eq!(path(&text), Err(PlaceError::Slice(slice.to_owned())));
        }
        assert_eq!(path(&"/a".repeat(33)), Err(PlaceError::TooLong));
        assert_eq!(path(&"a".repeat(4097)), Err(PlaceError::TooLong));
    }
}
