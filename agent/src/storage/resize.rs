//! Makes the file system on a disk larger, while it is in use.
//!
//! The kernel does it (`EXT4_IOC_RESIZE_FS` of `fs/ext4/ext4.h`); e2fsprogs' resize2fs asks the same.

#![expect(
    unsafe_code,
    reason = "there is no safe wrapper for this ioctl of ext4"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `_IOW('f', 16, __u64)`.
const RESIZE_FS: u32 = 0x4008_6610;

/// Makes the ext4 that is mounted at `point` at least so large as `bytes`, in whole blocks. One that is larger stays.
pub(super) fn grow(point: &Path, bytes: u64) -> io::Result<()> {
    let found = rustix::fs::statfs(point)?;
    let block = u64::try_from(found.f_bsize).unwrap_or_default();
    let blocks = bytes
        .checked_div(block)
        .ok_or_else(|| io::Error::other("it has no blocks"))?;
    let directory = File::open(point)?;
    // SAFETY: the descriptor is open, and the kernel only reads the number, which outlives the call.
    let result = unsafe {
        libc::ioctl(
            directory.as_raw_fd(),
            libc::Ioctl::from(RESIZE_FS),
            &raw const blocks,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
