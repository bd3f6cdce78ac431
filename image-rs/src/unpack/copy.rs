//! What a layer was unpacked to, once more: for a layer that an image has twice, or that two images unpack at once.
//!
//! Directories are copied as what they are while they are filled; their owner, mode, attributes and time come from the
//! journal, as with any layer.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, copy_file_range, fchmod, fchown, ftruncate, futimens, lgetxattr, linkat,
    llistxattr, lsetxattr, mkdirat, mknodat, openat, readlinkat, seek, statat, symlinkat,
    utimensat,
};
use rustix::io::{Errno, pread, pwrite};

use super::path::RelativePath;
use super::root::{self, Root};
use super::{Options, Ownership, UnpackError, Usage};

/// How much is copied at once where the kernel does not copy by itself.
const COPY_BYTES: usize = 256 * 1024;
/// Cap on the names of attributes and on the value of one, in bytes: the kernel's own.
const XATTR_BYTES: usize = 64 * 1024;
/// A label that the kernel gives by itself.
const LABEL: &[u8] = b"security.selinux";

/// Copies a layer's directory, which nobody changes meanwhile, into the empty directory `to`.
///
/// # Errors
/// See [`UnpackError`]; what was copied so far stays, for the caller to remove.
pub fn copy_layer(
    from: &Root,
    to: &Root,
    options: &Options,
    usage: &Usage,
) -> Result<(), UnpackError> {
    let mut copy = Copy {
        to,
        options,
        usage,
        linked: HashMap::new(),
        buffer: Vec::new(),
        names_and_value: vec![0; 2 * XATTR_BYTES],
    };
    copy.inside(&from.reopen()?, &to.reopen()?, &RelativePath::default())
}

struct Copy<'a> {
    to: &'a Root,
    options: &'a Options,
    usage: &'a Usage,
    /// Where the first of several names of a file was put.
    linked: HashMap<(u64, u64), RelativePath>,
    buffer: Vec<u8>,
    /// Room for the names of attributes, and for one value.
    names_and_value: Vec<u8>,
}

/// One thing on its way.
struct Item<'a> {
    from: &'a OwnedFd,
    to: &'a OwnedFd,
    name: &'a [u8],
    path: RelativePath,
    stat: Stat,
}

