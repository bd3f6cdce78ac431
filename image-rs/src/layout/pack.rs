//! Writing an archive: the blobs are packed, piece by piece, into a file without a name, which at the end takes the
//! archive's in one step. So an archive which stood there stays until the new one is whole.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;

use tar::{EntryType, Header};

use super::stage::{Staged, Unnamed};
use super::{INDEX, LayoutError, MARKER, PIECE_BYTES, blob_name, failed};

/// The unit of a tar archive, in bytes.
const BLOCK: usize = 512;

/// What a header has room for of a name: a blob of SHA-512 has a longer one.
const NAME_BYTES: usize = 100;
/// How GNU tar calls the entry that has the name of the next one.
const LONG_NAME: &str = "././@LongLink";

/// An archive that is being written.
pub(super) struct Packing {
    out: Unnamed,
    left: VecDeque<Staged>,
    current: Option<Current>,
    buffer: Vec<u8>,
}

/// The blob whose header is written.
struct Current {
    blob: Staged,
    size: u64,
    left: u64,
}

impl Packing {
    /// Begins with what a reader wants first.
    pub(super) fn begin(
        archive: &Path,
        marker: &[u8],
        index: &[u8],
        blobs: Vec<Staged>,
    ) -> Result<Self, LayoutError> {
        let mut packing = Self {
            out: Unnamed::new_in(parent_of(archive))?,
            left: blobs.into(),
            current: None,
            buffer: vec![0; PIECE_BYTES],
        };
        let begun = packing.head(marker, index);
        begun.map_err(|source| failed("write", archive, source))?;
        Ok(packing)
    }

    fn head(&mut self, marker: &[u8], index: &[u8]) -> io::Result<()> {
        for (name, bytes) in [(MARKER, marker), (INDEX, index)] {
            self.header(name, EntryType::Regular, bytes.len() as u64)?;
            self.out.file().write_all(bytes)?;
            self.pad(bytes.len() as u64)?;
        }
        let algorithms = self.left.iter().map(|blob| blob.digest.algorithm().name());
        let mut algorithms: Vec<_> = algorithms.collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        self.header("blobs/", EntryType::Directory, 0)?;
        for name in algorithms {
            self.header(&format!("blobs/{name}/"), EntryType::Directory, 0)?;
        }
        Ok(())
    }

    /// Packs the next piece; `false` when all is packed.
    pub(super) fn step(&mut self) -> io::Result<bool> {
        match self.current.take() {
            None => {
                let Some(mut blob) = self.left.pop_front() else {
                    return Ok(false);
                };
                let size = blob.rewind()?;
                self.header(&blob_name(&blob.digest), EntryType::Regular, size)?;
                let left = size;
                self.current = Some(Current { blob, size, left });
            }
            Some(current) if current.left == 0 => self.pad(current.size)?,
            Some(mut current) => {
                let left = usize::try_from(current.left).unwrap_or(PIECE_BYTES);
                let piece = &mut self.buffer[..left.min(PIECE_BYTES)];
                let count = current.blob.read(piece)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.out.file().write_all(&piece[..count])?;
                current.left -= count as u64;
                self.current = Some(current);
            }
        }
        Ok(true)
    }

    /// Ends the archive and gives it its name.
    pub(super) fn end(mut self, archive: &Path) -> io::Result<()> {
        self.out.file().write_all(&[0; 2 * BLOCK])?;
        self.out.file().sync_all()?;
        self.out.name(archive)
    }

    /// Nothing of this machine or of this hour stands in it.
    fn header(&mut self, name: &str, kind: EntryType, size: u64) -> io::Result<()> {
        if name.len() > NAME_BYTES {
            let long = [name.as_bytes(), &[0]].concat();
            self.header(LONG_NAME, EntryType::GNULongName, long.len() as u64)?;
            self.out.file().write_all(&long)?;
            self.pad(long.len() as u64)?;
        }
        let mut header = Header::new_gnu();
        header.set_path(&name[..name.len().min(NAME_BYTES)])?;
        header.set_entry_type(kind);
        header.set_mode(match kind {
            EntryType::Directory => 0o755,
            _ => 0o644,
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.out.file().write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        let padding = (BLOCK - over) % BLOCK;
        self.out.file().write_all(&[0; BLOCK][..padding])
    }
}

pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
