//! The layers' directories into one tree, lowest first.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, fchmod, flistxattr, fremovexattr, futimens, linkat, openat,
    renameat,
};
use rustix::io::Errno;

use super::journal::{Directory, Journal};
use super::layer::{own_directory, times};
use super::path::RelativePath;
use super::root::{self, Root};
use super::{Options, UnpackError};

/// Cap on the list of attribute names, in bytes: the kernel's own.
const XATTR_LIST_BYTES: usize = 64 * 1024;

/// The tree that layers are merged into.
#[derive(Debug)]
pub struct Tree<'a> {
    root: &'a Root,
    options: &'a Options,
    /// Every directory that some layer describes, as the highest one does.
    directories: BTreeMap<RelativePath, Directory>,
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

    /// Merges the next layer, whose directory is empty afterwards.
    ///
    /// # Errors
    /// See [`UnpackError`]; the tree is of no use then.
    pub fn merge(&mut self, layer: &Root, mut journal: Journal) -> Result<(), UnpackError> {
        self.hide(&journal)?;
        let links = std::mem::take(&mut journal.links);
        if let Some(root) = journal.directories.get(&RelativePath::default()) {
            self.own(self.root.fd(), root, ".")?;
        }
        let from = open_self(layer)?;
        let to = open_self(self.root)?;
        self.merge_into(&from, &to, &RelativePath::default(), &journal)?;
        self.directories.append(&mut journal.directories);
        links
            .iter()
            .try_for_each(|(link, target)| self.late_link(link, target))
    }

    /// Gives every directory its mode and time; no entry is added to any afterwards.
    ///
    /// # Errors
    /// See [`UnpackError`].
    pub fn finish(self) -> Result<(), UnpackError> {
        // Deepest first: a directory that its owner may not enter is closed after what is in it.
        for (path, directory) in self.directories.iter().rev() {
            let shown = path.to_string();
            let Some(fd) = self.root.existing(path, &shown)? else {
                continue;
            };
            fchmod(&fd, Mode::from_raw_mode(directory.mode))
                .map_err(|errno| UnpackError::system("set mode of", &shown, errno))?;
            futimens(&fd, &times(directory.mtime))
                .map_err(|errno| UnpackError::system("set time of", &shown, errno))?;
        }
        Ok(())
    }

    /// A layer's whiteouts hide what is below the layer, so they go first.
    fn hide(&mut self, journal: &Journal) -> Result<(), UnpackError> {
        for path in &journal.whiteouts {
            let shown = path.to_string();
            let Some((parent, name)) = path.split() else {
                continue;
            };
            if let Some(directory) = self.root.existing(&parent, &shown)? {
                root::remove(&directory, name, &shown)?;
                self.forget(path);
            }
        }
        for path in &journal.opaques {
            let shown = path.to_string();
            let Some(directory) = self.root.existing(path, &shown)? else {
                continue;
            };
            for name in root::names(&directory, &shown)? {
                root::remove(&directory, &name, &shown)?;
                self.forget(&path.join(&name));
            }
        }
        Ok(())
    }

    fn forget(&mut self, path: &RelativePath) {
        self.directories.retain(|known, _| !known.starts_with(path));
    }

    fn merge_into(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        path: &RelativePath,
        journal: &Journal,
    ) -> Result<(), UnpackError> {
        for name in root::names(from, &path.to_string())? {
            let here = path.join(&name);
            let shown = here.to_string();
            let is_directory = root::kind_at(from, &name, &shown)? == Some(FileType::Directory);
            let below = root::kind_at(to, &name, &shown)?;
            let inside = match below {
                Some(FileType::Directory) if is_directory => Some(root::child(to, &name, &shown)?),
                // The layer only implies the directory, so it means what the link leads to.
                Some(FileType::Symlink)
                    if is_directory && !journal.directories.contains_key(&here) =>
                {
                    self.root.existing(&here, &shown)?
                }
                _ => None,
            };
            if let Some(inside) = inside {
                if let Some(directory) = journal.directories.get(&here) {
                    self.own(inside.as_fd(), directory, &shown)?;
                }
                self.merge_into(&root::child(from, &name, &shown)?, &inside, &here, journal)?;
                continue;
            }
            if below.is_some() && (is_directory || below == Some(FileType::Directory)) {
                root::remove(to, &name, &shown)?;
            }
            if below == Some(FileType::Directory) {
                self.forget(&here);
            }
            renameat(from, name.as_slice(), to, name.as_slice())
                .map_err(|errno| UnpackError::system("move into place", &shown, errno))?;
        }
        Ok(())
    }

    /// A described directory replaces the owner and attributes of the one below.
    fn own(
        &self,
        fd: rustix::fd::BorrowedFd<'_>,
        directory: &Directory,
        shown: &str,
    ) -> Result<(), UnpackError> {
        let mut list = vec![0_u8; XATTR_LIST_BYTES];
        let length = match flistxattr(fd, list.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(errno) => {
                return Err(UnpackError::system(
                    "list extended attributes of",
                    shown,
                    errno,
                ));
            }
        };
        for name in list[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let kept = directory.xattrs.iter().any(|(known, _)| known == name);
            if !kept && name.starts_with(b"user.") {
                fremovexattr(fd, name).map_err(|errno| {
                    UnpackError::system("remove extended attribute of", shown, errno)
                })?;
            }
        }
        own_directory(fd, directory, self.options, shown)
    }

    fn late_link(&self, link: &RelativePath, target: &RelativePath) -> Result<(), UnpackError> {
        let shown = link.to_string();
        let missing = || UnpackError::LinkTarget {
            entry: shown.clone(),
            target: target.to_string(),
        };
        let (Some((parent, name)), Some((target_parent, target_name))) =
            (link.split(), target.split())
        else {
            return Err(missing());
        };
        let from = self
            .root
            .existing(&target_parent, &shown)?
            .ok_or_else(missing)?;
        let to = self.root.ensure(&parent, &shown)?;
        if link == target {
            // A layer may name a lower file by itself, to say that it stays.
            return root::kind_at(&to, name, &shown)?
                .map(|_| ())
                .ok_or_else(missing);
        }
        if root::kind_at(&from, target_name, &shown)?.is_none() {
            return Err(missing());
        }
        root::remove(&to, name, &shown)?;
        linkat(&from, target_name, &to, name, AtFlags::empty())
            .map_err(|errno| UnpackError::system("make hard link", &shown, errno))
    }
}

fn open_self(root: &Root) -> Result<OwnedFd, UnpackError> {
    openat(
        root.fd(),
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| UnpackError::system("open", ".", errno))
}
