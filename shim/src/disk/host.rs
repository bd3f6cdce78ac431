//! Block devices and images of the host: found by number or by path, and looked at before a guest gets them.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, major, minor};
use thiserror::Error;

/// Where the kernel tells of block devices by their numbers.
const NUMBERS: &str = "/sys/dev/block";

/// Something on the host that can be a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its path.
    pub path: PathBuf,
    /// What tells it from others.
    pub id: Id,
    /// Whether the host itself writes nothing to it.
    pub is_read_only: bool,
}

/// What tells a disk from others, whatever paths lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    /// A block device's number.
    Device(u64),
    /// A file: its file system's number and its own.
    File(u64, u64),
}

/// Why something cannot be a disk.
#[derive(Debug, Error)]
pub enum HostError {
    /// The kernel knows no such device.
    #[error("the host has no block device {0}:{1}")]
    Unknown(i64, i64),
    /// There is no node for it.
    #[error("{path:?} is not the block device {major}:{minor}")]
    Node {
        /// Where it should be.
        path: PathBuf,
        /// Its number.
        major: i64,
        /// Its number.
        minor: i64,
    },
    /// It cannot be looked at.
    #[error("{path:?}: {source}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is something else.
    #[error("{0:?} is neither a block device nor a regular file")]
    Kind(PathBuf),
    /// The host uses it.
    #[error(
        "{0:?} is in use on the host (mounted, or part of another device): two kernels that write to it would destroy what is on it"
    )]
    Busy(PathBuf),
}

impl Host {
    /// The block device of a number.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn by_number(major: i64, minor: i64) -> Result<Self, HostError> {
        let event = fs::read_to_string(format!("{NUMBERS}/{major}:{minor}/uevent"));
        let event = event.map_err(|_| HostError::Unknown(major, minor))?;
        let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let path = Path::new("/dev").join(name.ok_or(HostError::Unknown(major, minor))?);
        let found = Self::by_path(&path)?;
        match found.id {
            Id::Device(number) if is(number, major, minor) => Ok(found),
            _ => Err(HostError::Node { path, major, minor }),
        }
    }

    /// The block device or the file of a path.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn by_path(path: &Path) -> Result<Self, HostError> {
        let failed = |source| HostError::Read {
            path: path.to_owned(),
            source,
        };
        // Links lead to the device; the path of the guest's disk is the device's own.
        let path = fs::canonicalize(path).map_err(failed)?;
        let found = fs::metadata(&path).map_err(failed)?;
        let kind = found.file_type();
        let (id, is_read_only) = match (kind.is_block_device(), kind.is_file()) {
            (true, _) => {
                let number = found.rdev();
                let file = format!("{NUMBERS}/{}:{}/ro", major(number), minor(number));
                let is_read_only = fs::read_to_string(file).is_ok_and(|text| text.trim() == "1");
                (Id::Device(number), is_read_only)
            }
            (_, true) => (Id::File(found.dev(), found.ino()), false),
            _ => return Err(HostError::Kind(path)),
        };
        Ok(Self {
            path,
            id,
            is_read_only,
        })
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.id, Id::Device(_))
    }

    /// Checks that nobody on the host uses a device. Of a file only QEMU can say.
    ///
    /// # Errors
    /// [`HostError::Busy`], or it cannot be opened.
    pub fn check_free(&self) -> Result<(), HostError> {
        if !self.is_device() {
            return Ok(());
        }
        let failed = |source| HostError::Read {
            path: self.path.clone(),
            source,
        };
        let flags = OFlags::EXCL | OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).map_err(|error| failed(io::Error::other(error)))?;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&self.path);
        match opened {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(HostError::Busy(self.path.clone()))
            }
            Err(error) => Err(failed(error)),
        }
    }
}

fn is(number: u64, wanted_major: i64, wanted_minor: i64) -> bool {
    i64::from(major(number)) == wanted_major && i64::from(minor(number)) == wanted_minor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_itself_by_every_path_and_others_are_no_disks() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("disk");
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, root.path().join("link")).unwrap();
        let found = Host::by_path(&file).unwrap();
        assert_eq!(found, Host::by_path(&root.path().join("link")).unwrap());
        assert!(!found.is_device() && !found.is_read_only);
        found.check_free().unwrap();
        for other in [root.path(), Path::new("/dev/null")] {
            let refused = Host::by_path(other);
            assert!(matches!(refused, Err(HostError::Kind(_))), "{other:?}");
        }
        let none = Host::by_path(&root.path().join("none"));
        assert!(matches!(none, Err(HostError::Read { .. })));
    }

    #[test]
    fn a_number_that_no_device_has_is_named() {
        let error = Host::by_number(4095, 7).unwrap_err();
        assert_eq!(error.to_string(), "the host has no block device 4095:7");
    }
}
