//! The directories that were used last, kept open: an archive is mostly in the order of a walk through a tree.

use std::os::fd::{AsFd, OwnedFd};

use super::path::RelativePath;
use super::root::{self, Root};
use super::{Limits, UnpackError};

/// How many are kept open.
const OPEN_MAX: usize = 16;

/// The directory of the entry before, and those above it.
#[derive(Debug)]
pub(super) struct Near<'a> {
    root: &'a Root,
    limits: &'a Limits,
    /// Outermost first; each is below the one before. None was reached through a link.
    open: Vec<(RelativePath, OwnedFd)>,
    /// The last one that was reached through links. It stays where it is until something is removed.
    linked: Option<Linked>,
}

/// A directory by the name that leads there through links.
#[derive(Debug)]
struct Linked {
    named: RelativePath,
    real: RelativePath,
    fd: OwnedFd,
}

/// The directory of an entry.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) named: RelativePath,
    pub(super) fd: OwnedFd,
    /// Where it really is, when links lead there.
    pub(super) elsewhere: Option<RelativePath>,
}

impl<'a> Near<'a> {
    pub(super) fn new(root: &'a Root, limits: &'a Limits) -> Self {
        Self {
            root,
            limits,
            open: Vec::new(),
            linked: None,
        }
    }

    /// Opens a directory, or makes it; `entry` is what is to be put into it.
    pub(super) fn open(&mut self, path: &[u8], entry: &[u8]) -> Result<Parent, UnpackError> {
        if let Some(parent) = self.open_linked(path)? {
            self.open.clear();
            return Ok(parent);
        }
        // What is not above the entry may be replaced by it, and so is closed.
        while let Some((above, fd)) = self.open.pop() {
            if above.as_bytes() == path {
                return Ok(Parent {
                    named: above,
                    fd,
                    elsewhere: None,
                });
            }
            let Some(rest) = above.rest_of(path) else {
                continue;
            };
            let Ok(found) = root::confined(fd.as_fd(), rest) else {
                break;
            };
            self.keep(above, fd);
            return Ok(Parent {
                named: RelativePath::below(path),
                fd: found,
                elsewhere: None,
            });
        }
        let opened = self.root.ensure(path, entry, self.limits)?;
        let elsewhere = opened.elsewhere.filter(|real| real.as_bytes() != path);
        if elsewhere.is_some() {
            self.open.clear();
            self.linked = None;
        }
        Ok(Parent {
            named: RelativePath::below(path),
            fd: opened.fd,
            elsewhere,
        })
    }

    /// The last directory that was reached through links, or one below it.
    fn open_linked(&mut self, path: &[u8]) -> Result<Option<Parent>, UnpackError> {
        let Some(Linked { named, real, fd }) = self.linked.take() else {
            return Ok(None);
        };
        if named.as_bytes() == path {
            let elsewhere = Some(real);
            return Ok(Some(Parent {
                named,
                fd,
                elsewhere,
            }));
        }
        let found = named.rest_of(path).and_then(|rest| {
            let real = real.join_checked(rest, self.limits);
            root::confined(fd.as_fd(), rest).ok().map(|fd| (real, fd))
        });
        self.linked = Some(Linked { named, real, fd });
        match found {
            None => Ok(None),
            Some((real, fd)) => Ok(Some(Parent {
                named: RelativePath::below(path),
                fd,
                elsewhere: Some(real?),
            })),
        }
    }

    /// Keeps a directory that was reached through links, unless it is below one that is kept.
    pub(super) fn keep_linked(&mut self, named: RelativePath, real: RelativePath, fd: OwnedFd) {
        self.linked.get_or_insert(Linked { named, real, fd });
    }

    /// Something was removed: it may have been a link on the way to what is kept.
    pub(super) fn removed(&mut self) {
        self.linked = None;
    }

    /// Keeps a directory that is below the one kept last.
    pub(super) fn keep(&mut self, path: RelativePath, fd: OwnedFd) {
        if self.open.len() == OPEN_MAX {
            self.open.remove(0);
        }
        self.open.push((path, fd));
    }
}
