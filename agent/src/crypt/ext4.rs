//! Makes an ext4 file system, in the one shape that a disk of the guest's own needs: no journal, because nothing
//! is read after a crash; no checksums, because the layer below authenticates every block; no spare
//! copies of the superblock. The layout is that of the kernel's `Documentation/filesystems/ext4`.
//!
//! ```text
//!   superblock, descriptors │ block bitmaps │ inode bitmaps │ inode tables │ root, lost+found │ free
//!   block 0                   one a group     one a group     all groups'
//! ```
//!
//! The device below has no valid tag for a block that was never written, and reading one is an error.
//! So every block that the kernel reads before it has written it itself is written here, the tables of
//! inodes too: two files that are made at once may share a block of them. That is most of what an empty file
//! system takes of the host's disk, and grows with the number of files that there may be: 256 bytes for each.

use std::io;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
/// Blocks of a group: as many as a bitmap of one block has bits.
const GROUP_BLOCKS: u64 = BLOCK * 8;
/// Bytes of an inode: 256 have room for times in nanoseconds and for small attributes.
const INODE: u64 = 256;
/// Inodes of a block.
const BLOCK_INODES: u64 = BLOCK / INODE;
/// Inodes of a group: one for 16 KiB, as mke2fs(8) has them. Each has to be zeroed first.
const GROUP_INODES: u64 = 8192;
/// Files of a disk by itself, but for one so large that a block of inodes in each group makes more.
pub const FILES: u64 = 1 << 20;
/// The same of a pod's volume, to whose limit what an empty one takes is counted: 32 MiB.
pub const FILES_OF_VOLUME: u64 = 1 << 17;
/// Bytes of a group's descriptor.
const DESCRIPTOR: u64 = 32;
/// Zeroes are written this many bytes at a time.
const ZEROES: usize = 1 << 20;

/// The smallest disk, in bytes.
pub const SMALLEST: u64 = 16 << 20;
/// The largest: block numbers have 32 bits.
pub const LARGEST: u64 = (1 << 32) * BLOCK;

const ROOT_INODE: u64 = 2;
/// `lost+found`, and the last inode that is in use.
const LOST_INODE: u64 = 11;
const DIRECTORY: u16 = 0o040_000;

/// `ext_attr`, `dir_index`, and `sparse_super2`, which may have no backups at all.
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// `filetype`, `extents`, and `flex_bg`, which lets metadata lie outside of its group.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
/// `large_file`, `huge_file`, `dir_nlink`, `extra_isize`.
const READ_ONLY: u32 = 0x2 | 0x8 | 0x20 | 0x40;

/// Where the parts are, in blocks.
#[derive(Debug, Clone, Copy)]
struct Layout {
    blocks: u64,
    groups: u64,
    /// Inodes of a group, and the blocks of their table.
    inodes: u64,
    table: u64,
    block_bitmaps: u64,
    inode_bitmaps: u64,
    tables: u64,
    /// The root directory's block; that of `lost+found` follows.
    root: u64,
    /// The first block that is free.
    free: u64,
}

impl Layout {
    fn of(bytes: u64, files: u64) -> Option<Self> {
        if !(SMALLEST..=LARGEST).contains(&bytes) {
            return None;
        }
        // The number of the last block must fit as well.
        let blocks = (bytes / BLOCK).min(u64::from(u32::MAX));
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let table = (files / groups).min(GROUP_INODES).div_ceil(BLOCK_INODES);
        let block_bitmaps = 1 + (groups * DESCRIPTOR).div_ceil(BLOCK);
        let inode_bitmaps = block_bitmaps + groups;
        let tables = inode_bitmaps + groups;
        let root = tables + groups * table;
        Some(Self {
            blocks,
            groups,
            inodes: table * BLOCK_INODES,
            table,
            block_bitmaps,
            inode_bitmaps,
            tables,
            root,
            free: root + 2,
        })
    }

    /// Blocks of a group, and how many of them are in use.
    fn group(&self, group: u64) -> (u64, u64) {
        let first = group * GROUP_BLOCKS;
        let size = GROUP_BLOCKS.min(self.blocks - first);
        (size, self.free.saturating_sub(first).min(size))
    }

    /// Inodes of a group that are in use.
    fn inodes_used(group: u64) -> u64 {
        if group == 0 { LOST_INODE } else { 0 }
    }
}

