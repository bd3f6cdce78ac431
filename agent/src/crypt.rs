//! Encrypted file systems on disks of the host's, which the guest does not trust.
//!
//! ```text
//!   authenticated:  ext4 ─► dm-crypt, AES-256-GCM ─► dm-integrity ─┬─ ciphertext ─► the host's disk
//!                                                                  └─ nonces, tags ─► a device in the guest's memory
//!   plain:          ext4 ─► dm-crypt, AES-256-XTS ─► the host's disk
//! ```
//!
//! Authenticated is what lives as long as the guest. The tags do not go with the ciphertext, as they do on a
//! disk that must survive: they stay in the guest's memory, 28 bytes for each 4 KiB that was written. So a host
//! that changes a block, moves it or brings back what stood there before gets an I/O error in the guest, and no
//! block that was never written can be read: nothing has to be wiped first.
//!
//! Plain is what `cryptsetup open --type plain` maps: no header, so none that the host could have written. It hides
//! what is on the disk; a host that changes a block makes noise of it, and one that brings back an old block is not
//! noticed.

mod ask;
mod device;
mod ext4;
mod mapped;
mod memory;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::{ErrorCode, GuestError};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::fault::OrFail;
use crate::module::Ability;

pub use ask::{Encryption, Treatment, truth};
pub use ext4::{FILES, FILES_OF_VOLUME, LARGEST, SMALLEST};
pub use mapped::Mapped;
use memory::Memory;

/// The image's name for the modules that encrypted disks need.
pub const ABILITY: &str = "encryption";
const PHASE: &str = "encryption";
/// Bytes of a sector of the encryption, and of the file system's blocks.
pub const SECTOR: u64 = ext4::BLOCK;
/// Bytes that each sector has in memory: a nonce of 12 and a tag of 16.
const TAG: u64 = 28;
/// Of the memory at most this part goes to tags.
const MEMORY_PART: u64 = 8;
/// What dm-integrity keeps before the tags: its superblock, and a journal that is not used.
const TAG_HEAD: u64 = 1 << 20;
/// Metadata in flight before it must have gone to the device.
const FORMAT_WINDOW: u64 = 32 << 20;

/// The key of a plain disk: both halves of AES-256-XTS, as cryptsetup reads them from a key file.
pub struct Key(Zeroizing<[u8; Self::BYTES]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Bytes of a key.
    pub const BYTES: usize = 64;

    /// One that nobody else has.
    ///
    /// # Errors
    ///
    /// The kernel gives no random bytes.
    pub fn random() -> Result<Self, GuestError> {
        random().map(Self)
    }

    /// The key of these bytes; none where they are not [`Self::BYTES`], or where both halves are the same, which
    /// makes XTS no cipher (IEEE 1619, and the kernel refuses it).
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; Self::BYTES] = bytes.try_into().ok()?;
        let key = Self(Zeroizing::new(bytes));
        let (first, second) = key.0.split_at(Self::BYTES / 2);
        (first != second).then_some(key)
    }
}

/// How much of a disk is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it, because somebody asked for a disk of this size.
    Whole,
    /// As much as leaves memory for the tags of others: nobody asked for a size.
    Fitting,
}

/// How a disk is encrypted.
#[derive(Debug)]
pub enum Cipher {
    /// With a key of its own and with tags in memory.
    Authenticated,
    /// With this key and without tags.
    Plain(Key),
}

/// What this guest encrypts disks with, beside the scratch disk.
#[derive(Debug, Default)]
pub struct Crypt {
    modules: Mutex<Option<Ability>>,
    memory: Arc<Memory>,
    kept: Mutex<Vec<Mapped>>,
}

impl Crypt {
    /// With modules that are loaded when the first disk comes.
    #[must_use]
    pub fn new(modules: Ability) -> Self {
        Self {
            modules: Mutex::new(Some(modules)),
            ..Self::default()
        }
    }

