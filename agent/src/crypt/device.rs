//! Block devices that are made in the guest: mapped ones, and one that lies in memory.
//!
//! Both are made by ioctls of the kernel's stable interface (`linux/dm-ioctl.h`, `linux/loop.h`). The
//! crates that wrap them bring bindings that are generated at build time with libclang, for two
//! structures.

#![expect(
    unsafe_code,
    reason = "there is no safe wrapper for the ioctls of device-mapper and loop devices"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use zeroize::Zeroizing;

const MAPPER: &str = "/dev/mapper/control";
/// Bytes of `struct dm_ioctl`.
const HEADER: usize = 312;
/// Where in it the kernel writes the device's number, and where the name goes.
const NUMBER_AT: usize = 40;
const NAME_AT: usize = 48;
const MAX_NAME: usize = 127;
/// Bytes of `struct dm_target_spec`, which the parameters follow.
const TARGET: usize = 40;
const KIND_AT: usize = HEADER + 24;
const MAX_KIND: usize = 15;
/// `DM_SECURE_DATA_FLAG`: the kernel wipes its copy of what it was given.
const SECURE_DATA: u32 = 1 << 15;
/// `DM_DEFERRED_REMOVE`: a device that is in use is removed when it is not any more.
const DEFERRED_REMOVE: u32 = 1 << 17;
/// Where the flags are in `struct dm_ioctl`.
const FLAGS_AT: usize = 28;

/// `_IOWR(0xfd, …, struct dm_ioctl)`.
const DM: u32 = 0xc138_fd00;
const DEV_CREATE: u32 = 3;
const DEV_REMOVE: u32 = 4;
const DEV_SUSPEND: u32 = 6;
const TABLE_LOAD: u32 = 9;

const LOOP_CONTROL: &str = "/dev/loop-control";
const LOOP_CTL_GET_FREE: u32 = 0x4c82;
const LOOP_CONFIGURE: u32 = 0x4c0a;
/// Bytes of `struct loop_config`: zeroes but for the descriptor, which is its first member, and the flags.
const LOOP_CONFIG: usize = 304;
const LOOP_FLAGS_AT: usize = 60;
/// `LO_FLAGS_AUTOCLEAR`: the device is free again when nobody has it open any more.
const LOOP_AUTOCLEAR: u32 = 4;

/// What a mapped device is.
pub(super) struct Target<'a> {
    /// The target's kind, such as `crypt`.
    pub(super) kind: &'a str,
    /// Sectors of 512 bytes.
    pub(super) sectors: u64,
    /// Its parameters; a key may be among them.
    pub(super) parameters: Zeroizing<String>,
}

/// Makes a mapped device of one target and answers its node.
pub(super) fn map(name: &str, target: &Target<'_>) -> io::Result<PathBuf> {
    let control = OpenOptions::new().read(true).write(true).open(MAPPER)?;
    let mut created = request(name)?;
    mapper(&control, DEV_CREATE, &mut created)?;
    let number = number(&created);
    let started = load(&control, name, target)
        .and_then(|()| mapper(&control, DEV_SUSPEND, &mut request(name)?));
    if let Err(error) = started {
        let _ = request(name).and_then(|mut remove| mapper(&control, DEV_REMOVE, &mut remove));
        return Err(error);
    }
    Ok(PathBuf::from(format!("/dev/dm-{}", minor(number))))
}

/// Removes a mapped device, now or when its last user has gone.
pub(super) fn unmap(name: &str) -> io::Result<()> {
    let control = OpenOptions::new().read(true).write(true).open(MAPPER)?;
    let mut remove = request(name)?;
    put(&mut remove, FLAGS_AT, &DEFERRED_REMOVE.to_le_bytes());
    mapper(&control, DEV_REMOVE, &mut remove)
}

