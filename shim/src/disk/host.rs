//! Block devices and images of the host: found by number or by path, and looked at before a guest gets them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, major, minor};
use thiserror::Error;

/// Where the kernel tells of block devices by their numbers.
const NUMBERS: &str = "/sys/dev/block";
/// Where it tells of all of them.
const DEVICES: &str = "/sys/block";

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
    /// A loop device has it.
    #[error("{path:?} is behind the host's {device}: name the device, or detach the file from it")]
    Loop {
        /// The file.
        path: PathBuf,
        /// The device.
        device: String,
    },
    /// The path leads to something else than it did.
    #[error("{0:?} is another disk now than when it was asked for")]
    Changed(PathBuf),
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
        let id = id(&found).ok_or_else(|| HostError::Kind(path.clone()))?;
        let is_read_only = match id {
            Id::Device(number) => {
                let file = format!("{NUMBERS}/{}:{}/ro", major(number), minor(number));
                fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
            }
            Id::File(..) => false,
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

    /// Whether what is open is it.
    pub(super) fn is(&self, open: &File) -> io::Result<bool> {
        Ok(id(&open.metadata()?) == Some(self.id))
    }

    /// Opens it, and sees that it still is what it was. For as long as a device is open `alone`, nobody on the
    /// host mounts it; of a file only QEMU's lock says who uses it.
    ///
    /// # Errors
    /// [`HostError::Busy`], [`HostError::Loop`], [`HostError::Changed`], or it cannot be opened.
    pub fn open(&self, alone: bool) -> Result<File, HostError> {
        let failed = |source| HostError::Read {
            path: self.path.clone(),
            source,
        };
        let mut flags = OFlags::NONBLOCK;
        flags.set(OFlags::EXCL, alone && self.is_device());
        let flags = i32::try_from(flags.bits()).map_err(|error| failed(io::Error::other(error)))?;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(&self.path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(HostError::Busy(self.path.clone()));
            }
            opened => opened.map_err(failed)?,
        };
        if !self.is(&file).map_err(failed)? {
            return Err(HostError::Changed(self.path.clone()));
        }
        // Of what is only read there may be many users.
        match alone
            .then(|| loop_of(Path::new(DEVICES), self.id))
            .flatten()
        {
            Some(device) => Err(HostError::Loop {
                path: self.path.clone(),
                device,
            }),
            None => Ok(file),
        }
    }
}

fn id(found: &Metadata) -> Option<Id> {
    let kind = found.file_type();
    match (kind.is_block_device(), kind.is_file()) {
        (true, _) => Some(Id::Device(found.rdev())),
        (_, true) => Some(Id::File(found.dev(), found.ino())),
        _ => None,
    }
}

/// The loop device that a file is behind. One whose file has no name any more is not found.
fn loop_of(devices: &Path, file: Id) -> Option<String> {
    if matches!(file, Id::Device(_)) {
        return None;
    }
    let is_behind = |device: &fs::DirEntry| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        let found = backing.and_then(|path| fs::metadata(path.trim_end_matches('\n')));
        found.is_ok_and(|found| id(&found) == Some(file))
    };
    let mut all = fs::read_dir(devices).ok()?.flatten();
    all.find(is_behind)?.file_name().into_string().ok()
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
        found.open(true).unwrap();
        let devices = tempfile::tempdir().unwrap();
        fs::create_dir_all(devices.path().join("loop7/loop")).unwrap();
        let backing = devices.path().join("loop7/loop/backing_file");
        fs::write(backing, format!("{}\n", file.display())).unwrap();
        assert_eq!(loop_of(devices.path(), found.id).as_deref(), Some("loop7"));
        assert_eq!(loop_of(devices.path(), Id::File(0, 0)), None);
        fs::write(root.path().join("other"), "y").unwrap();
        fs::rename(root.path().join("other"), &file).unwrap();
        assert!(matches!(found.open(true), Err(HostError::Changed(_))));
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
