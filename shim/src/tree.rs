//! A copy of a part of the host's mounts, which is changed before anybody sees it: once it is attached, the guest is
//! quick to write where it may.
#![expect(unsafe_code, reason = "there is no safe wrapper for mount_setattr(2)")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::libc;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// The copy; it goes with the value unless it is attached.
#[derive(Debug)]
pub(crate) struct Tree(OwnedFd);

/// How far something reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The mount itself.
    Top,
    /// It, and what is mounted below.
    All,
}

impl Tree {
    /// A copy of what is mounted at a path, or of a directory or file of it.
    ///
    /// # Errors
    /// As open_tree(2) fails.
    pub(crate) fn of(source: &Path, reach: Reach) -> io::Result<Self> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if reach == Reach::All {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        Ok(Self(open_tree(CWD, source, flags)?))
    }

    /// Maps its owners by a user namespace.
    ///
    /// # Errors
    /// EINVAL where a file system does not map owners.
    pub(crate) fn map_owners(&self, by: BorrowedFd<'_>, reach: Reach) -> io::Result<()> {
        let namespace = u64::try_from(by.as_raw_fd()).map_err(io::Error::other)?;
        self.change(libc::MOUNT_ATTR_IDMAP, 0, namespace, reach)
    }

    /// Lets nobody write.
    ///
    /// # Errors
    /// As mount_setattr(2) fails.
    pub(crate) fn make_read_only(&self, reach: Reach) -> io::Result<()> {
        self.change(libc::MOUNT_ATTR_RDONLY, 0, 0, reach)
    }

    /// Attaches it to a mount point. Undoing that later undoes nothing of the host's.
    ///
    /// # Errors
    /// As mount_setattr(2) or move_mount(2) fails.
    pub(crate) fn attach(self, target: &Path) -> io::Result<()> {
        self.change(0, libc::MS_PRIVATE, 0, Reach::All)?;
        let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&self.0, c"", CWD, target, whole)?)
    }

    fn change(&self, set: u64, propagation: u64, userns_fd: u64, reach: Reach) -> io::Result<()> {
        let attributes = libc::mount_attr {
            attr_set: set,
            attr_clr: 0,
            propagation,
            userns_fd,
        };
        let mut flags = libc::AT_EMPTY_PATH;
        if reach == Reach::All {
            flags |= libc::AT_RECURSIVE;
        }
        // SAFETY: the descriptors are open, and the kernel only reads the path and as much of the attributes as the
        // size says; all outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