fn load(control: &File, name: &str, target: &Target<'_>) -> io::Result<()> {
    if target.kind.len() > MAX_KIND {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut table = request(name)?;
    put(&mut table, 20, &1_u32.to_le_bytes());
    put(&mut table, FLAGS_AT, &SECURE_DATA.to_le_bytes());
    // With its final size from the start, so that no copy of a key is left where it grew.
    let size = HEADER + TARGET + target.parameters.len() + 1;
    let mut whole = Zeroizing::new(vec![0; size.next_multiple_of(8)]);
    put(&mut whole, 0, &table);
    put(&mut whole, HEADER + 8, &target.sectors.to_le_bytes());
    put(&mut whole, KIND_AT, target.kind.as_bytes());
    put(&mut whole, HEADER + TARGET, target.parameters.as_bytes());
    mapper(control, TABLE_LOAD, &mut whole)
}

/// A request about a device.
fn request(name: &str) -> io::Result<Vec<u8>> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut header = vec![0; HEADER];
    put(&mut header, 0, &4_u32.to_le_bytes());
    put(&mut header, 16, &312_u32.to_le_bytes());
    put(&mut header, NAME_AT, name.as_bytes());
    Ok(header)
}

fn put(to: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = to.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn number(header: &[u8]) -> u64 {
    let bytes = header.get(NUMBER_AT..NUMBER_AT + 8);
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// The kernel's encoding of a device's number: 8 bits of the minor, the major, the rest of the minor.
fn minor(number: u64) -> u64 {
    (number & 0xff) | ((number >> 12) & 0xfff_ff00)
}

/// A request to device-mapper, whose answer replaces it.
fn mapper(control: &File, command: u32, request: &mut [u8]) -> io::Result<()> {
    let size = u32::try_from(request.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if request.len() < HEADER {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    put(request, 12, &size.to_le_bytes());
    // SAFETY: the descriptor is open, and the kernel reads and writes no more than the size that the
    // line above puts into the request, which is the slice's own.
    let result = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            libc::Ioctl::from(DM | command),
            request.as_mut_ptr(),
        )
    };
    answer(result).map(drop)
}

/// A block device of `bytes` bytes in memory, which takes of it only what was written. It goes when nobody has it
/// open any more: whoever needs it opens it before the file that is answered is dropped.
pub(super) fn in_memory(bytes: u64) -> io::Result<(PathBuf, File)> {
    let memory = File::from(memfd_create("scratch-tags", MemfdFlags::CLOEXEC)?);
    memory.set_len(bytes)?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open(LOOP_CONTROL)?;
    loop {
        // SAFETY: the descriptor is open, and this request has no argument.
        let free =
            unsafe { libc::ioctl(control.as_raw_fd(), libc::Ioctl::from(LOOP_CTL_GET_FREE), 0) };
        let path = PathBuf::from(format!("/dev/loop{}", answer(free)?));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        match back(&device, &memory) {
            // Somebody else was told the same number, and came first.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            backed => return backed.map(|()| (path, device)),
        }
    }
}

/// Puts a file behind a loop device that has none.
fn back(device: &File, file: &File) -> io::Result<()> {
    let mut config = [0_u8; LOOP_CONFIG];
    put(&mut config, 0, &file.as_raw_fd().to_le_bytes());
    put(&mut config, LOOP_FLAGS_AT, &LOOP_AUTOCLEAR.to_le_bytes());
    // SAFETY: the descriptors are open, and the kernel only reads the structure, which outlives the call.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            libc::Ioctl::from(LOOP_CONFIGURE),
            config.as_ptr(),
        )
    };
    answer(result).map(drop)
}

fn answer(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_number_is_put_together_again() {
        assert_eq!(minor(0xfe_00), 0);
        assert_eq!(minor(0xfe_03), 3);
        assert_eq!(minor(0x10_fe_03), 0x103);
    }

    #[test]
    fn a_name_that_the_kernel_would_cut_is_refused() {
        assert!(request(&"a".repeat(MAX_NAME)).is_ok());
        assert!(request(&"a".repeat(MAX_NAME + 1)).is_err());
        assert!(request("").is_err());
    }
}
