//! The layers' directories into one tree, lowest first.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags, linkat, mkdirat, renameat, renameat_with};
use rustix::io::Errno;

use super::journal::{Directory, Journal};
use super::meta::finish_directory;
use super::path::{RelativePath, components, shown, take_below};
use super::root::{self, Opened, Root};
use super::{Options, UnpackError};

/// The tree that layers are merged into.
#[derive(Debug)]
pub struct Tree<'a> {
    root: &'a Root,
    options: &'a Options,
    /// Every directory that some layer describes, as the highest one does, by where it really is.
    directories: BTreeMap<RelativePath, Directory>,
}

/// A directory under the name that a layer has for it, and where it really is: links of lower layers may lead there.
#[derive(Clone, Copy)]
struct Place<'a> {
    named: &'a RelativePath,
    real: &'a RelativePath,
}

impl<'a> Tree<'a> {
    /// Starts with an empty directory.
    #[must_use]
    pub fn new(root: &'a Root, options: &'a Options) -> Self {
        Self {
            root,
            options,
            directories: BTreeMap::new(),
        }
    }

    /// Merges the next layer, of whose directory nothing of use is left.
    ///
    /// # Errors
    /// See [`UnpackError`]; the tree is of no use then.
    pub fn merge(&mut self, layer: &Root, mut journal: Journal) -> Result<(), UnpackError> {
        // First, because a link may lead to a file that the layer replaces or hides.
        for (link, target) in journal.take_links() {
            self.late_link(layer, &link, &target)?;
        }
        self.hide(&journal)?;
        let top = RelativePath::default();
        if let Some(directory) = journal.directories.remove(&top) {
            self.directories.insert(top.clone(), directory);
        }
        let place = Place {
            named: &top,
            real: &top,
        };
        self.merge_into(&layer.reopen()?, &self.root.reopen()?, place, &mut journal)
    }

    /// Gives every directory its owner, mode, attributes and time; no entry is added to any afterwards.
    ///
    /// # Errors
    /// See [`UnpackError`].
    pub fn finish(self) -> Result<(), UnpackError> {
        // Deepest first: a directory that its owner may not enter is closed after what is in it.
        for (path, directory) in self.directories.iter().rev() {
            let path = path.as_bytes();
            let fd = root::confined(self.root.fd(), path)
                .map_err(|errno| UnpackError::system("open", path, errno))?;
            finish_directory(&fd, directory, self.options, path)?;
        }
        Ok(())
    }

    /// A hard link to a file of a lower layer becomes one in the layer itself, and is then merged as all else.
    fn late_link(
        &self,
        layer: &Root,
        link: &RelativePath,
        target: &RelativePath,
    ) -> Result<(), UnpackError> {
        let (limits, entry) = (&self.options.limits, link.as_bytes());
        let (Some((parent, name)), Some((target_parent, target_name))) =
            (link.split(), target.split())
        else {
            return Ok(());
        };
        let to = layer.ensure(parent, entry, limits)?.fd;
        // The layer first: the target may itself have been a late link. A directory there is one that it only implies.
        for (root, lower) in [(layer, false), (self.root, true)] {
            let Some(from) = root.existing(target_parent, entry, limits)? else {
                continue;
            };
            match linkat(&from.fd, target_name, &to, name, AtFlags::empty()) {
                // A later entry of the layer took the place.
                Ok(()) | Err(Errno::EXIST) => return Ok(()),
                Err(Errno::NOENT) => {}
                Err(Errno::PERM)
                    if root::kind_at(&from.fd, target_name, entry)?
                        == Some(FileType::Directory) =>
                {
                    if lower {
                        return Err(UnpackError::LinkDirectory {
                            entry: shown(entry),
                            target: shown(target.as_bytes()),
                        });
                    }
                }
                Err(errno) => return Err(UnpackError::system("make hard link", entry, errno)),
            }
        }
        Err(UnpackError::LinkTarget {
            entry: shown(entry),
            target: shown(target.as_bytes()),
        })
    }

    /// A layer's whiteouts hide what is below the layer, so they go before its files.
    fn hide(&mut self, journal: &Journal) -> Result<(), UnpackError> {
        for path in &journal.whiteouts {
            let Some((parent, name)) = path.split() else {
                continue;
            };
            if let Some((directory, real)) = self.lower(parent, journal, path)? {
                root::remove(&directory, name, path.as_bytes())?;
                self.forget(&real.join(name));
            }
        }
        for path in &journal.opaques {
            let Some((directory, real)) = self.lower(path.as_bytes(), journal, path)? else {
                continue;
            };
            for (name, _) in root::names(&directory, path.as_bytes())? {
                root::remove(&directory, &name, path.as_bytes())?;
                self.forget(&real.join(&name));
            }
        }
        Ok(())
    }

