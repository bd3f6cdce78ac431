//! A part of a volume that is the pod's: `subPath` of an emptyDir.
//!
//! Containers that run may write to the volume while another is made, and a link that one of them plants must
//! not lead its neighbour's mount out of it. So the way is walked from an open directory, no link is followed,
//! and what is mounted is the directory that was opened, whatever its name leads to by then.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

use agent_api::{ErrorCode, GuestError};
use rustix::fs::{CWD, Mode, OFlags, fchmod, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use super::PHASE;
use crate::fault::{OrFail, invalid};

/// Directories of a part's path.
const MAX_DEPTH: usize = 64;
/// The option that names it.
const OPTION: &str = "path=";

/// Mounts a part of the volume at `whole`, made where it is missing.
pub(super) fn mount(whole: &Path, options: &[String], point: &Path) -> Result<(), GuestError> {
    let named = match options {
        [option] => option.strip_prefix(OPTION),
        _ => None,
    };
    let part = named.ok_or_else(|| invalid(PHASE, "a part has the one option path=<its path>"))?;
    let directory = open(whole, Path::new(part))?;
    let opened = format!("/proc/self/fd/{}", directory.as_raw_fd());
    mount_bind(opened, point).or_internal(PHASE, format!("mount a part on {}", point.display()))
}

fn open(whole: &Path, part: &Path) -> Result<OwnedFd, GuestError> {
    let names: Option<Vec<&OsStr>> = part
        .components()
        .map(|component| match component {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let names = names.filter(|names| (1..=MAX_DEPTH).contains(&names.len()));
    let names = names.ok_or_else(|| {
        invalid(
            PHASE,
            "the path of a part is not a relative one of plain names",
        )
    })?;
    let walk = || -> Result<OwnedFd, Errno> {
        let mut directory = step(&CWD, whole.as_os_str())?;
        let mode = Mode::from_raw_mode(fstat(&directory)?.st_mode & 0o7777);
        for name in names {
            let made = mkdirat(&directory, name, Mode::RWXU);
            directory = step(&directory, name)?;
            match made {
                Ok(()) => fchmod(&directory, mode)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(directory)
    };
    let what = format!("subPath {} of {}", part.display(), whole.display());
    walk().or_fail(ErrorCode::InvalidArgument, PHASE, what)
}

fn step(at: &impl std::os::fd::AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_missing_is_made_as_open_as_the_volume() {
        let volume = tempfile::tempdir().unwrap();
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o2775)).unwrap();
        open(volume.path(), Path::new("a/b")).unwrap();
        let mode = fs::metadata(volume.path().join("a/b"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o7777, 0o2775);
        open(volume.path(), Path::new("a/b")).unwrap();
    }

    #[test]
    fn no_link_is_followed_and_no_way_leads_up() {
        let (volume, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), volume.path().join("link")).unwrap();
        fs::write(volume.path().join("file"), "").unwrap();
        for part in ["link", "link/x", "../x", "/x", "", ".", "file/x"] {
            assert!(open(volume.path(), Path::new(part)).is_err(), "{part:?}");
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
