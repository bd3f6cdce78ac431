//! What the kernel is asked about disks: to look for one, how large it is, to forget it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use rustix::fs::OFlags;
use tokio::time::{Instant, sleep};

use super::{Address, Disk, PHASE};
use crate::fault::OrFail;

pub(super) const HOSTS: &str = "/sys/class/scsi_host";
pub(super) const DISKS: &str = "/sys/class/scsi_disk";
const BLOCKS: &str = "/sys/class/block";
/// How long the kernel may take to see a disk that the host has added, or how large it has become.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a file system that was unmounted may take to let go of its disk.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Has the kernel look at one address of every controller.
pub(super) fn scan(hosts: &Path, address: Address) -> io::Result<()> {
    let Address { target, unit } = address;
    for host in fs::read_dir(hosts)? {
        fs::write(host?.path().join("scan"), format!("0 {target} {unit}"))?;
    }
    Ok(())
}

/// Looks how large a disk has become, until it has `bytes`.
pub(super) async fn grown(address: Address, bytes: u64) -> Result<(), GuestError> {
    let until = Instant::now() + ARRIVAL_TIMEOUT;
    loop {
        let looked = tokio::task::spawn_blocking(move || size_now(address));
        let there = looked.await.or_internal(PHASE, "look for disks")?;
        let there = there.or_fail(ErrorCode::NotFound, PHASE, format!("disk {address}"))?;
        if there >= bytes {
            return Ok(());
        }
        if Instant::now() >= until {
            let text = format!("disk {address} has {there} bytes, and is to have {bytes}");
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        }
        sleep(POLL).await;
    }
}

/// Has the kernel ask a disk for its size; answers bytes.
fn size_now(address: Address) -> io::Result<u64> {
    /// The unit of the kernel's number, whatever the disk's own is.
    const SECTOR: u64 = 512;
    let disk = find(Path::new(DISKS), address).ok_or(io::ErrorKind::NotFound)?;
    let block = Path::new(BLOCKS).join(&disk.name);
    fs::write(block.join("device/rescan"), "1")?;
    let sectors = fs::read_to_string(block.join("size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    Ok(sectors.saturating_mul(SECTOR))
}

pub(super) async fn arrived(disks: &Path, address: Address) -> Result<Disk, GuestError> {
    let until = Instant::now() + ARRIVAL_TIMEOUT;
    loop {
        if let Some(disk) = find(disks, address).filter(opens) {
            return Ok(disk);
        }
        if Instant::now() >= until {
            let Address { target, unit } = address;
            let text = format!("no disk came at {target}:{unit}: the shim's log has QEMU's words");
            return Err(GuestError::new(ErrorCode::DeadlineExceeded, PHASE, text));
        }
        sleep(POLL).await;
    }
}

/// Whether a disk that has a name can be used: the kernel shows it a moment before.
fn opens(disk: &Disk) -> bool {
    !matches!(File::open(disk.node()), Err(error) if is_gone(&error))
}

/// The disk of an address, once it has a node.
pub(super) fn find(disks: &Path, address: Address) -> Option<Disk> {
    let entries = fs::read_dir(disks).ok()?.flatten();
    let is_it = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|n| address.is(n));
    let unit = entries.into_iter().find(is_it)?.path();
    let block = fs::read_dir(unit.join("device/block"))
        .ok()?
        .flatten()
        .next()?;
    let number = fs::read_to_string(block.path().join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some(Disk {
        name: block.file_name().into_string().ok()?,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

/// Waits until nothing is mounted from the disk, writes what is not written, and has the kernel forget it.
pub(super) async fn let_go(disk: Disk) -> io::Result<()> {
    let until = Instant::now() + RELEASE_TIMEOUT;
    let flags = i32::try_from(OFlags::EXCL.bits()).map_err(io::Error::other)?;
    let alone = loop {
        // A mount is gone a moment after the last process that saw it.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(disk.node());
        match opened {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                sleep(POLL).await;
            }
            // The host took it away, with the node.
            Err(error) if is_gone(&error) => return Ok(()),
            other => break other?,
        }
    };
    // A disk may be slow.
    let forget = move || {
        let written = alone.sync_all();
        drop(alone);
        let delete = Path::new(BLOCKS).join(&disk.name).join("device/delete");
        match fs::write(delete, "1") {
            Err(error) if !is_gone(&error) => Err(error),
            _ => written,
        }
    };
    tokio::task::spawn_blocking(forget)
        .await
        .map_err(io::Error::other)?
}

fn is_gone(error: &io::Error) -> bool {
    const NO_DEVICE: i32 = rustix::io::Errno::NXIO.raw_os_error();
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_DEVICE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_address_once_it_has_a_node() {
        let root = tempfile::tempdir().unwrap();
        let address = Address::parse("3:0").unwrap();
        for name in ["0:0:13:0", "0:0:3:0"] {
            fs::create_dir_all(root.path().join(name).join("device")).unwrap();
        }
        assert_eq!(find(root.path(), address), None);
        let block = root.path().join("0:0:3:0/device/block/sdb");
        fs::create_dir_all(&block).unwrap();
        assert_eq!(find(root.path(), address), None);
        fs::write(block.join("dev"), "8:16\n").unwrap();
        let disk = find(root.path(), address).unwrap();
        assert_eq!((disk.major, disk.minor), (8, 16));
        assert_eq!(disk.node(), Path::new("/dev/sdb"));
    }
}