/// Writes a file system of `bytes` bytes for `files` files through `write`, which takes a place and what goes
/// there: always whole blocks.
///
/// # Errors
///
/// The disk is smaller than [`SMALLEST`] or larger than [`LARGEST`], or `write`'s own.
pub(super) fn format(
    bytes: u64,
    files: u64,
    uuid: [u8; 16],
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let layout = Layout::of(bytes, files).ok_or_else(|| {
        let text = format!("{bytes} bytes, and a file system has {SMALLEST} to {LARGEST}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    write(0, &superblock(&layout, uuid))?;
    write(BLOCK, &descriptors(&layout))?;
    for group in 0..layout.groups {
        let (size, used) = layout.group(group);
        let bitmap = bitmap(used, size);
        write((layout.block_bitmaps + group) * BLOCK, &bitmap)?;
    }
    for group in 0..layout.groups {
        let bitmap = self::bitmap(Layout::inodes_used(group), layout.inodes);
        write((layout.inode_bitmaps + group) * BLOCK, &bitmap)?;
    }
    zero(
        layout.tables * BLOCK,
        layout.groups * layout.table * BLOCK,
        &mut write,
    )?;
    write(layout.tables * BLOCK, &first_inodes(&layout))?;
    write(layout.root * BLOCK, &root_directory())?;
    write((layout.root + 1) * BLOCK, &lost_directory())
}

fn zero(
    mut at: u64,
    mut count: u64,
    write: &mut impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let zeroes = vec![0; ZEROES];
    while count > 0 {
        let piece = usize::try_from(count).map_or(ZEROES, |count| count.min(ZEROES));
        write(at, &zeroes[..piece])?;
        at += piece as u64;
        count -= piece as u64;
    }
    Ok(())
}

/// A block of which the first `used` bits are set, and those from `size` on, which stand for nothing.
fn bitmap(used: u64, size: u64) -> Page {
    let mut page = Page::new();
    let bits = (0..used).chain(size..GROUP_BLOCKS);
    for bit in bits {
        let byte = usize::try_from(bit / 8).unwrap_or(usize::MAX);
        if let Some(byte) = page.0.get_mut(byte) {
            *byte |= 1 << (bit % 8);
        }
    }
    page
}

/// Field names are those of `struct ext4_super_block`. Times stay zero: nobody looks at them.
fn superblock(layout: &Layout, uuid: [u8; 16]) -> Page {
    let inodes = layout.groups * layout.inodes;
    let mut page = Page::new();
    // The superblock is the second KiB of the disk.
    let mut put = |at: usize, value: &[u8]| page.put(1024 + at, value);
    put(0x00, &low(inodes)); // s_inodes_count
    put(0x04, &low(layout.blocks)); // s_blocks_count_lo
    put(0x0c, &low(layout.blocks - layout.free)); // s_free_blocks_count_lo
    put(0x10, &low(inodes - LOST_INODE)); // s_free_inodes_count
    put(0x18, &2_u32.to_le_bytes()); // s_log_block_size: 1024 << 2
    put(0x1c, &2_u32.to_le_bytes()); // s_log_cluster_size
    put(0x20, &low(GROUP_BLOCKS)); // s_blocks_per_group
    put(0x24, &low(GROUP_BLOCKS)); // s_clusters_per_group
    put(0x28, &low(layout.inodes)); // s_inodes_per_group
    put(0x36, &u16::MAX.to_le_bytes()); // s_max_mnt_count: never checked
    put(0x38, &0xef53_u16.to_le_bytes()); // s_magic
    put(0x3a, &1_u16.to_le_bytes()); // s_state: cleanly unmounted
    put(0x3c, &2_u16.to_le_bytes()); // s_errors: go read-only
    put(0x4c, &1_u32.to_le_bytes()); // s_rev_level
    put(0x54, &low(LOST_INODE)); // s_first_ino
    put(0x58, &short(INODE)); // s_inode_size
    put(0x5c, &COMPATIBLE.to_le_bytes());
    put(0x60, &INCOMPATIBLE.to_le_bytes());
    put(0x64, &READ_ONLY.to_le_bytes());
    put(0x68, &uuid);
    put(0xec, &uuid); // s_hash_seed
    put(0xfc, &[1]); // s_def_hash_version: half MD4
    put(0x15c, &32_u16.to_le_bytes()); // s_min_extra_isize
    put(0x15e, &32_u16.to_le_bytes()); // s_want_extra_isize
    put(0x160, &1_u32.to_le_bytes()); // s_flags: hashes take characters as signed
    put(0x174, &[4]); // s_log_groups_per_flex
    page
}

fn descriptors(layout: &Layout) -> Vec<u8> {
    let blocks = layout.block_bitmaps - 1;
    let mut all = Vec::new();
    for group in 0..layout.groups {
        let (size, used) = layout.group(group);
        let inodes = Layout::inodes_used(group);
        // The root and `lost+found` are the only directories.
        let directories = if group == 0 { 2_u16 } else { 0 };
        all.extend(low(layout.block_bitmaps + group));
        all.extend(low(layout.inode_bitmaps + group));
        all.extend(low(layout.tables + group * layout.table));
        all.extend(short(size - used));
        all.extend(short(layout.inodes - inodes));
        all.extend(directories.to_le_bytes());
        all.resize(all.len().next_multiple_of(32), 0);
    }
    all.resize(usize::try_from(blocks * BLOCK).unwrap_or_default(), 0);
    all
}

/// The first block of the first table of inodes: the root and `lost+found` are in it.
fn first_inodes(layout: &Layout) -> Page {
    let mut page = Page::new();
    let mut inode = |number: u64, mode: u16, links: u16, block: u64| {
        let at = usize::try_from((number - 1) * INODE).unwrap_or_default();
        let mut put = |offset: usize, value: &[u8]| page.put(at + offset, value);
        put(0x00, &(DIRECTORY | mode).to_le_bytes()); // i_mode
        put(0x04, &low(BLOCK)); // i_size_lo
        put(0x1a, &links.to_le_bytes()); // i_links_count
        put(0x1c, &low(BLOCK / 512)); // i_blocks_lo
        put(0x20, &0x0008_0000_u32.to_le_bytes()); // i_flags: extents
        put(0x28, &0xf30a_u16.to_le_bytes()); // the extent tree's eh_magic
        put(0x2a, &1_u16.to_le_bytes()); // eh_entries
        put(0x2c, &4_u16.to_le_bytes()); // eh_max
        put(0x38, &1_u16.to_le_bytes()); // the extent's ee_len
        put(0x3c, &low(block)); // ee_start_lo
        put(0x80, &32_u16.to_le_bytes()); // i_extra_isize
    };
    inode(ROOT_INODE, 0o755, 3, layout.root);
    inode(LOST_INODE, 0o700, 2, layout.root + 1);
    page
}

fn root_directory() -> Page {
    directory(&[
        (ROOT_INODE, "."),
        (ROOT_INODE, ".."),
        (LOST_INODE, "lost+found"),
    ])
}

fn lost_directory() -> Page {
    directory(&[(LOST_INODE, "."), (ROOT_INODE, "..")])
}

/// A directory of one block with directories in it; the last entry takes the rest of the block.
fn directory(entries: &[(u64, &str)]) -> Page {
    let mut page = Page::new();
    let mut at = 0;
    for (index, (inode, name)) in entries.iter().enumerate() {
        let length = if index + 1 == entries.len() {
            page.0.len() - at
        } else {
            (8 + name.len()).next_multiple_of(4)
        };
        page.put(at, &low(*inode));
        page.put(at + 4, &short(length as u64));
        page.put(at + 6, &[u8::try_from(name.len()).unwrap_or(u8::MAX), 2]);
        page.put(at + 8, name.as_bytes());
        at += length;
    }
    page
}

/// Of a number that [`Layout::of`] keeps below 2^32.
fn low(number: u64) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

/// Of a number that is at most [`GROUP_BLOCKS`].
fn short(number: u64) -> [u8; 2] {
    u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes()
}

/// One block in the making.
struct Page(Vec<u8>);

impl Page {
    fn new() -> Self {
        Self(vec![0; 4096])
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

impl std::ops::Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    use super::*;

    fn checked(bytes: u64, files: u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        let mut written = std::collections::BTreeSet::new();
        format(bytes, files, [7; 16], |at, data| {
            assert_eq!((at % BLOCK, data.len() as u64 % BLOCK), (0, 0));
            written.extend((at / BLOCK)..(at + data.len() as u64) / BLOCK);
            file.write_all_at(data, at)
        })
        .unwrap();
        // Metadata without a gap: the device below answers for no block that was never written.
        let layout = Layout::of(bytes, files).unwrap();
        assert!(written.iter().copied().eq(0..layout.free), "{bytes}");
        for tool in ["e2fsck", "/usr/sbin/e2fsck", "/sbin/e2fsck"] {
            if let Ok(output) = Command::new(tool).args(["-fn"]).arg(&path).output() {
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success(), "{bytes}: {said}");
                return;
            }
        }
        assert!(
            std::env::var_os("CLOISTER_NO_SKIP").is_none(),
            "there is no e2fsck"
        );
        println!("skipped: there is no e2fsck");
    }

    #[test]
    fn e2fsck_finds_nothing_to_mend_whatever_the_size() {
        let group = GROUP_BLOCKS * BLOCK;
        for bytes in [
            SMALLEST,
            SMALLEST + BLOCK + 1,
            group - BLOCK,
            group,
            group + BLOCK,
            3 * group + 12_345,
            2 << 30,
        ] {
            checked(bytes, FILES);
        }
        checked(2 << 30, FILES_OF_VOLUME / 8);
    }

    #[test]
    fn a_disk_that_is_too_small_or_too_large_is_refused() {
        for bytes in [0, SMALLEST - 1, LARGEST + 1] {
            let error = format(bytes, FILES, [0; 16], |_, _| {
                panic!("{bytes} was written to")
            });
            assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_large_disk_does_not_have_more_to_zero() {
        for bytes in [32 << 30, 1 << 40, LARGEST] {
            let layout = Layout::of(bytes, FILES).unwrap();
            assert!(layout.groups * layout.table * BLOCK <= 512 << 20, "{bytes}");
            assert!(layout.free < layout.blocks, "{bytes}");
        }
        // Of a pod's volume, all that is written: its limit may be small.
        for bytes in [4 << 30, 32 << 30, 256 << 30] {
            let layout = Layout::of(bytes, FILES_OF_VOLUME).unwrap();
            assert!(layout.free * BLOCK <= 49 << 20, "{bytes}: {}", layout.free);
        }
    }
}
