//! What an entry is besides its content: owner, mode, times, extended attributes.
//!
//! What a new file already is, is not set again: a probe tells whose new files are, and which bits the process's mask
//! takes away. That saves two system calls for most entries of most images.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, fstat, futimens, lsetxattr, openat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::journal::Directory;
use super::path::shown;
use super::root::Root;
use super::{Options, Ownership, Trusted, UnpackError};

/// A label of the machine that built the image, and the marks of the overlay driver: neither is the workload's.
const FOREIGN_XATTRS: [&[u8]; 3] = [b"security.selinux", b"trusted.overlay.", b"user.overlay."];
/// Bits that making a file may set as the archive has them; the others are set behind the owner.
const PLAIN_BITS: u32 = 0o777;

/// What a new file is that nobody has touched.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fresh {
    uid: u32,
    gid: u32,
    bits: u32,
}

impl Fresh {
    /// Makes a file in the empty root, looks at it, and removes it.
    pub(super) fn probe(root: &Root) -> Result<Self, UnpackError> {
        const NAME: &str = "probe";
        let failed = |errno| UnpackError::system("make file", NAME.as_bytes(), errno);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(PLAIN_BITS as RawMode);
        let file = openat(root.fd(), NAME, flags, mode).map_err(failed)?;
        let stat = fstat(&file).map_err(failed)?;
        unlinkat(root.fd(), NAME, AtFlags::empty()).map_err(failed)?;
        Ok(Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            bits: stat.st_mode & PLAIN_BITS,
        })
    }

    /// What a new file is to be made with.
    pub(super) fn mode(mode: u32) -> Mode {
        Mode::from_raw_mode(mode & PLAIN_BITS)
    }

    fn has_owner(self, uid: u32, gid: u32) -> bool {
        (self.uid, self.gid) == (uid, gid)
    }

    fn has_mode(self, mode: u32) -> bool {
        mode & !self.bits == 0
    }

    /// All that a new file still lacks. Its mode was asked for when it was made.
    pub(super) fn file(
        self,
        file: &OwnedFd,
        entry: &Entry,
        options: &Options,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let chown = options.ownership == Ownership::Keep && !self.has_owner(entry.uid, entry.gid);
        if chown {
            own(file.as_fd(), entry.uid, entry.gid, path)?;
        }
        // After the owner: a change of owner takes set-user-ID and capabilities away.
        if !self.has_mode(entry.mode) {
            fchmod(file, Mode::from_raw_mode(entry.mode))
                .map_err(|errno| UnpackError::system("set mode of", path, errno))?;
        }
        set_xattrs(&entry.xattrs, options, path, |name, value| {
            fsetxattr(file, name, value, XattrFlags::empty())
        })?;
        futimens(file, &times(entry.mtime))
            .map_err(|errno| UnpackError::system("set time of", path, errno))
    }

    /// The same for what cannot be opened: links and nodes. A link has no mode.
    pub(super) fn special(
        self,
        directory: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        options: &Options,
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let link = matches!(entry.kind, Kind::Symlink(_));
        if options.ownership == Ownership::Keep && !self.has_owner(entry.uid, entry.gid) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(
                directory,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|errno| UnpackError::system("set owner of", path, errno))?;
        }
        if !link && !self.has_mode(entry.mode) {
            // It is a node that we made, no link, so nothing is followed.
            let mode = Mode::from_raw_mode(entry.mode);
            chmodat(directory, name, mode, AtFlags::empty())
                .map_err(|errno| UnpackError::system("set mode of", path, errno))?;
        }
        refuse_user_xattrs(&entry.xattrs, path)?;
        set_xattrs(&entry.xattrs, options, path, |key, value| {
            // There is no call that takes a directory: its descriptor's own path stands in.
            let mut whole = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            whole.extend_from_slice(name);
            lsetxattr(whole, key, value, XattrFlags::empty())
        })?;
        utimensat(
            directory,
            name,
            &times(entry.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|errno| UnpackError::system("set time of", path, errno))
    }
}

/// Gives a directory all that its description says; nothing is put into it afterwards.
pub(super) fn finish_directory(
    fd: &OwnedFd,
    directory: &Directory,
    options: &Options,
    path: &[u8],
) -> Result<(), UnpackError> {
    if options.ownership == Ownership::Keep {
        own(fd.as_fd(), directory.uid, directory.gid, path)?;
    }
    fchmod(fd, Mode::from_raw_mode(directory.mode))
        .map_err(|errno| UnpackError::system("set mode of", path, errno))?;
    set_xattrs(&directory.xattrs, options, path, |name, value| {
        fsetxattr(fd, name, value, XattrFlags::empty())
    })?;
    futimens(fd, &times(directory.mtime))
        .map_err(|errno| UnpackError::system("set time of", path, errno))
}

fn own(fd: BorrowedFd<'_>, uid: u32, gid: u32, path: &[u8]) -> Result<(), UnpackError> {
    fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|errno| UnpackError::system("set owner of", path, errno))
}

/// Sets each attribute that is the workload's. A lost file capability or access list is a wrong root file system, so
/// a refusal is an error.
fn set_xattrs(
    xattrs: &[(Vec<u8>, Vec<u8>)],
    options: &Options,
    path: &[u8],
    set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
) -> Result<(), UnpackError> {
    for (name, value) in xattrs {
        let for_root = options.ownership == Ownership::Caller && !name.starts_with(b"user.");
        if is_foreign(name) || for_root {
            continue;
        }
        if options.trusted == Trusted::Refuse && name.starts_with(b"trusted.") {
            return Err(UnpackError::Trusted {
                entry: shown(path),
                name: shown(name),
            });
        }
        set(name, value).map_err(|errno| match errno {
            Errno::DQUOT => UnpackError::NoSpace(shown(path)),
            // A file system says this too when an attribute does not fit into what it has for them.
            errno => UnpackError::Xattr {
                entry: shown(path),
                name: shown(name),
                source: errno.into(),
            },
        })?;
    }
    Ok(())
}

/// No file system would take them, so the image is at fault.
fn refuse_user_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)], path: &[u8]) -> Result<(), UnpackError> {
    let mut names = xattrs.iter().map(|(name, _)| name.as_slice());
    match names.find(|name| name.starts_with(b"user.") && !is_foreign(name)) {
        None => Ok(()),
        Some(name) => Err(UnpackError::UserXattr {
            entry: shown(path),
            name: shown(name),
        }),
    }
}

fn is_foreign(name: &[u8]) -> bool {
    FOREIGN_XATTRS.iter().any(|prefix| name.starts_with(prefix))
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
