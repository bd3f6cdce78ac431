//! A directory that nothing leaves: opening by descriptor, with symbolic links resolved inside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::UnpackError;
use super::path::{RelativePath, shown};

/// Cap on the symbolic links on one way, as in the kernel.
const LINKS_MAX: usize = 40;
/// What a directory has that a layer implies but does not describe.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);
/// Directories that are opened for their entries or as a place for others.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// An open directory; every path is below it.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// As the system has them.
    pub fn open(path: &std::path::Path) -> Result<Self, UnpackError> {
        let fd = openat(CWD, path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        fd.map(Self)
            .map_err(|errno| UnpackError::system("open root", &path.to_string_lossy(), errno))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens the directory `path` and makes what is missing of it. Links on the way are followed inside.
    pub(super) fn ensure(&self, path: &RelativePath, entry: &str) -> Result<OwnedFd, UnpackError> {
        match self.beneath(path) {
            Ok(fd) => Ok(fd),
            // A link that is absolute or dangling: resolved by hand, which also tells an escape.
            Err(Errno::NOENT | Errno::XDEV | Errno::LOOP) => {
                self.make(&self.resolve(path, entry)?, entry)
            }
            Err(errno) => Err(UnpackError::system("open directory of", entry, errno)),
        }
    }

    /// Opens the directory `path`; `None` when there is none.
    pub(super) fn existing(
        &self,
        path: &RelativePath,
        entry: &str,
    ) -> Result<Option<OwnedFd>, UnpackError> {
        match self.beneath(path) {
            Ok(fd) => return Ok(Some(fd)),
            Err(Errno::XDEV | Errno::LOOP) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(UnpackError::system("open directory of", entry, errno)),
        }
        match self.beneath(&self.resolve(path, entry)?) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(UnpackError::system("open directory of", entry, errno)),
        }
    }

    fn beneath(&self, path: &RelativePath) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.0, path.to_bytes(), DIRECTORY, Mode::empty(), resolve) {
                // A rename elsewhere on the machine made the kernel doubt a "..".
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Makes each missing component; the path has no links left.
    fn make(&self, path: &RelativePath, entry: &str) -> Result<OwnedFd, UnpackError> {
        let failed = |errno| UnpackError::system("make directory of", entry, errno);
        let mut current = openat(&self.0, ".", DIRECTORY, Mode::empty()).map_err(failed)?;
        for name in path.components() {
            match mkdirat(&current, name.as_slice(), IMPLIED_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            current = openat(
                &current,
                name.as_slice(),
                DIRECTORY | OFlags::NOFOLLOW,
                Mode::empty(),
            )
            .map_err(failed)?;
        }
        Ok(current)
    }

    /// Resolves the links on a way as inside a `chroot`, but refuses one which would climb above the root.
    fn resolve(&self, path: &RelativePath, entry: &str) -> Result<RelativePath, UnpackError> {
        let mut todo: Vec<Vec<u8>> = path.components().iter().rev().cloned().collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut last_link = Vec::new();
        while let Some(name) = todo.pop() {
            if name == b".." {
                if done.pop().is_none() {
                    return Err(UnpackError::Escape {
                        entry: entry.to_owned(),
                        link: shown(&last_link),
                    });
                }
                continue;
            }
            done.push(name);
            let here = RelativePath::from_components(done.clone());
            // What is not there, or is no link, stays as it stands.
            let Ok(target) = readlinkat(&self.0, here.to_bytes(), Vec::new()) else {
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(UnpackError::Loop(entry.to_owned()));
            }
            last_link = here.to_bytes();
            done.pop();
            let target = target.into_bytes();
            if target.starts_with(b"/") {
                done.clear();
            }
            let parts = target
                .split(|byte| *byte == b'/')
                .filter(|part| !part.is_empty() && *part != b".");
            todo.extend(parts.rev().map(<[u8]>::to_vec));
        }
        Ok(RelativePath::from_components(done))
    }
}

/// What stands under `name`, a link not followed; `None` when nothing does.
pub(super) fn kind_at(
    directory: &OwnedFd,
    name: &[u8],
    entry: &str,
) -> Result<Option<FileType>, UnpackError> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(UnpackError::system("look at", entry, errno)),
    }
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(directory: &OwnedFd, entry: &str) -> Result<Vec<Vec<u8>>, UnpackError> {
    let failed = |errno| UnpackError::system("list", entry, errno);
    let mut names = Vec::new();
    for item in Dir::read_from(directory).map_err(failed)? {
        let name = item.map_err(failed)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes whatever stands under `name`, a directory with all that is in it. Links are not followed.
pub(super) fn remove(directory: &OwnedFd, name: &[u8], entry: &str) -> Result<(), UnpackError> {
    let failed = |errno| UnpackError::system("remove", entry, errno);
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let child =
        openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?;
    for inside in names(&child, entry)? {
        remove(&child, &inside, entry)?;
    }
    unlinkat(directory, name, AtFlags::REMOVEDIR).map_err(failed)
}

/// Opens the directory `name`, which must not be a link.
pub(super) fn child(directory: &OwnedFd, name: &[u8], entry: &str) -> Result<OwnedFd, UnpackError> {
    openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|errno| UnpackError::system("open", entry, errno))
}
