//! Disks as they are seen decrypted: devices of the kernel's mapper, each over the one before.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use zeroize::Zeroizing;

use super::memory::{Memory, Taken};
use super::{
    Cipher, Extent, Key, PHASE, SECTOR, TAG, device, format, memory_size, random, size_of, tags,
};
use crate::fault::OrFail;

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
    pub(super) fn disk(
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
                let (bytes, taken) = with_tags(bytes, extent, memory)?;
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

/// How many of the bytes of a disk are used, and the memory for their tags.
fn with_tags(bytes: u64, extent: Extent, memory: &Arc<Memory>) -> Result<(u64, Taken), GuestError> {
    let total = memory_size();
    let (found, fix) = match extent {
        Extent::Whole => (
            memory.take(tags(bytes), total).map(|taken| (bytes, taken)),
            format!(
                "the tags of a disk of {bytes} bytes take up to {} bytes of memory, of which an eighth may go to tags: \
                 raise the memory of the VM (default_memory), use a smaller disk, or do without integrity \
                 (data_integrity=false)",
                tags(bytes)
            ),
        ),
        Extent::Fitting => (
            memory.take_fitting(bytes, total),
            "no memory is left for the tags of one more volume: raise the memory of the VM (default_memory), or use \
             fewer volumes on disks"
                .to_owned(),
        ),
    };
    found.ok_or_else(|| GuestError::new(ErrorCode::ResourceExhausted, PHASE, fix))
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
