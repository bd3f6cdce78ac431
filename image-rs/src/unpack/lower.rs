//! A layer's own directory as one that an overlay can be made of, unchanged for as long as it stands.
//!
//! What hides something of lower layers becomes what the overlay driver knows for it: a device 0:0 for a whiteout, an
//! attribute for an opaque directory. Directories get what the layer says of them at once, because nothing is put into
//! them afterwards. What only shows when layers come together is left to [`super::stack()`].

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, XattrFlags, fchmod, fsetxattr, mknodat};
use rustix::io::Errno;

use super::journal::Journal;
use super::meta::finish_directory;
use super::path::{RelativePath, components};
use super::root::{self, Root};
use super::{Options, UnpackError};

/// The overlay driver's mark of a directory whose lower content is hidden.
const OPAQUE: (&str, &[u8]) = ("trusted.overlay.opaque", b"y");
/// A directory that no layer describes.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

/// What is to be known of a layer's directory, besides its journal, when it comes together with others.
#[derive(Debug, Default)]
pub struct Lower {
    /// Directories that the layer has and does not describe, lowest names first.
    pub(super) implied: Vec<RelativePath>,
    /// Those of them that were made for a whiteout.
    pub(super) made: BTreeSet<RelativePath>,
    /// Whiteouts that were made.
    pub(super) whiteouts: BTreeSet<RelativePath>,
    /// Directories whose lower content is hidden.
    pub(super) opaque: BTreeSet<RelativePath>,
    /// Whether it has something that an overlay cannot say: a link to a file of a lower layer, a whiteout behind a link.
    pub(super) needs_merge: bool,
    /// Whether it changes nothing.
    pub(super) is_empty: bool,
}

/// Makes the directory of a layer that was just unpacked one of an overlay's.
///
/// # Errors
/// See [`UnpackError`]; the directory is of no use then.
pub fn make_lower(root: &Root, journal: &Journal, options: &Options) -> Result<Lower, UnpackError> {
    let mut work = Work {
        root,
        journal,
        options,
        lower: Lower {
            needs_merge: !journal.links.is_empty(),
            is_empty: true,
            ..Lower::default()
        },
    };
    for path in &journal.opaques {
        work.opaque(path)?;
    }
    for path in &journal.whiteouts {
        work.whiteout_of_directory(path)?;
    }
    for path in &journal.whiteouts {
        work.whiteout(path)?;
    }
    work.finish(&root.reopen()?, &RelativePath::default())?;
    Ok(work.lower)
}

/// Takes out of a copy of the layer what an overlay needs and a merge does not.
///
/// # Errors
/// See [`UnpackError`].
pub fn unmake_lower(copy: &Root, lower: &Lower) -> Result<(), UnpackError> {
    // A directory is behind what is in it.
    for path in lower.whiteouts.iter().chain(lower.made.iter().rev()) {
        if let Some((parent, name)) = path.split() {
            let entry = path.as_bytes();
            let parent = root::confined(copy.fd(), parent)
                .map_err(|errno| UnpackError::system("open directory of", entry, errno))?;
            root::remove(&parent, name, entry)?;
        }
    }
    Ok(())
}

impl Lower {
    /// Whether lower content is hidden at `path`: there, or by a directory on the way.
    pub(super) fn cuts(&self, path: &RelativePath) -> bool {
        if self.opaque.is_empty() {
            return false;
        }
        let mut here = RelativePath::default();
        let mut cut = self.opaque.contains(&here);
        for component in components(path.as_bytes()) {
            here = here.join(component);
            cut |= self.opaque.contains(&here);
        }
        cut
    }

    /// Directories that make no sense without one below them: those with whiteouts in them, or made for some.
    pub(super) fn hiding(&self) -> BTreeSet<RelativePath> {
        let parents = self.whiteouts.iter().filter_map(RelativePath::split);
        let parents = parents.map(|(parent, _)| RelativePath::below(parent));
        parents.chain(self.made.iter().cloned()).collect()
    }
}

