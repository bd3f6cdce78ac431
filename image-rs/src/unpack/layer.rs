//! One layer into a directory of its own.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::Errno;

use super::archive::{Entry, Kind};
use super::journal::{Directory, Journal};
use super::path::{RelativePath, shown};
use super::root::{self, Root};
use super::{Archive, Devices, Options, Ownership, UnpackError, Usage};

/// How much is copied at once.
const COPY_BYTES: usize = 256 * 1024;
const WHITEOUT: &[u8] = b".wh.";
/// What aufs keeps to itself begins with this; the opaque mark is one of them.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// A label of the machine that built the image, and the marks of the overlay driver: neither is the workload's.
const FOREIGN_XATTRS: [&[u8]; 3] = [b"security.selinux", b"trusted.overlay.", b"user.overlay."];

/// Unpacks an archive into the empty directory `root`, and leaves the rest to the merge.
///
/// # Errors
/// See [`UnpackError`]; what was unpacked so far stays, for the caller to remove.
pub fn unpack<R: Read>(
    archive: &mut Archive<R>,
    root: &Root,
    options: &Options,
    usage: &Usage,
) -> Result<Journal, UnpackError> {
    let mut layer = Layer {
        root,
        options,
        usage,
        journal: Journal::default(),
        parent: None,
        buffer: vec![0; COPY_BYTES],
    };
    while let Some(entry) = archive.next_entry()? {
        usage.add_entry(&options.limits)?;
        layer.place(entry, archive)?;
    }
    Ok(layer.journal)
}

