//! A directory that nothing leaves: opening by descriptor, with symbolic links resolved inside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2,
    readlinkat, statat, unlinkat,
};
use rustix::io::Errno;

use super::path::{RelativePath, components, shown};
use super::{Limits, UnpackError};

/// Cap on the symbolic links on one way, as in the kernel.
const LINKS_MAX: usize = 40;
/// What a directory has that a layer implies but does not describe.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);
/// Directories that are opened for their entries or as a place for others.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
/// The kernel follows no link: one that is on the way is read, judged and followed here.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

/// An open directory; every path is below it.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// An open directory below a root.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    /// Where it is, when links on the way were followed.
    pub(super) elsewhere: Option<RelativePath>,
}

impl Root {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// As the system has them.
    pub fn open(path: &std::path::Path) -> Result<Self, UnpackError> {
        let fd = openat(CWD, path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let name = path.as_os_str().as_encoded_bytes();
        fd.map(Self)
            .map_err(|errno| UnpackError::system("open root", name, errno))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The directory itself once more.
    pub(super) fn reopen(&self) -> Result<OwnedFd, UnpackError> {
        openat(&self.0, ".", DIRECTORY, Mode::empty())
            .map_err(|errno| UnpackError::system("open", b"", errno))
    }

    /// Opens the directory `path` and makes what is missing of it. Links on the way are followed inside.
    pub(super) fn ensure(
        &self,
        path: &[u8],
        entry: &[u8],
        limits: &Limits,
    ) -> Result<Opened, UnpackError> {
        match confined(self.fd(), path) {
            Ok(fd) => Ok(Opened {
                fd,
                elsewhere: None,
            }),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                let real = self.resolve(path, entry, limits)?;
                Ok(Opened {
                    fd: self.make(real.as_bytes(), entry)?,
                    elsewhere: Some(real),
                })
            }
            Err(errno) => Err(UnpackError::system("open directory of", entry, errno)),
        }
    }

    /// Opens the directory `path`; `None` when there is none.
    pub(super) fn existing(
        &self,
        path: &[u8],
        entry: &[u8],
        limits: &Limits,
    ) -> Result<Option<Opened>, UnpackError> {
        let failed = |errno| UnpackError::system("open directory of", entry, errno);
        match confined(self.fd(), path) {
            Ok(fd) => {
                return Ok(Some(Opened {
                    fd,
                    elsewhere: None,
                }));
            }
            // A link is told as what is no directory, where it is the last component.
            Err(Errno::LOOP | Errno::NOTDIR) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        }
        let real = self.resolve(path, entry, limits)?;
        match confined(self.fd(), real.as_bytes()) {
            Ok(fd) => Ok(Some(Opened {
                fd,
                elsewhere: Some(real),
            })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Makes each missing component; the path has no links left.
    pub(super) fn make(&self, path: &[u8], entry: &[u8]) -> Result<OwnedFd, UnpackError> {
        let failed = |errno| match errno {
            Errno::NOTDIR => UnpackError::NotDirectory(shown(entry)),
            errno => UnpackError::system("make directory of", entry, errno),
        };
        let mut current = self.reopen()?;
        for name in components(path) {
            let made = match mkdirat(&current, name, IMPLIED_MODE) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(failed(errno)),
            };
            current = openat(&current, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                .map_err(failed)?;
            if made {
                // Whatever mask the process has.
                fchmod(&current, IMPLIED_MODE).map_err(failed)?;
            }
        }
        Ok(current)
    }

    /// Resolves the links on a way as inside a `chroot`: none climbs above the root.
    pub(super) fn resolve(
        &self,
        path: &[u8],
        entry: &[u8],
        limits: &Limits,
    ) -> Result<RelativePath, UnpackError> {
        let mut todo: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        todo.reverse();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                // Above the root is the root, as for the kernel in a container.
                done.pop();
                continue;
            }
            done.push(name);
            let here = RelativePath::from_components(&done, limits)?;
            // What is not there, or is no link, stays as it stands.
            let Ok(target) = readlinkat(&self.0, here.as_bytes(), Vec::new()) else {
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(UnpackError::Loop(shown(entry)));
            }
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
        RelativePath::from_components(&done, limits)
    }
}

/// Opens the directory `path` below `base`, no link followed.
pub(super) fn confined(base: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    loop {
        match openat2(base, path, DIRECTORY, Mode::empty(), CONFINED) {
            // A rename elsewhere on the machine made the kernel doubt itself.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// What stands under `name`, a link not followed; `None` when nothing does.
pub(super) fn kind_at(
    directory: impl AsFd,
    name: &[u8],
    entry: &[u8],
) -> Result<Option<FileType>, UnpackError> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(UnpackError::system("look at", entry, errno)),
    }
}

/// The names in a directory and what they are, without `.` and `..`.
pub(super) fn names(
    directory: &OwnedFd,
    entry: &[u8],
) -> Result<Vec<(Vec<u8>, FileType)>, UnpackError> {
    let failed = |errno| UnpackError::system("list", entry, errno);
    let mut names = Vec::new();
    for item in Dir::read_from(directory).map_err(failed)? {
        let item = item.map_err(failed)?;
        let name = item.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match item.file_type() {
            // Not every file system keeps it in its directories.
            FileType::Unknown => kind_at(directory, name, entry)?.unwrap_or(FileType::Unknown),
            kind => kind,
        };
        names.push((name.to_vec(), kind));
    }
    Ok(names)
}

/// Removes whatever stands under `name`, a directory with all that is in it. Links are not followed.
pub(super) fn remove(directory: &OwnedFd, name: &[u8], entry: &[u8]) -> Result<(), UnpackError> {
    let failed = |errno| UnpackError::system("remove", entry, errno);
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let child = child(directory, name, entry)?;
    for (inside, _) in names(&child, entry)? {
        remove(&child, &inside, entry)?;
    }
    unlinkat(directory, name, AtFlags::REMOVEDIR).map_err(failed)
}

/// Opens the directory `name`, which must not be a link.
pub(super) fn child(
    directory: &OwnedFd,
    name: &[u8],
    entry: &[u8],
) -> Result<OwnedFd, UnpackError> {
    openat(directory, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|errno| UnpackError::system("open", entry, errno))
}
