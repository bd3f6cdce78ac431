//! One layer into a directory of its own.

mod file;

use std::io::BufRead;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, linkat, makedev, mkdirat, mknodat, symlinkat};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::journal::{Directory, Journal, cost};
use super::meta::Fresh;
use super::near::Near;
use super::path::{RelativePath, components, shown};
use super::root::{self, Root};
use super::{Archive, Devices, Options, UnpackError, Usage};

const WHITEOUT: &[u8] = b".wh.";
/// What aufs keeps to itself begins with this; the opaque mark is one of them.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks an archive into the empty directory `root`, and leaves the rest to the merge.
///
/// # Errors
/// See [`UnpackError`]; what was unpacked so far stays, for the caller to remove.
pub fn unpack<R: BufRead>(
    archive: &mut Archive<R>,
    root: &Root,
    options: &Options,
    usage: &Usage,
) -> Result<Journal, UnpackError> {
    let mut layer = Layer {
        root,
        options,
        usage,
        fresh: Fresh::probe(root)?,
        journal: Journal::default(),
        near: Near::new(root, &options.limits),
        removals: 0,
    };
    while let Some(entry) = archive.next_entry(&options.limits)? {
        usage.add_entry(&options.limits)?;
        if entry.header_bytes > 0 {
            usage.add_bytes(entry.header_bytes, &options.limits)?;
        }
        layer.place(entry, archive)?;
    }
    Ok(layer.journal)
}

struct Layer<'a> {
    root: &'a Root,
    options: &'a Options,
    usage: &'a Usage,
    fresh: Fresh,
    journal: Journal,
    near: Near<'a>,
    /// How often what an entry before had left was taken away.
    removals: u64,
}

/// Where an entry goes.
struct Spot<'a> {
    directory: &'a OwnedFd,
    name: &'a [u8],
    /// The whole path, links followed.
    path: &'a RelativePath,
}