struct Work<'a> {
    root: &'a Root,
    journal: &'a Journal,
    options: &'a Options,
    lower: Lower,
}

impl Work<'_> {
    /// A directory that takes the place of what a whiteout hides shows nothing of it.
    fn whiteout_of_directory(&mut self, path: &RelativePath) -> Result<(), UnpackError> {
        let entry = path.as_bytes();
        match root::confined(self.root.fd(), entry) {
            Ok(directory) => {
                mark_opaque(&directory, entry)?;
                self.lower.opaque.insert(path.clone());
                Ok(())
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(UnpackError::system("open", entry, errno)),
        }
    }

    fn whiteout(&mut self, path: &RelativePath) -> Result<(), UnpackError> {
        let entry = path.as_bytes();
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        if self.lower.cuts(&RelativePath::below(parent)) {
            return Ok(());
        }
        let Some(directory) = self.directory(parent, entry)? else {
            return Ok(());
        };
        // What stands there hides what is below it anyway, a directory that was made opaque too.
        if root::kind_at(&directory, name, entry)?.is_some() {
            return Ok(());
        }
        let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
        mknodat(&directory, name, kind, mode, 0)
            .map_err(|errno| UnpackError::system("make whiteout", entry, errno))?;
        self.lower.whiteouts.insert(path.clone());
        Ok(())
    }

    fn opaque(&mut self, path: &RelativePath) -> Result<(), UnpackError> {
        // The directory keeps what lower layers say of it, and hides what they have in it: an overlay has both or none.
        if !self.journal.directories.contains_key(path) {
            self.lower.needs_merge = true;
            return Ok(());
        }
        let entry = path.as_bytes();
        let directory = root::confined(self.root.fd(), entry)
            .map_err(|errno| UnpackError::system("open", entry, errno))?;
        mark_opaque(&directory, entry)?;
        self.lower.opaque.insert(path.clone());
        Ok(())
    }

    /// The directory for a whiteout, made where the layer has none; `None` where a link or a file is on the way.
    fn directory(&mut self, path: &[u8], entry: &[u8]) -> Result<Option<OwnedFd>, UnpackError> {
        match root::confined(self.root.fd(), path) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                self.lower.needs_merge = true;
                Ok(None)
            }
            Err(Errno::NOENT) => {
                let mut missing = RelativePath::below(path);
                while root::confined(self.root.fd(), missing.as_bytes()).is_err() {
                    let parent = missing.split().map(|(parent, _)| parent.to_vec());
                    self.lower.made.insert(missing);
                    missing = RelativePath::below(&parent.unwrap_or_default());
                }
                self.root.make(path, entry).map(Some)
            }
            Err(errno) => Err(UnpackError::system("open directory of", entry, errno)),
        }
    }

    /// Gives every directory what is said of it, the deepest first, and notes those of which nothing is.
    fn finish(&mut self, directory: &OwnedFd, path: &RelativePath) -> Result<(), UnpackError> {
        let entry = path.as_bytes();
        let described = self.journal.directories.get(path);
        if described.is_none() {
            self.lower.implied.push(path.clone());
        }
        let names = root::names(directory, entry)?;
        self.lower.is_empty &= names.is_empty() && described.is_none();
        for (name, kind) in names {
            if kind == FileType::Directory {
                self.finish(&root::child(directory, &name, entry)?, &path.join(&name))?;
            }
        }
        match described {
            Some(described) => finish_directory(directory, described, self.options, entry),
            // Whatever mask the process has.
            None => fchmod(directory, IMPLIED_MODE)
                .map_err(|errno| UnpackError::system("set mode of", entry, errno)),
        }
    }
}

fn mark_opaque(directory: &OwnedFd, entry: &[u8]) -> Result<(), UnpackError> {
    let (name, value) = OPAQUE;
    fsetxattr(directory.as_fd(), name, value, XattrFlags::empty())
        .map_err(|errno| UnpackError::system("mark as opaque", entry, errno))
}
