//! Where things lie in the guest, and the check that a path which a request names lies there.
//!
//! The shared directory's content is the host's, symbolic links too. So a path is resolved first
//! and compared afterwards.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use agent_api::{ErrorCode, GuestError, limit};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::fault::{OrFail, invalid};

/// Everything that a request may name lies below.
pub const BASE: &str = "/run/kata-containers";
/// What the host shares.
pub const SHARED: &str = "/run/kata-containers/shared/containers";
/// The pod's own files.
pub const SANDBOX: &str = "/run/kata-containers/sandbox";
/// The image store.
pub const IMAGE: &str = "/run/kata-containers/image";
/// The agent's own state; no request may name it.
pub const STATE: &str = "/run/cloister";

/// The path, resolved, when it exists below [`BASE`].
///
/// # Errors
///
/// The path does not exist, or leads elsewhere.
pub fn existing(phase: &str, path: &str) -> Result<PathBuf, GuestError> {
    lexical(phase, path)?;
    let resolved = fs::canonicalize(path).or_fail(ErrorCode::InvalidArgument, phase, path)?;
    if !resolved.starts_with(BASE) {
        return Err(invalid(phase, format!("{path} leads out of {BASE}")));
    }
    Ok(resolved)
}

/// The path of a directory below [`BASE`], made where it is missing.
///
/// # Errors
///
/// The path leads elsewhere, or cannot be made.
pub fn directory(phase: &str, path: &str) -> Result<PathBuf, GuestError> {
    let wanted = lexical(phase, path)?;
    // The deepest part that exists decides where a missing rest would be made.
    let present = wanted
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    let resolved = fs::canonicalize(present).or_internal(phase, present.display())?;
    if !resolved.starts_with(BASE)
        && Path::new(BASE) != wanted
        && !Path::new(BASE).starts_with(&resolved)
    {
        return Err(invalid(phase, format!("{path} leads out of {BASE}")));
    }
    fs::create_dir_all(&wanted).or_internal(phase, format!("make {path}"))?;
    existing(phase, path)
}

/// An absolute path below [`BASE`] in plain form.
///
/// # Errors
///
/// It is another one.
pub fn lexical(phase: &str, path: &str) -> Result<PathBuf, GuestError> {
    let path = Path::new(path);
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !plain || !path.starts_with(BASE) {
        return Err(invalid(
            phase,
            format!("{} is not a path below {BASE}", path.display()),
        ));
    }
    Ok(path.to_owned())
}

/// An id of a sandbox, container or exec: containerd's rule, which also makes it a file name.
///
/// # Errors
///
/// It is no such id.
pub fn check_id(phase: &str, what: &str, id: &str) -> Result<(), GuestError> {
    let starts_well = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    let goes_on_well = id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if starts_well && goes_on_well && id.len() <= limit::MAX_ID {
        return Ok(());
    }
    let shown: String = id.chars().take(limit::MAX_ID).collect();
    let rule = "it must be letters, digits, '_', '.' and '-', and not longer than 128";
    Err(invalid(
        phase,
        format!("{what} {shown:?} is refused: {rule}"),
    ))
}

/// The id of a container: one that is not the name of what lies beside its bundle.
///
/// # Errors
///
/// It is no such id.
pub fn check_container_id(phase: &str, id: &str) -> Result<(), GuestError> {
    check_id(phase, "container_id", id)?;
    let bundle = Path::new(BASE).join(id);
    if [SHARED, SANDBOX, IMAGE]
        .iter()
        .any(|own| Path::new(own).starts_with(&bundle))
    {
        return Err(invalid(
            phase,
            format!("container_id {id:?} is the guest's own"),
        ));
    }
    Ok(())
}

/// Reads a file of a container's root as the container itself would see it: no link leads out.
///
/// # Errors
///
/// Those of openat2(2) and read(2), or the file has more than `cap` bytes.
pub fn read_in_root(root: &Path, path: &str, cap: u64) -> io::Result<String> {
    let root = openat2(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )?;
    let file = openat2(
        &root,
        path.trim_start_matches('/'),
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    let mut text = String::new();
    let read = File::from(file).take(cap + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > cap) {
        return Err(io::Error::other(format!(
            "{path} has more than {cap} bytes"
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_the_base_pass() {
        for good in ["/run/kata-containers", "/run/kata-containers/a/b"] {
            assert!(lexical("t", good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a",
            "/",
            "/run/cloister",
            "/run/kata-containers/../cloister",
            "/run/kata-containers-2/x",
            "run/kata-containers",
        ] {
            assert!(lexical("t", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_file_names() {
        for good in ["a", "A0_.-z"] {
            assert!(check_id("t", "id", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "ä", &"a".repeat(129)] {
            assert!(check_id("t", "id", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_container_has_the_name_of_a_directory_of_the_guest() {
        for own in ["image", "shared", "sandbox"] {
            assert!(check_container_id("t", own).is_err(), "{own}");
        }
        assert!(check_container_id("t", "images").is_ok());
    }

    #[test]
    fn links_in_a_root_stay_in_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("real"), "inside").unwrap();
        std::os::unix::fs::symlink("/real", root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../../etc/passwd", root.path().join("up")).unwrap();
        assert_eq!(
            read_in_root(root.path(), "/etc/passwd", 10).unwrap(),
            "inside"
        );
        assert_eq!(read_in_root(root.path(), "up", 10).unwrap(), "inside");
        assert!(read_in_root(root.path(), "/etc/passwd", 5).is_err());
        assert!(read_in_root(root.path(), "/etc/group", 5).is_err());
    }
}
