//! A tar archive as a sequence of checked entries: ustar, GNU long names and numbers, PAX.
//!
//! The sequence is our own, because a general reader takes names of any length into memory, and lets a PAX size and
//! a ustar size disagree. Single headers are read with the `tar` crate. A kind of entry that we do not know ends it.

use std::io::Read;

use tar::{EntryType, Header};

use super::UnpackError;
use super::path::shown;
use super::pax::Extended;

const BLOCK: usize = 512;
/// Cap on one extended header or long name, in bytes.
const EXTENDED_BYTES_MAX: u64 = 1024 * 1024;

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
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64 },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Reads an archive.
#[derive(Debug)]
pub struct Archive<R> {
    reader: R,
    /// What is left of the entry's content.
    content: u64,
    /// What pads it to a block.
    padding: u64,
}

impl<R: Read> Archive<R> {
    /// Starts.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            content: 0,
            padding: 0,
        }
    }

    /// The reader, wherever it stands.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// The next entry; skips what is left of the one before.
    ///
    /// # Errors
    /// See [`UnpackError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|error| bad(&error))?;
            match header.entry_type() {
                EntryType::XHeader => extended = Extended::read(&self.extension(size)?)?,
                // Global headers carry comments (of `git archive`), which no layer needs.
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                EntryType::GNULongName => long_name = Some(without_nul(self.extension(size)?)),
                EntryType::GNULongLink => long_link = Some(without_nul(self.extension(size)?)),
                _ => {
                    let name = extended
                        .path
                        .take()
                        .or(long_name)
                        .unwrap_or_else(|| header.path_bytes().into_owned());
                    let link = extended.link.take().or(long_link);
                    return self.entry(&header, name, link, extended, size).map(Some);
                }
            }
        }
    }

    /// Reads the entry's content; 0 at its end.
    ///
    /// # Errors
    /// As the reader has them.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let wanted = usize::try_from(self.content)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self
            .reader
            .read(&mut buffer[..wanted])
            .map_err(UnpackError::Read)?;
        if count == 0 {
            return Err(UnpackError::Archive("it ends within a file".to_owned()));
        }
        self.content -= count as u64;
        Ok(count)
    }

    fn entry(
        &mut self,
        header: &Header,
        name: Vec<u8>,
        link: Option<Vec<u8>>,
        extended: Extended,
        size: u64,
    ) -> Result<Entry, UnpackError> {
        let link =
            || link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let kind = match header.entry_type() {
            // Before ustar, a directory was a file whose name ends in a slash.
            EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let size = extended.size.unwrap_or(size);
                self.expect(size);
                Kind::File { size }
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link()),
            EntryType::Link => Kind::HardLink(link()),
            EntryType::Char => {
                device(header).map(|(major, minor)| Kind::CharDevice { major, minor })?
            }
            EntryType::Block => {
                device(header).map(|(major, minor)| Kind::BlockDevice { major, minor })?
            }
            EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(UnpackError::Kind {
                    entry: shown(&name),
                    kind: format!("{other:?}"),
                });
            }
        };
        let old = header.as_old();
        let id = |wide: Option<u64>, field: &[u8], header: std::io::Result<u64>| {
            let id = wide.map_or_else(|| number(field, header), Ok)?;
            u32::try_from(id)
                .map_err(|_| UnpackError::Archive(format!("owner {id} is not a 32-bit number")))
        };
        let seconds = number(&old.mtime, header.mtime())?;
        let mode = number(&old.mode, header.mode().map(u64::from))?;
        Ok(Entry {
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: id(extended.uid, &old.uid, header.uid())?,
            gid: id(extended.gid, &old.gid, header.gid())?,
            mtime: extended
                .mtime
                .unwrap_or((i64::try_from(seconds).unwrap_or(0), 0)),
            xattrs: extended.xattrs,
            name,
            kind,
        })
    }

    /// Reads the next header; `None` at the end of the archive, or of the stream at a block's edge.
    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self
                .reader
                .read(&mut block[filled..])
                .map_err(UnpackError::Read)?
            {
                0 if filled == 0 => return Ok(None),
                0 => return Err(UnpackError::Archive("it ends within a header".to_owned())),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The sum counts its own eight bytes as spaces.
        let sum: u32 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|byte| u32::from(*byte))
            .sum::<u32>()
            + 8 * 32;
        match header.cksum() {
            Ok(found) if found == sum => Ok(Some(header)),
            _ => Err(UnpackError::Archive(
                "a header's checksum is wrong".to_owned(),
            )),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > EXTENDED_BYTES_MAX {
            return Err(UnpackError::limit(
                "bytes in an extended header",
                EXTENDED_BYTES_MAX,
            ));
        }
        self.expect(size);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += self.read_content(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    fn expect(&mut self, size: u64) {
        self.content = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let left = self.content.saturating_add(self.padding);
        let skipped = std::io::copy(&mut self.reader.by_ref().take(left), &mut std::io::sink());
        // The padding of the last file may be missing.
        if skipped.map_err(UnpackError::Read)? < self.content {
            return Err(UnpackError::Archive("it ends within a file".to_owned()));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }
}

fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}

fn device(header: &Header) -> Result<(u32, u32), UnpackError> {
    // GNU and ustar keep these two fields in the same place.
    let fields = header
        .as_ustar()
        .map(|ustar| (ustar.dev_major, ustar.dev_minor));
    let (major, minor) = fields
        .or_else(|| header.as_gnu().map(|gnu| (gnu.dev_major, gnu.dev_minor)))
        .unwrap_or_default();
    let read = |field: [u8; 8], value: std::io::Result<Option<u32>>| {
        let wide = number(&field, value.map(|number| number.unwrap_or(0).into()))?;
        u32::try_from(wide)
            .map_err(|_| UnpackError::Archive("a device number is too large".to_owned()))
    };
    Ok((
        read(major, header.device_major())?,
        read(minor, header.device_minor())?,
    ))
}

/// A field that is left blank is zero, as every other reader has it.
fn number(field: &[u8], value: std::io::Result<u64>) -> Result<u64, UnpackError> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    value.map_err(|error| bad(&error))
}

fn bad(error: &std::io::Error) -> UnpackError {
    UnpackError::Archive(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_archive_has_no_entries() {
        for bytes in [Vec::new(), vec![0; 1024]] {
            assert!(
                Archive::new(bytes.as_slice())
                    .next_entry()
                    .unwrap()
                    .is_none()
            );
        }
    }

    #[test]
    fn a_broken_header_is_refused() {
        let mut block = [0; BLOCK];
        block[0] = b'a';
        assert!(matches!(
            Archive::new(block.as_slice()).next_entry(),
            Err(UnpackError::Archive(_))
        ));
    }

    #[test]
    fn a_long_name_of_a_gigabyte_is_not_taken_into_memory() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 30);
        header.set_cksum();
        let error = Archive::new(header.as_bytes().as_slice())
            .next_entry()
            .unwrap_err();
        assert!(matches!(error, UnpackError::Limit { .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let mut header = Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(10);
        header.set_cksum();
        let bytes = [header.as_bytes().as_slice(), b"12345"].concat();
        let mut archive = Archive::new(bytes.as_slice());
        assert_eq!(
            archive.next_entry().unwrap().unwrap().kind,
            Kind::File { size: 10 }
        );
        assert!(matches!(archive.next_entry(), Err(UnpackError::Archive(_))));
    }
}