    /// Maps a disk, under a name that no other has. It may wait for the disk.
    ///
    /// # Errors
    ///
    /// The disk has no whole number of sectors, the memory is too small for its tags, or names the step.
    pub fn open(
        &self,
        name: &str,
        disk: &Path,
        cipher: &Cipher,
        extent: Extent,
    ) -> Result<Mapped, GuestError> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(modules) = modules.take() {
            modules.load().or_internal(PHASE, "load")?;
        }
        drop(modules);
        Mapped::disk(name, disk, cipher, extent, &self.memory)
    }

    /// Holds what stays until the guest ends, and the memory of its tags with it.
    pub fn keep(&self, mapped: Mapped) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(mapped);
    }
}

/// How much of a disk of `size` bytes is used with tags in a guest of `memory` bytes, and whether it is the memory
/// that ends it.
#[must_use]
pub fn usable(size: u64, memory: u64) -> (u64, bool) {
    let most = (memory / MEMORY_PART / TAG).saturating_mul(SECTOR);
    let whole = size / SECTOR * SECTOR;
    (whole.min(most).min(LARGEST), whole > most)
}

/// Bytes of memory that the tags of so many bytes take at most.
#[must_use]
pub fn tags(bytes: u64) -> u64 {
    TAG_HEAD + bytes / SECTOR * TAG
}

/// Bytes of the guest's memory.
#[must_use]
pub fn memory_size() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Bytes of a disk.
///
/// # Errors
///
/// It does not open.
pub fn size_of(disk: &Path) -> io::Result<u64> {
    File::open(disk)?.seek(SeekFrom::End(0))
}

/// From the kernel, once its generator is seeded.
fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, GuestError> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new().fill(&mut *bytes).map_err(|_| {
        let text = "the kernel gives no random bytes";
        GuestError::new(ErrorCode::Internal, PHASE, text)
    })?;
    Ok(bytes)
}

/// Makes an empty file system on the first `bytes` bytes of a device, for so many files.
///
/// # Errors
///
/// There are fewer than [`SMALLEST`] or more than [`LARGEST`], somebody uses it, or as write(2) fails.
pub fn format(device: &Path, bytes: u64, files: u64) -> Result<(), GuestError> {
    write_file_system(device, bytes, files).or_internal(PHASE, "make a file system")
}

fn write_file_system(device: &Path, bytes: u64, files: u64) -> io::Result<()> {
    let uuid = random().map_err(io::Error::other)?;
    // Nobody has it mounted or mapped.
    let flags = i32::try_from(OFlags::EXCL.bits()).map_err(io::Error::other)?;
    let mut options = File::options();
    let device = options.write(true).custom_flags(flags).open(device)?;
    let mut waiting = 0;
    ext4::format(bytes, files, *uuid, |at, data| {
        device.write_all_at(data, at)?;
        waiting += data.len() as u64;
        // A small guest has no memory for the metadata of a large disk.
        if waiting >= FORMAT_WINDOW {
            waiting = 0;
            device.sync_data()?;
        }
        Ok(())
    })?;
    device.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_tags_ends_a_disk_that_is_too_large_for_the_guest() {
        let (gib, mib) = (1 << 30, 1 << 20);
        assert_eq!(usable(gib + 512, 512 * mib), (gib, false));
        let (bytes, is_cut) = usable(1024 * gib, 512 * mib);
        assert!(is_cut && bytes > 8 * gib && bytes / SECTOR * TAG <= 64 * mib);
        assert_eq!(usable(u64::MAX, u64::MAX).0, LARGEST);
    }

    #[test]
    fn a_key_has_two_different_halves_and_is_not_shown() {
        let bytes: Vec<u8> = (0..64).collect();
        let key = Key::new(&bytes).unwrap();
        assert_eq!(format!("{key:?}"), "Key");
        assert!(Key::new(&bytes[..32]).is_none());
        assert!(Key::new(&[7; 64]).is_none());
        Key::random().unwrap();
    }
}