struct Layer<'a> {
    root: &'a Root,
    options: &'a Options,
    usage: &'a Usage,
    journal: Journal,
    /// The directory of the entry before: the next one is mostly in it as well.
    parent: Option<(RelativePath, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Layer<'_> {
    fn place<R: Read>(
        &mut self,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let path = RelativePath::read(&entry.name, &self.options.limits)?;
        let Some((parent, name)) = path.split() else {
            return self.describe_root(path, entry);
        };
        let shown = path.to_string();
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&parent, name, &shown);
        }
        let directory = self.open_parent(&parent, &shown)?;
        let result = self.place_at(&directory, name, &path, &shown, entry, archive);
        self.parent.get_or_insert((parent, directory));
        result
    }

    fn place_at<R: Read>(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &RelativePath,
        shown: &str,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        if let Kind::Directory = entry.kind {
            return self.directory(directory, name, path, shown, entry);
        }
        self.clear(directory, name, path, shown)?;
        match &entry.kind {
            Kind::File { size } => self.file(directory, name, shown, &entry, *size, archive),
            Kind::Symlink(target) => {
                let made = symlinkat(target.as_slice(), directory, name);
                made.map_err(|errno| UnpackError::system("make symbolic link", shown, errno))?;
                self.describe_special(directory, name, shown, &entry)
            }
            Kind::HardLink(target) => self.hard_link(directory, name, path, shown, target),
            Kind::Fifo => self.node(directory, name, shown, &entry, (FileType::Fifo, 0, 0)),
            Kind::CharDevice { major, minor } => self.node(
                directory,
                name,
                shown,
                &entry,
                (FileType::CharacterDevice, *major, *minor),
            ),
            Kind::BlockDevice { major, minor } => self.node(
                directory,
                name,
                shown,
                &entry,
                (FileType::BlockDevice, *major, *minor),
            ),
            Kind::Directory => Ok(()),
        }
    }

    fn open_parent(&mut self, parent: &RelativePath, shown: &str) -> Result<OwnedFd, UnpackError> {
        match self.parent.take() {
            Some((path, fd)) if path == *parent => Ok(fd),
            _ => self.root.ensure(parent, shown),
        }
    }

    /// `.wh.name` hides `name` of the lower layers; the opaque mark hides all of a directory's lower content.
    fn whiteout(
        &mut self,
        parent: &RelativePath,
        name: &[u8],
        shown: &str,
    ) -> Result<(), UnpackError> {
        match name {
            OPAQUE => self.journal.opaques.push(parent.clone()),
            aufs if aufs.starts_with(AUFS) => {}
            b".wh." | b".wh.." | b".wh..." => return Err(UnpackError::Name(shown.to_owned())),
            name => self
                .journal
                .whiteouts
                .push(parent.join(&name[WHITEOUT.len()..])),
        }
        Ok(())
    }

    fn describe_root(&mut self, path: RelativePath, entry: Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(UnpackError::Name(shown(&entry.name)));
        }
        let description = describe(entry);
        own_directory(self.root.fd(), &description, self.options, ".")?;
        self.journal.directories.insert(path, description);
        Ok(())
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &RelativePath,
        shown: &str,
        entry: Entry,
    ) -> Result<(), UnpackError> {
        if root::kind_at(parent, name, shown)? != Some(FileType::Directory) {
            self.clear(parent, name, path, shown)?;
            // Open to us until the tree stands; then it gets its own mode.
            let made = mkdirat(parent, name, Mode::from_raw_mode(0o700));
            made.map_err(|errno| UnpackError::system("make directory", shown, errno))?;
        }
        let description = describe(entry);
        own_directory(
            root::child(parent, name, shown)?.as_fd(),
            &description,
            self.options,
            shown,
        )?;
        self.journal.directories.insert(path.clone(), description);
        Ok(())
    }

    /// An entry takes the place of one before it in the same layer.
    fn clear(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &RelativePath,
        shown: &str,
    ) -> Result<(), UnpackError> {
        self.journal.links.retain(|(link, _)| link != path);
        match root::kind_at(directory, name, shown)? {
            None => return Ok(()),
            Some(FileType::Directory) => {
                self.journal
                    .directories
                    .retain(|known, _| !known.starts_with(path));
                self.journal
                    .links
                    .retain(|(link, _)| !link.starts_with(path));
                self.parent = None;
            }
            Some(_) => {}
        }
        root::remove(directory, name, shown)
    }

    fn file<R: Read>(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        shown: &str,
        entry: &Entry,
        size: u64,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        self.usage.add_bytes(size, &self.options.limits)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(directory, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| UnpackError::system("make file", shown, errno))?;
        loop {
            let count = archive.read_content(&mut self.buffer)?;
            if count == 0 {
                break;
            }
            let mut rest = &self.buffer[..count];
            while !rest.is_empty() {
                match rustix::io::write(&file, rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(UnpackError::system("write", shown, errno)),
                }
            }
        }
        if self.options.ownership == Ownership::Keep {
            let owned = fchown(
                &file,
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
            );
            owned.map_err(|errno| UnpackError::system("set owner of", shown, errno))?;
        }
        // After the owner: a change of owner takes set-user-ID and capabilities away.
        fchmod(&file, Mode::from_raw_mode(entry.mode))
            .map_err(|errno| UnpackError::system("set mode of", shown, errno))?;
        set_xattrs(file.as_fd(), &entry.xattrs, self.options, shown)?;
        futimens(&file, &times(entry.mtime))
            .map_err(|errno| UnpackError::system("set time of", shown, errno))
    }

    fn hard_link(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &RelativePath,
        shown: &str,
        target: &[u8],
    ) -> Result<(), UnpackError> {
        let target = RelativePath::read(target, &self.options.limits)?;
        let missing = || UnpackError::LinkTarget {
            entry: shown.to_owned(),
            target: target.to_string(),
        };
        let (target_parent, target_name) = target.split().ok_or_else(missing)?;
        if let Some(from) = self.root.existing(&target_parent, shown)? {
            match linkat(&from, target_name, directory, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(UnpackError::system("make hard link", shown, errno)),
            }
        }
        self.journal.links.push((path.clone(), target));
        Ok(())
    }

    fn node(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        shown: &str,
        entry: &Entry,
        (kind, major, minor): (FileType, u32, u32),
    ) -> Result<(), UnpackError> {
        if kind != FileType::Fifo && self.options.devices == Devices::Refuse {
            return Err(UnpackError::Device(shown.to_owned()));
        }
        mknodat(
            directory,
            name,
            kind,
            Mode::from_raw_mode(entry.mode),
            makedev(major, minor),
        )
        .map_err(|errno| UnpackError::system("make node", shown, errno))?;
        self.describe_special(directory, name, shown, entry)?;
        // The mode of a new node has the process's mask taken off; it is no link, so this follows none.
        rustix::fs::chmodat(
            directory,
            name,
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )
        .map_err(|errno| UnpackError::system("set mode of", shown, errno))
    }

    /// Owner and time of what cannot be opened. A symbolic link has no mode, and its attributes are no image's.
    fn describe_special(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        shown: &str,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        if self.options.ownership == Ownership::Keep {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(
                directory,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|errno| UnpackError::system("set owner of", shown, errno))?;
        }
        utimensat(
            directory,
            name,
            &times(entry.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|errno| UnpackError::system("set time of", shown, errno))
    }
}

fn describe(entry: Entry) -> Directory {
    Directory {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs,
    }
}

/// Gives a directory its owner and attributes.
pub(super) fn own_directory(
    fd: rustix::fd::BorrowedFd<'_>,
    directory: &Directory,
    options: &Options,
    shown: &str,
) -> Result<(), UnpackError> {
    if options.ownership == Ownership::Keep {
        let owned = fchown(
            fd,
            Some(Uid::from_raw(directory.uid)),
            Some(Gid::from_raw(directory.gid)),
        );
        owned.map_err(|errno| UnpackError::system("set owner of", shown, errno))?;
    }
    set_xattrs(fd, &directory.xattrs, options, shown)
}

fn set_xattrs(
    fd: rustix::fd::BorrowedFd<'_>,
    xattrs: &[(Vec<u8>, Vec<u8>)],
    options: &Options,
    shown: &str,
) -> Result<(), UnpackError> {
    for (name, value) in xattrs {
        let foreign = FOREIGN_XATTRS.iter().any(|prefix| name.starts_with(prefix));
        let for_root = options.ownership == Ownership::Caller && !name.starts_with(b"user.");
        if foreign || for_root {
            continue;
        }
        // A lost file capability or access list is a wrong root file system, so a refusal is an error.
        fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())
            .map_err(|errno| UnpackError::system("set extended attribute of", shown, errno))?;
    }
    Ok(())
}

pub(super) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
