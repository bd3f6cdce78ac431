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

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::{ErrorCode, GuestError};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::fault::OrFail;
use crate::module::Ability;

pub use ask::{Encryption, Treatment, truth};
pub use ext4::{FILES, FILES_OF_VOLUME, LARGEST, SMALLEST};

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

/// How much memory tags may take together.
#[derive(Debug, Default)]
struct Memory(AtomicU64);

/// A part of it that is taken, until it is dropped.
#[derive(Debug)]
struct Taken {
    of: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// Takes a part, where the whole is an eighth of `total` bytes.
    fn take(self: &Arc<Self>, bytes: u64, total: u64) -> Option<Taken> {
        let most = total / MEMORY_PART;
        let add = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= most);
        let added = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let of = Arc::clone(self);
        added.is_ok().then(|| Taken { of, bytes })
    }

    /// Bytes of a disk of `size` bytes whose tags leave at least half of what there is to others; none where that
    /// is too little for a file system.
    fn fitting(&self, size: u64, total: u64) -> Option<u64> {
        let left = (total / MEMORY_PART).saturating_sub(self.0.load(Ordering::Relaxed));
        let most = (left / 2).saturating_sub(TAG_HEAD) / TAG * SECTOR;
        Some(size.min(most)).filter(|bytes| *bytes >= SMALLEST.min(size))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A disk as it is seen decrypted.
#[derive(Debug)]
pub struct Mapped {
    stack: Stack,
    node: PathBuf,
    bytes: u64,
    /// What its tags may take, where that is counted.
    _memory: Option<Taken>,
}

/// Devices of the kernel's mapper, each over the one before.
#[derive(Debug, Default)]
struct Stack(Vec<String>);

impl Stack {
    fn map(&mut self, name: String, target: &device::Target) -> Result<PathBuf, GuestError> {
        let node = device::map(&name, target).or_internal(PHASE, format!("dm-{}", target.kind))?;
        self.0.push(name);
        Ok(node)
    }

    /// Unmaps them from the top.
    fn close(&mut self) -> io::Result<()> {
        while let Some(name) = self.0.last() {
            device::unmap(name)?;
            self.0.pop();
        }
        Ok(())
    }
}

impl Mapped {
    /// Maps the first `bytes` bytes of a disk, with a key that is made here and with tags in memory that the caller
    /// has seen to be there. Nothing on the disk can be read before it is written.
    ///
    /// # Errors
    ///
    /// Names the step.
    pub fn authenticated(name: &str, disk: &Path, bytes: u64) -> Result<Self, GuestError> {
        let mut stack = Stack::default();
        let node = authenticate(&mut stack, name, disk, bytes);
        if node.is_err() {
            // Nobody would know of them.
            let _ = stack.close();
        }
        Ok(Self {
            node: node?,
            stack,
            bytes,
            _memory: None,
        })
    }

    /// Maps a disk.
    ///
    /// # Errors
    ///
    /// The disk has no whole number of sectors, the memory is too small for its tags, or names the step.
    fn disk(
        name: &str,
        disk: &Path,
        cipher: &Cipher,
        extent: Extent,
        memory: &Arc<Memory>,
    ) -> Result<Self, GuestError> {
        let bytes = size_of(disk).or_internal(PHASE, disk.display())?;
        if bytes == 0 || bytes % SECTOR != 0 {
            let text = format!("the disk has {bytes} bytes: use a multiple of {SECTOR}");
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        }
        match cipher {
            Cipher::Authenticated => {
                let bytes = match extent {
                    Extent::Whole => bytes,
                    Extent::Fitting => memory.fitting(bytes, memory_size()).unwrap_or(bytes),
                };
                let taken = memory.take(tags(bytes), memory_size()).ok_or_else(|| {
                    let text = format!(
                        "the tags of a disk of {bytes} bytes take up to {} bytes of memory, of which an \
                         eighth may go to tags: raise the memory of the VM (default_memory), use a \
                         smaller disk, or do without integrity (data_integrity=false)",
                        tags(bytes)
                    );
                    GuestError::new(ErrorCode::ResourceExhausted, PHASE, text)
                })?;
                let mapped = Self::authenticated(name, disk, bytes)?;
                Ok(Self {
                    _memory: Some(taken),
                    ..mapped
                })
            }
            Cipher::Plain(key) => {
                let crypt = device::Target {
                    kind: "crypt",
                    sectors: bytes / 512,
                    parameters: plain_table(disk, key),
                };
                let mut stack = Stack::default();
                let node = stack.map(name.to_owned(), &crypt)?;
                Ok(Self {
                    node,
                    stack,
                    bytes,
                    _memory: None,
                })
            }
        }
    }

    /// What is mounted.
    #[must_use]
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Makes an empty file system on it, for so many files.
    ///
    /// # Errors
    ///
    /// The disk is smaller than [`SMALLEST`] or larger than [`LARGEST`], or as write(2) fails.
    pub fn format(&self, files: u64) -> Result<(), GuestError> {
        format(&self.node, self.bytes, files)
    }

    /// Ends it as soon as nothing has it mounted or open any more; the key and the tags go with it.
    ///
    /// # Errors
    ///
    /// As the kernel refuses; it is mapped until the guest ends then.
    pub fn close(mut self) -> io::Result<()> {
        self.stack.close()
    }
}

/// Maps the first `bytes` bytes of a disk with tags in memory; answers the node.
fn authenticate(
    stack: &mut Stack,
    name: &str,
    disk: &Path,
    bytes: u64,
) -> Result<PathBuf, GuestError> {
    let size = size_of(disk).or_internal(PHASE, disk.display())?;
    let sectors = bytes / 512;
    let mut below = disk.to_owned();
    if bytes < size {
        // dm-integrity has tags for all of what is below it.
        let part = device::Target {
            kind: "linear",
            sectors,
            parameters: Zeroizing::new(format!("{} 0", disk.display())),
        };
        below = stack.map(format!("{name}-part"), &part)?;
    }
    let (tags, open) = device::in_memory(tags(bytes)).or_internal(PHASE, "a device for tags")?;
    let integrity = device::Target {
        kind: "integrity",
        sectors,
        parameters: Zeroizing::new(integrity_table(&below, &tags)),
    };
    let integrity = stack.map(format!("{name}-tags"), &integrity)?;
    // It is in use now, and goes with its user.
    drop(open);
    let crypt = device::Target {
        kind: "crypt",
        sectors,
        parameters: authenticated_table(&integrity)?,
    };
    stack.map(name.to_owned(), &crypt)
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

/// Data goes straight to its place (`D`): a write that a crash tears is lost with all the others.
fn integrity_table(data: &Path, tags: &Path) -> String {
    format!(
        "{} 0 {TAG} D 3 meta_device:{} block_size:{SECTOR} journal_sectors:1",
        data.display(),
        tags.display()
    )
}

/// With a random nonce for every write, of which 2^32 are safe under one key.
fn authenticated_table(below: &Path) -> Result<Zeroizing<String>, GuestError> {
    let key: Zeroizing<[u8; 32]> = random()?;
    let rest = format!("integrity:{TAG}:aead sector_size:{SECTOR}");
    Ok(crypt_table(
        "capi:gcm(aes)-random",
        key.as_slice(),
        below,
        &format!("2 {rest}"),
    ))
}

/// As cryptsetup maps it with `--cipher aes-xts-plain64 --key-size 512 --sector-size 4096`.
fn plain_table(disk: &Path, key: &Key) -> Zeroizing<String> {
    let rest = format!("1 sector_size:{SECTOR}");
    crypt_table("aes-xts-plain64", key.0.as_slice(), disk, &rest)
}

fn crypt_table(cipher: &str, key: &[u8], below: &Path, options: &str) -> Zeroizing<String> {
    // With its final size from the start, so that no copy of the key is left where it grew.
    let mut table = Zeroizing::new(String::with_capacity(512));
    let _ = write!(table, "{cipher} ");
    for byte in key {
        // Writing to a string does not fail.
        let _ = write!(table, "{byte:02x}");
    }
    let _ = write!(table, " 0 {} 0 {options}", below.display());
    table
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
/// There are fewer than [`SMALLEST`] or more than [`LARGEST`], or as write(2) fails.
pub fn format(device: &Path, bytes: u64, files: u64) -> Result<(), GuestError> {
    write_file_system(device, bytes, files).or_internal(PHASE, "make a file system")
}

fn write_file_system(device: &Path, bytes: u64, files: u64) -> io::Result<()> {
    let uuid = random().map_err(io::Error::other)?;
    let device = File::options().write(true).open(device)?;
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
    fn all_tags_together_take_an_eighth_of_the_memory_and_give_it_back() {
        let memory = Arc::new(Memory::default());
        let first = memory.take(60, 800).unwrap();
        assert!(memory.take(41, 800).is_none());
        assert!(memory.take(u64::MAX, 800).is_none());
        let second = memory.take(40, 800).unwrap();
        drop(first);
        assert!(memory.take(60, 800).is_some(), "and it was dropped at once");
        drop(second);
        assert!(memory.take(100, 800).is_some());
    }

    #[test]
    fn volumes_of_no_size_leave_half_of_the_memory_to_those_that_come_after() {
        let memory = Arc::new(Memory::default());
        let total = 2 << 30;
        let mut all = Vec::new();
        let mut last = u64::MAX;
        while let Some(bytes) = memory.fitting(1 << 40, total) {
            assert!(bytes < last && bytes % SECTOR == 0, "{bytes}");
            last = bytes;
            all.push(memory.take(tags(bytes), total).unwrap());
        }
        assert!((4..64).contains(&all.len()), "{}", all.len());
        drop(all);
        assert_eq!(memory.fitting(1 << 30, total), Some(1 << 30));
        assert_eq!(memory.fitting(1 << 40, 1 << 20), None);
    }

    #[test]
    fn the_key_is_new_each_time_and_no_table_is_without() {
        let tables: Vec<_> = (0..2)
            .map(|_| authenticated_table(Path::new("/dev/dm-0")).unwrap())
            .collect();
        let keys: Vec<_> = tables
            .iter()
            .map(|table| table.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!((keys[0].len(), keys[1].len()), (64, 64));
        assert_ne!(keys[0], keys[1]);
        assert!(tables[0].starts_with("capi:gcm(aes)-random "));
        assert!(tables[0].ends_with(" 0 /dev/dm-0 0 2 integrity:28:aead sector_size:4096"));
        let bytes: Vec<u8> = (0..64).collect();
        let table = plain_table(Path::new("/dev/sdb"), &Key::new(&bytes).unwrap());
        let head = "aes-xts-plain64 000102030405060708090a0b0c0d0e0f";
        assert!(table.starts_with(head), "{}", &table[..48]);
        assert!(table.ends_with("3f 0 /dev/sdb 0 1 sector_size:4096"));
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