    /// The lower directory that a layer means by `path`. A link on the way leads to it, unless the layer puts a
    /// directory of its own in the link's place: then there is none.
    fn lower(
        &self,
        path: &[u8],
        journal: &Journal,
        entry: &RelativePath,
    ) -> Result<Option<(OwnedFd, RelativePath)>, UnpackError> {
        let entry = entry.as_bytes();
        match root::confined(self.root.fd(), path) {
            Ok(fd) => return Ok(Some((fd, RelativePath::below(path)))),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => {}
            Err(errno) => return Err(UnpackError::system("open directory of", entry, errno)),
        }
        let (mut named, mut real) = (RelativePath::default(), RelativePath::default());
        for component in components(path) {
            named = named.join(component);
            let here = real.join(component);
            match root::kind_at(self.root.fd(), here.as_bytes(), entry)? {
                Some(FileType::Directory) => real = here,
                Some(FileType::Symlink) if !journal.directories.contains_key(&named) => {
                    real = self
                        .root
                        .resolve(here.as_bytes(), entry, &self.options.limits)?;
                    if root::confined(self.root.fd(), real.as_bytes()).is_err() {
                        return Ok(None);
                    }
                }
                _ => return Ok(None),
            }
        }
        match root::confined(self.root.fd(), real.as_bytes()) {
            Ok(fd) => Ok(Some((fd, real))),
            Err(errno) => Err(UnpackError::system("open directory of", entry, errno)),
        }
    }

    fn forget(&mut self, path: &RelativePath) {
        take_below(&mut self.directories, path);
    }

    /// Takes over how the layer describes `place` and all that is below it.
    fn describe(&mut self, place: Place<'_>, journal: &mut Journal) {
        for (path, directory) in take_below(&mut journal.directories, place.named) {
            self.directories
                .insert(path.moved(place.named, place.real), directory);
        }
    }

    fn merge_into(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        place: Place<'_>,
        journal: &mut Journal,
    ) -> Result<(), UnpackError> {
        // What was moved deeper by links is moved entry by entry, because how deep it goes has to be seen.
        let deeper = place.real.depth() > place.named.depth();
        for (name, kind) in root::names(from, place.named.as_bytes())? {
            let named = place.named.join(&name);
            let real = place.real.join_checked(&name, &self.options.limits)?;
            let here = Place {
                named: &named,
                real: &real,
            };
            let is_directory = kind == FileType::Directory;
            if !(is_directory && deeper) && rename_free(from, to, &name, &named)? {
                if is_directory {
                    self.describe(here, journal);
                }
                continue;
            }
            match is_directory {
                true => self.merge_directory(from, to, &name, here, journal)?,
                false => {
                    if root::kind_at(to, &name, named.as_bytes())? == Some(FileType::Directory) {
                        root::remove(to, &name, named.as_bytes())?;
                        self.forget(&real);
                    }
                    rename(from, to, &name, &named)?;
                }
            }
        }
        Ok(())
    }

    /// A directory onto what stands in its place.
    fn merge_directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        here: Place<'_>,
        journal: &mut Journal,
    ) -> Result<(), UnpackError> {
        let entry = here.named.as_bytes();
        let described = journal.directories.remove(here.named);
        let (inside, elsewhere) = match root::kind_at(to, name, entry)? {
            Some(FileType::Directory) => (root::child(to, name, entry)?, None),
            // The layer only implies the directory, so it means what the link leads to.
            Some(FileType::Symlink) if described.is_none() => {
                let limits = &self.options.limits;
                let Opened { fd, elsewhere } =
                    self.root.ensure(here.real.as_bytes(), entry, limits)?;
                (fd, elsewhere)
            }
            other => {
                if other.is_some() {
                    root::remove(to, name, entry)?;
                }
                let made = mkdirat(to, name, Mode::from_raw_mode(0o755));
                made.map_err(|errno| UnpackError::system("make directory", entry, errno))?;
                (root::child(to, name, entry)?, None)
            }
        };
        let real = elsewhere.as_ref().unwrap_or(here.real);
        if let Some(directory) = described {
            self.directories.insert(real.clone(), directory);
        }
        let place = Place {
            named: here.named,
            real,
        };
        self.merge_into(&root::child(from, name, entry)?, &inside, place, journal)
    }
}

/// Moves an entry where nothing stands in its place; `false` when something may.
fn rename_free(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &[u8],
    path: &RelativePath,
) -> Result<bool, UnpackError> {
    match renameat_with(from, name, to, name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        // Not every file system has the flag.
        Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(moving(path, errno)),
    }
}

fn rename(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &[u8],
    path: &RelativePath,
) -> Result<(), UnpackError> {
    renameat(from, name, to, name).map_err(|errno| moving(path, errno))
}

fn moving(path: &RelativePath, errno: Errno) -> UnpackError {
    UnpackError::system("move into place", path.as_bytes(), errno)
}
