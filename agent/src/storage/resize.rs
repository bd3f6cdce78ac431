//! Makes the file system on a disk larger, while it is in use.
//!
//! The kernel does it (`EXT4_IOC_RESIZE_FS` of `fs/ext4/ext4.h`); e2fsprogs' resize2fs asks the same. It refuses a
//! size that is smaller, so how large it is already is read from the superblock first
//! (`Documentation/filesystems/ext4/super.rst`).

#![expect(
    unsafe_code,
    reason = "there is no safe wrapper for this ioctl of ext4"
)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, major, minor};

/// `_IOW('f', 16, __u64)`.
const RESIZE_FS: u32 = 0x4008_6610;
/// Where a disk has its superblock.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// The bit of the incompatible features by which numbers of blocks have a high half.
const HAS_HIGH_HALF: u32 = 0x80;

/// How many blocks a file system has, and how large one is.
#[derive(Debug, PartialEq, Eq)]
struct Blocks {
    count: u64,
    bytes: u64,
}

/// Makes the ext4 that is mounted at `point` at least so large as `bytes`, in whole blocks. One that is larger stays.
pub(super) fn grow(point: &Path, bytes: u64) -> io::Result<()> {
    let top = File::open(point)?;
    let disk = File::open(node(fstat(&top)?.st_dev)?)?;
    grow_on(&top, &disk, bytes)
}

/// The node of the disk of this number, which the guest's kernel names as it names the disk.
fn node(device: u64) -> io::Result<PathBuf> {
    let number = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let link = fs::read_link(number)?;
    let name = link.file_name().ok_or(io::ErrorKind::NotFound)?;
    Ok(Path::new("/dev").join(name))
}

fn grow_on(top: &File, disk: &File, bytes: u64) -> io::Result<()> {
    let mut superblock = [0; 1024];
    disk.read_exact_at(&mut superblock, SUPERBLOCK)?;
    let found = Blocks::of(&superblock).ok_or_else(|| io::Error::other("it is no ext4"))?;
    let wanted = bytes / found.bytes;
    if wanted <= found.count {
        return Ok(());
    }
    // SAFETY: the descriptor is open, and the kernel only reads the number, which outlives the call.
    let result = unsafe {
        libc::ioctl(
            top.as_raw_fd(),
            libc::Ioctl::from(RESIZE_FS),
            &raw const wanted,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Blocks {
    /// Those of the file system with this superblock, if it is one.
    fn of(superblock: &[u8; 1024]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = superblock.get(at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let magic = u16::from_le_bytes(*superblock.get(0x38..)?.first_chunk()?);
        let has_high_half = word(0x60)? & HAS_HIGH_HALF != 0;
        let high = if has_high_half { word(0x150)? } else { 0 };
        let bytes = 1024_u64.checked_shl(word(0x18)?)?;
        (magic == MAGIC && bytes != 0).then_some(Self {
            count: u64::from(high) << 32 | u64::from(word(0x4)?),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(count: u64) -> [u8; 1024] {
        let mut block = [0; 1024];
        let count = count.to_le_bytes();
        block[0x4..0x8].copy_from_slice(&count[..4]);
        block[0x18] = 2;
        block[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        block[0x60] = 0x80;
        block[0x150..0x154].copy_from_slice(&count[4..]);
        block
    }

    #[test]
    fn the_size_of_an_ext4_is_in_its_superblock() {
        let (count, bytes) = (0x3_0000_0001, 4096);
        let mut block = superblock(count);
        assert_eq!(Blocks::of(&block), Some(Blocks { count, bytes }));
        block[0x60] = 0;
        let low = Blocks { count: 1, bytes };
        assert_eq!(Blocks::of(&block), Some(low));
        for shift in [54, 255] {
            block[0x18] = shift;
            assert_eq!(Blocks::of(&block), None);
        }
        assert_eq!(Blocks::of(&[0; 1024]), None);
    }

    #[test]
    fn one_that_is_so_large_already_stays_and_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let top = File::open(directory.path()).unwrap();
        let path = directory.path().join("disk");
        fs::write(&path, [[0; 1024], superblock(8)].concat()).unwrap();
        let disk = File::open(path).unwrap();
        // The kernel is not asked, which knows no ext4 here.
        for bytes in [1, 4096 * 7, 4096 * 8, 4096 * 9 - 1] {
            grow_on(&top, &disk, bytes).unwrap();
        }
        assert!(grow_on(&top, &disk, 4096 * 9).is_err());
        assert!(grow_on(&top, &top, 4096).is_err());
    }
}