impl Layer<'_> {
    fn place<R: BufRead>(
        &mut self,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let path = RelativePath::read(&entry.name, &self.options.limits)?;
        let Some((parent, name)) = path.split() else {
            return self.describe_root(path, entry);
        };
        if let Some(special) = components(parent).find(|part| part.starts_with(WHITEOUT)) {
            // What aufs keeps for its own hard links is no part of the image; all else is nonsense.
            return match special.starts_with(AUFS) {
                true => Ok(()),
                false => Err(UnpackError::Whiteout(shown(&entry.name))),
            };
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&path);
        }
        let parent = self.near.open(parent, path.as_bytes())?;
        let elsewhere = match &parent.elsewhere {
            Some(real) => Some(real.join_checked(name, &self.options.limits)?),
            None => None,
        };
        let spot = Spot {
            directory: &parent.fd,
            name,
            path: elsewhere.as_ref().unwrap_or(&path),
        };
        let removals = self.removals;
        let opened = self.place_at(&spot, entry, archive)?;
        if let Some(real) = parent.elsewhere {
            if self.removals == removals {
                self.near.keep_linked(parent.named, real, parent.fd);
            }
        } else {
            // Back to where it was taken from, and a new directory on top: what comes next is mostly in it.
            self.near.keep(parent.named, parent.fd);
            if let Some(opened) = opened {
                self.near.keep(path, opened);
            }
        }
        Ok(())
    }

    /// Makes the entry; a directory is also opened.
    fn place_at<R: BufRead>(
        &mut self,
        spot: &Spot<'_>,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<Option<OwnedFd>, UnpackError> {
        match &entry.kind {
            Kind::Directory => return self.directory(spot, entry).map(Some),
            Kind::File { size } => self.file(spot, &entry, *size, None, archive)?,
            Kind::Sparse { size, map } => self.file(spot, &entry, *size, Some(map), archive)?,
            Kind::HardLink(target) => self.hard_link(spot, target)?,
            Kind::Symlink(target) => {
                self.check_target(target, spot)?;
                self.make(spot, "make symbolic link", |spot| {
                    symlinkat(target.as_slice(), spot.directory, spot.name)
                })?;
                self.describe_special(spot, &entry)?;
            }
            Kind::Fifo => self.node(spot, &entry, (FileType::Fifo, 0, 0))?,
            Kind::CharDevice { major, minor } => {
                self.node(spot, &entry, (FileType::CharacterDevice, *major, *minor))?;
            }
            Kind::BlockDevice { major, minor } => {
                self.node(spot, &entry, (FileType::BlockDevice, *major, *minor))?;
            }
        }
        Ok(None)
    }

    /// `.wh.name` hides `name` of the lower layers; the opaque mark hides all of a directory's lower content.
    fn whiteout(&mut self, path: &RelativePath) -> Result<(), UnpackError> {
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        let parent = RelativePath::below(parent);
        let (hidden, list) = match name {
            OPAQUE => (parent, &mut self.journal.opaques),
            aufs if aufs.starts_with(AUFS) => return Ok(()),
            b".wh." | b".wh.." | b".wh..." => {
                return Err(UnpackError::Whiteout(shown(path.as_bytes())));
            }
            name => (
                parent.join(&name[WHITEOUT.len()..]),
                &mut self.journal.whiteouts,
            ),
        };
        self.usage
            .add_journal(cost(&hidden, &[]), &self.options.limits)?;
        list.push(hidden);
        Ok(())
    }

    fn describe_root(&mut self, path: RelativePath, entry: Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(UnpackError::Name(shown(&entry.name)));
        }
        self.describe(path, entry)
    }

    fn describe(&mut self, path: RelativePath, entry: Entry) -> Result<(), UnpackError> {
        self.usage
            .add_journal(cost(&path, &entry.xattrs), &self.options.limits)?;
        let description = Directory {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs,
        };
        self.journal.directories.insert(path, description);
        Ok(())
    }

    fn directory(&mut self, spot: &Spot<'_>, entry: Entry) -> Result<OwnedFd, UnpackError> {
        let path = spot.path.as_bytes();
        // Open to us until the tree stands; then it gets its own mode.
        let make = |spot: &Spot<'_>| match mkdirat(
            spot.directory,
            spot.name,
            Mode::from_raw_mode(0o700),
        ) {
            Err(Errno::EXIST)
                if root::kind_at(spot.directory, spot.name, path)
                    .is_ok_and(|kind| kind == Some(FileType::Directory)) =>
            {
                Ok(())
            }
            made => made,
        };
        self.make(spot, "make directory", make)?;
        self.describe(spot.path.clone(), entry)?;
        root::child(spot.directory, spot.name, path)
    }

    /// Makes something that takes the place of what an entry before it in the same layer has left there.
    fn make<T>(
        &mut self,
        spot: &Spot<'_>,
        step: &'static str,
        make: impl Fn(&Spot<'_>) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let made = self.replace(spot, make)?;
        made.map_err(|errno| UnpackError::system(step, spot.path.as_bytes(), errno))
    }

    fn replace<T>(
        &mut self,
        spot: &Spot<'_>,
        make: impl Fn(&Spot<'_>) -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, UnpackError> {
        if !self.journal.links.is_empty() {
            self.journal.links.remove(spot.path.as_bytes());
        }
        match make(spot) {
            // Only now is it looked at: mostly there is nothing.
            Err(Errno::EXIST) => {
                self.clear(spot)?;
                Ok(make(spot))
            }
            made => Ok(made),
        }
    }

    fn clear(&mut self, spot: &Spot<'_>) -> Result<(), UnpackError> {
        let path = spot.path.as_bytes();
        self.removals += 1;
        self.near.removed();
        if root::kind_at(spot.directory, spot.name, path)? == Some(FileType::Directory) {
            self.journal.forget(spot.path);
        }
        root::remove(spot.directory, spot.name, path)
    }

    fn check_target(&self, target: &[u8], spot: &Spot<'_>) -> Result<(), UnpackError> {
        let cap = self.options.limits.path_bytes;
        if target.is_empty() || target.contains(&0) {
            return Err(UnpackError::Name(shown(spot.path.as_bytes())));
        }
        if target.len() > cap {
            return Err(UnpackError::limit("path_bytes", cap as u64));
        }
        Ok(())
    }

    fn hard_link(&mut self, spot: &Spot<'_>, target: &[u8]) -> Result<(), UnpackError> {
        let (limits, path) = (&self.options.limits, spot.path.as_bytes());
        let target = RelativePath::read(target, limits)?;
        let is_directory = || UnpackError::LinkDirectory {
            entry: shown(path),
            target: shown(target.as_bytes()),
        };
        let (parent, name) = target.split().ok_or_else(is_directory)?;
        let beside = spot.path.split().is_some_and(|(own, _)| own == parent);
        let other = match beside {
            true => None,
            false => self.root.existing(parent, path, limits)?,
        };
        let from = match &other {
            Some(opened) => &opened.fd,
            None if beside => spot.directory,
            None => return self.late_link(spot, target),
        };
        // A link to itself takes nothing away.
        if *spot.path == target && root::kind_at(from, name, path)?.is_some() {
            return Ok(());
        }
        let link =
            |spot: &Spot<'_>| linkat(from, name, spot.directory, spot.name, AtFlags::empty());
        match self.replace(spot, link)? {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => self.late_link(spot, target),
            Err(Errno::PERM) if root::kind_at(from, name, path)? == Some(FileType::Directory) => {
                // One that is only implied may be a link to it in a lower layer.
                match self.journal.directories.contains_key(&target) {
                    true => Err(is_directory()),
                    false => self.late_link(spot, target),
                }
            }
            Err(errno) => Err(UnpackError::system("make hard link", path, errno)),
        }
    }

    /// The target is not in this layer: the merge looks for it in those below.
    fn late_link(&mut self, spot: &Spot<'_>, target: RelativePath) -> Result<(), UnpackError> {
        self.clear(spot)?;
        let cost = cost(spot.path, &[]).saturating_add(cost(&target, &[]));
        self.usage.add_journal(cost, &self.options.limits)?;
        self.journal.add_link(spot.path.clone(), target);
        Ok(())
    }

    fn node(
        &mut self,
        spot: &Spot<'_>,
        entry: &Entry,
        (kind, major, minor): (FileType, u32, u32),
    ) -> Result<(), UnpackError> {
        if kind != FileType::Fifo && self.options.devices == Devices::Refuse {
            return Err(UnpackError::Device(shown(spot.path.as_bytes())));
        }
        self.make(spot, "make node", |spot| {
            mknodat(
                spot.directory,
                spot.name,
                kind,
                Fresh::mode(entry.mode),
                makedev(major, minor),
            )
        })?;
        self.describe_special(spot, entry)
    }

    fn describe_special(&self, spot: &Spot<'_>, entry: &Entry) -> Result<(), UnpackError> {
        let path = spot.path.as_bytes();
        self.fresh
            .special(spot.directory, spot.name, entry, self.options, path)
    }
}
