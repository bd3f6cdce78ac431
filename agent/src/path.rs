//! Where things lie in the guest, and the check that a path which a request names lies there.
//!
//! The shared directory's content is the host's, symbolic links too. So a path is resolved first
//! and compared afterwards.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use agent_api::{ErrorCode, GuestError, limit};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, linkat, mkdirat, openat, openat2};
use rustix::io::Errno;

use crate::fault::{OrFail, invalid};
use crate::users::Owner;

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
    look_again(&lexical(phase, path)?);
    let resolved = fs::canonicalize(path).or_fail(ErrorCode::InvalidArgument, phase, path)?;
    if !resolved.starts_with(BASE) {
        return Err(invalid(phase, format!("{path} leads out of {BASE}")));
    }
    Ok(resolved)
}

/// Makes the kernel ask the host again what is behind a path that the host shares.
///
/// The kernel remembers an answer for a second. Where the host has put something else there since then (a container
/// that is made again under its id), a mount on the old answer is silently undone when that second is over.
/// A name that is to be made is always looked up afresh; a link to a directory never is made.
fn look_again(path: &Path) {
    let Ok(names) = path.strip_prefix(SHARED) else {
        return;
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |at: BorrowedFd<'_>, name: &Path| {
        openat2(at, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
    };
    let Ok(mut parent) = open(CWD, Path::new(SHARED)) else {
        return;
    };
    for name in names {
        let name = Path::new(name);
        if linkat(CWD, "/", &parent, name, AtFlags::empty()) != Err(Errno::EXIST) {
            return;
        }
        // What is no directory has nothing below it; whoever wants the path finds out what it is.
        let Ok(next) = open(parent.as_fd(), name) else {
            return;
        };
        parent = next;
    }
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

/// Makes a directory of a container's root with those above it where they are missing (the `owner`'s, 0755, as runc
/// makes a working directory). No link leads out.
///
/// # Errors
///
/// Those of openat2(2) and mkdirat(2).
pub fn make_in_root(root: &Path, path: &Path, owner: Owner) -> io::Result<()> {
    make_directory(&open_root(root)?, path, owner)
}

/// Makes an empty file of a container's root, and what is above it, where something is missing.
///
/// # Errors
///
/// Those of openat2(2) and mkdirat(2).
pub fn make_file_in_root(root: &Path, path: &Path, owner: Owner) -> io::Result<()> {
    let root = open_root(root)?;
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if in_root(&root, path, OFlags::PATH | OFlags::CLOEXEC).is_ok() {
        return Ok(());
    }
    make_directory(&root, above, owner)?;
    let above = in_root(&root, above, OFlags::PATH | OFlags::CLOEXEC)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let make = || openat(&above, name, flags, Mode::from_raw_mode(0o644)).map(drop);
    owner.makes(above.as_fd(), name, make)
}

fn make_directory(root: &OwnedFd, path: &Path, owner: Owner) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut way = PathBuf::from("/");
    for component in path.components() {
        let parent = in_root(root, &way, flags)?;
        way.push(component);
        match (in_root(root, &way, flags), component) {
            (Err(Errno::NOENT), Component::Normal(name)) => {
                let make = || mkdirat(&parent, name, Mode::from_raw_mode(0o755));
                owner.makes(parent.as_fd(), name, make)?;
            }
            (opened, _) => opened.map(drop)?,
        }
    }
    Ok(())
}

fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, root, flags, Mode::empty(), ResolveFlags::empty())
}

fn in_root(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), resolve)
}

/// Reads a file of a container's root as the container itself would see it: no link leads out.
///
/// # Errors
///
/// Those of openat2(2) and read(2), or the file has more than `cap` bytes.
pub fn read_in_root(root: &Path, path: &str, cap: u64) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = in_root(&open_root(root)?, Path::new(path), flags)?;
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

    #[test]
    fn a_directory_is_made_in_the_root_whatever_links_are_on_its_way() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("../../../inside", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("out")).unwrap();
        fs::create_dir(root.path().join("inside")).unwrap();
        make_in_root(root.path(), Path::new("/link/a/b"), Owner::default()).unwrap();
        assert!(root.path().join("inside/a/b").is_dir());
        make_in_root(root.path(), Path::new("/link/a/b"), Owner::default()).unwrap();
        make_in_root(root.path(), Path::new("/"), Owner::default()).unwrap();
        // What the link names is not there, inside.
        assert!(make_in_root(root.path(), Path::new("/out/x"), Owner::default()).is_err());
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
        fs::write(root.path().join("file"), "").unwrap();
        assert!(make_in_root(root.path(), Path::new("/file/x"), Owner::default()).is_err());
    }

    #[test]
    fn a_mapped_root_makes_what_is_below_a_private_directory_of_a_user() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: to be another takes root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("home/app")).unwrap();
        fs::set_permissions(at("home/app"), fs::Permissions::from_mode(0o700)).unwrap();
        chown(at("home/app"), Some(1000), Some(1000)).unwrap();
        let owner = Owner { uid: 7, gid: 8 };
        make_in_root(root.path(), Path::new("/home/app/src/a"), owner).unwrap();
        make_file_in_root(root.path(), Path::new("/home/app/etc/file"), owner).unwrap();
        make_file_in_root(root.path(), Path::new("/home/app/etc/file"), owner).unwrap();
        for made in ["src", "src/a", "etc", "etc/file"] {
            let made = fs::metadata(at("home/app").join(made)).unwrap();
            assert_eq!((made.uid(), made.gid()), (7, 8));
        }
        assert_eq!(fs::metadata(at("home/app")).unwrap().uid(), 1000);
    }
}
