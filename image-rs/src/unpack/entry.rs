//! One member of an archive, checked.

use super::sparse::Segment;

/// One entry, its content still to be read.
#[derive(Debug)]
pub struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the extended headers that it took.
    pub(super) header_bytes: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64 },
    Sparse { size: u64, map: Vec<Segment> },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

impl Entry {
    /// The name of a file, without what may stand before it.
    pub(crate) fn file_name(&self) -> Option<&[u8]> {
        let name = self.name.strip_prefix(b"./").unwrap_or(&self.name);
        matches!(self.kind, Kind::File { .. }).then_some(name)
    }
}