impl Copy<'_> {
    fn inside(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &RelativePath,
    ) -> Result<(), UnpackError> {
        for (name, _) in root::names(from, path.as_bytes())? {
            let path = path.join(&name);
            let stat = statat(from, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| UnpackError::system("look at", path.as_bytes(), errno))?;
            self.usage.add_entry(&self.options.limits)?;
            self.item(&Item {
                from,
                to,
                name: &name,
                path,
                stat,
            })?;
        }
        Ok(())
    }

    fn item(&mut self, item: &Item<'_>) -> Result<(), UnpackError> {
        let mode = Mode::from_raw_mode(item.stat.st_mode);
        match FileType::from_raw_mode(item.stat.st_mode) {
            FileType::Directory => {
                mkdirat(item.to, item.name, mode).map_err(item.failed("make directory"))?;
                let source = root::child(item.from, item.name, item.path.as_bytes())?;
                let target = root::child(item.to, item.name, item.path.as_bytes())?;
                // Whatever mask the process has.
                fchmod(&target, mode).map_err(item.failed("set mode of"))?;
                return self.inside(&source, &target, &item.path);
            }
            _ if self.link(item)? => return Ok(()),
            FileType::RegularFile => return self.file(item, mode),
            FileType::Symlink => {
                let target = readlinkat(item.from, item.name, Vec::new());
                let made = target.and_then(|target| symlinkat(&target, item.to, item.name));
                made.map_err(item.failed("make symbolic link"))?;
            }
            kind => mknodat(item.to, item.name, kind, mode, item.stat.st_rdev)
                .map_err(item.failed("make node"))?,
        }
        self.describe(item, mode)
    }

    /// Whether the file has another name already, and now this one too.
    fn link(&mut self, item: &Item<'_>) -> Result<bool, UnpackError> {
        if item.stat.st_nlink < 2 {
            return Ok(false);
        }
        let file = (item.stat.st_dev, item.stat.st_ino);
        let Some((parent, name)) = self.linked.get(&file).and_then(RelativePath::split) else {
            self.linked.insert(file, item.path.clone());
            return Ok(false);
        };
        let from = root::confined(self.to.fd(), parent);
        from.and_then(|from| linkat(from, name, item.to, item.name, AtFlags::empty()))
            .map_err(item.failed("make hard link"))?;
        Ok(true)
    }

    fn file(&mut self, item: &Item<'_>, mode: Mode) -> Result<(), UnpackError> {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source =
            openat(item.from, item.name, read, Mode::empty()).map_err(item.failed("open"))?;
        let make =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(item.to, item.name, make, Mode::from_raw_mode(0o600))
            .map_err(item.failed("make file"))?;
        let size = u64::try_from(item.stat.st_size).unwrap_or(0);
        let mut position = 0;
        while let Some((start, end)) = data(&source, position).map_err(item.failed("read"))? {
            self.usage
                .add_bytes(end.saturating_sub(start), &self.options.limits)?;
            self.stretch(&source, &target, start, end)
                .map_err(item.failed("write"))?;
            position = end;
        }
        // The last hole.
        ftruncate(&target, size).map_err(item.failed("set size of"))?;
        if self.options.ownership == Ownership::Keep {
            let (uid, gid) = item.owner();
            fchown(&target, uid, gid).map_err(item.failed("set owner of"))?;
        }
        // After the owner: a change of owner takes set-user-ID and capabilities away.
        fchmod(&target, mode).map_err(item.failed("set mode of"))?;
        self.xattrs(item)?;
        futimens(&target, &item.times()).map_err(item.failed("set time of"))
    }

    /// Copies the bytes between two positions.
    fn stretch(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        start: u64,
        end: u64,
    ) -> Result<(), Errno> {
        let (mut from, mut to) = (start, start);
        while from < end {
            let left = usize::try_from(end - from).unwrap_or(usize::MAX);
            match copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
                // That nothing was copied may be all that the kernel says when it cannot.
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => break,
                Err(errno) => return Err(errno),
            }
        }
        self.buffer.resize(COPY_BYTES, 0);
        while from < end {
            let left = usize::try_from(end - from).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
            let count = pread(source, &mut self.buffer[..left], from)?;
            if count == 0 {
                return Err(Errno::IO);
            }
            let mut written = 0;
            while written < count {
                written += pwrite(target, &self.buffer[written..count], from + written as u64)?;
            }
            from += count as u64;
        }
        Ok(())
    }

    /// What cannot be opened: links and nodes.
    fn describe(&mut self, item: &Item<'_>, mode: Mode) -> Result<(), UnpackError> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.options.ownership == Ownership::Keep {
            let (uid, gid) = item.owner();
            chownat(item.to, item.name, uid, gid, nofollow).map_err(item.failed("set owner of"))?;
        }
        if !FileType::from_raw_mode(item.stat.st_mode).is_symlink() {
            chmodat(item.to, item.name, mode, AtFlags::empty())
                .map_err(item.failed("set mode of"))?;
        }
        self.xattrs(item)?;
        utimensat(item.to, item.name, &item.times(), nofollow).map_err(item.failed("set time of"))
    }

    /// Copies the attributes; there is no call that takes a directory, so its descriptor's own path stands in.
    fn xattrs(&mut self, item: &Item<'_>) -> Result<(), UnpackError> {
        let failed = item.failed("copy extended attributes of");
        let path = |directory: &OwnedFd| {
            let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
            path.extend_from_slice(item.name);
            path
        };
        let (from, to) = (path(item.from), path(item.to));
        let (list, value) = self.names_and_value.split_at_mut(XATTR_BYTES);
        let length = match llistxattr(from.as_slice(), &mut *list) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
            listed => listed.map_err(&failed)?,
        };
        let names = list[..length].split(|byte| *byte == 0);
        for name in names.filter(|name| !name.is_empty() && *name != LABEL) {
            let size = lgetxattr(from.as_slice(), name, &mut *value).map_err(&failed)?;
            lsetxattr(to.as_slice(), name, &value[..size], XattrFlags::empty()).map_err(&failed)?;
        }
        Ok(())
    }
}

impl Item<'_> {
    fn failed(&self, step: &'static str) -> impl Fn(Errno) -> UnpackError {
        move |errno| UnpackError::system(step, self.path.as_bytes(), errno)
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        let Stat { st_uid, st_gid, .. } = self.stat;
        (Some(Uid::from_raw(st_uid)), Some(Gid::from_raw(st_gid)))
    }

    fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.stat.st_mtime,
            tv_nsec: i64::try_from(self.stat.st_mtime_nsec).unwrap_or(0),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

/// The next stretch of a file that is no hole; `None` behind the last.
fn data(file: &OwnedFd, position: u64) -> Result<Option<(u64, u64)>, Errno> {
    match seek(file, SeekFrom::Data(position)) {
        Ok(start) => Ok(Some((start, seek(file, SeekFrom::Hole(start))?))),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}
