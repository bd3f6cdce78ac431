//! A disk for an emptyDir: a file in the kubelet's own directory of the volume.
//!
//! The kubelet measures what its directory takes, and evicts a pod whose volume has more than its `sizeLimit`, or which
//! has more than its share of the node's storage. The file has no byte that the guest did not write, so what is
//! measured is what the volume takes. It is as large as what is free, because the limit is told to nobody but the
//! kubelet.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{DiskError, FileSystem, Group, Host, HostError, Purpose, Wanted, check};
use crate::config::{Config, EmptyDirs};

/// The file; the name that Kata has for it.
const FILE: &str = "disk.img";
/// It holds what is the pod's.
const MODE: u32 = 0o600;
/// The least that is free where one is made: with less there is no room for a file system.
const SMALLEST: u64 = 64 << 20;
/// The largest: what an empty file system takes grows with its size, to 40 MiB here.
const LARGEST: u64 = 128 << 30;
/// Bytes of a disk's sectors.
const SECTOR: u64 = 4096;
/// The file system that the guest makes.
const KIND: &str = "ext4";

/// The disk of the emptyDir that the kubelet has in `directory`, mounted at the mount of this index. `part` is the
/// storage of the part of it that is mounted, if one is.
///
/// # Errors
/// The file cannot be made, or guests may have no disks.
pub(crate) fn wanted(
    config: &Config,
    directory: &Path,
    group: Option<u32>,
    index: usize,
    part: Option<super::Storage>,
    destination: &str,
) -> Result<Wanted, DiskError> {
    let what = format!("emptyDir at {destination}");
    let is_encrypted = config.empty_dirs == EmptyDirs::Encrypted;
    check(config, what.clone(), is_encrypted)?;
    let host = make(&directory.join(FILE)).map_err(|source| DiskError::Host {
        what: what.clone(),
        source,
    })?;
    let key = is_encrypted.then(|| "encryption_key=ephemeral".to_owned());
    let system = FileSystem {
        kind: KIND.to_owned(),
        options: Vec::new(),
        group: group.map(|id| Group {
            id,
            on_mismatch: true,
        }),
        encryption: key
            .into_iter()
            .chain(["create_filesystem".to_owned()])
            .collect(),
    };
    Ok(Wanted {
        host,
        read_only: false,
        purpose: Purpose::EmptyDir(index, system, part),
        what,
    })
}

/// The file, which is made where it is missing. The directory is the kubelet's, and nobody else writes there: what is
/// no file of ours is refused all the same.
fn make(path: &Path) -> Result<Host, HostError> {
    open(path, OFlags::CREATE).map_err(|source| HostError::Read {
        path: path.to_owned(),
        source,
    })?;
    Host::by_path(path)
}

/// Opens it, for nobody else to have as long as it is open, and makes it empty and as large as what is free: what an
/// earlier VM of the pod has left is noise.
///
/// # Errors
/// There is no room, another VM has it, it is another file by now, or as the calls fail.
pub(super) fn renew(host: &Host) -> Result<File, HostError> {
    let renewed = || {
        let file = open(&host.path, OFlags::empty())?;
        lock(&file)?;
        if !host.is(&file)? {
            return Err(io::Error::other("it is another file by now"));
        }
        file.set_len(0)?;
        let free = rustix::fs::fstatvfs(&file)?;
        let bytes = free.f_bavail.saturating_mul(free.f_frsize);
        if bytes < SMALLEST {
            let text = format!("{bytes} bytes are free, and a volume needs {SMALLEST}");
            return Err(io::Error::other(text));
        }
        file.set_len(bytes.min(LARGEST) / SECTOR * SECTOR)?;
        Ok(file)
    };
    renewed().map_err(|source| HostError::Read {
        path: host.path.clone(),
        source,
    })
}

/// QEMU asks for a lock of its own, but only when the bytes of another VM would be gone already.
fn lock(file: &File) -> io::Result<()> {
    let locked = flock(file, FlockOperation::NonBlockingLockExclusive);
    locked.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::other("another VM has it: remove that pod first"),
        _ => error.into(),
    })
}

fn open(path: &Path, also: OFlags) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | also;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new()
        .write(true)
        .mode(MODE)
        .custom_flags(flags)
        .open(path)?;
    match file.metadata()?.is_file() && fs::symlink_metadata(path)?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("is no regular file")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn it_takes_nothing_until_it_is_written_to_and_an_earlier_ones_bytes_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let host = make(&path).unwrap();
        assert_eq!(make(&path).unwrap(), host, "a neighbour has the same");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        renew(&host).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert!(found.len() >= SMALLEST && found.len().is_multiple_of(SECTOR));
        assert_eq!(found.blocks(), 0);
    }

    #[test]
    fn one_that_another_vm_has_keeps_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let host = make(&path).unwrap();
        let held = renew(&host).unwrap();
        fs::write(&path, "of the other").unwrap();
        let error = renew(&host).unwrap_err().to_string();
        assert!(error.contains("another VM has it"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"of the other");
        drop(held);
        fs::write(directory.path().join("new"), "not of ours").unwrap();
        fs::rename(directory.path().join("new"), &path).unwrap();
        assert!(renew(&host).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"not of ours");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        symlink("/etc/hostname", &path).unwrap();
        assert!(make(&path).is_err());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(make(&path).is_err());
    }
}
