//! A tar archive as a sequence of checked entries: ustar, GNU long names, numbers and sparse files, PAX.
//!
//! The sequence is our own, because a general reader takes names of any length into memory, and lets a PAX size and
//! a ustar size disagree. Single headers are read with the `tar` crate. A kind of entry that we do not know ends it.

use std::io::{BufRead, Read};

use tar::{EntryType, Header};

use super::entry::{Entry, Kind};
use super::header::{self, BLOCK, narrow, number, unsigned};
use super::path::shown;
use super::pax::Extended;
use super::sparse::{self, DataMap, Segment};
use super::{Limits, UnpackError};

/// Reads an archive.
#[derive(Debug)]
pub struct Archive<R> {
    reader: R,
    /// What is left of the entry's content.
    content: u64,
    /// What pads it to a block.
    padding: u64,
}

/// What stands before an entry's own header.
#[derive(Default)]
struct Before {
    extended: Extended,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    bytes: u64,
}

impl<R: Read + std::io::Seek> Archive<R> {
    /// Goes behind the entry's content without reading it; where it begins and how long it is.
    pub(crate) fn seek_behind(&mut self) -> Result<(u64, u64), UnpackError> {
        let position = self.reader.stream_position().map_err(UnpackError::Read)?;
        let length = std::mem::take(&mut self.content);
        let behind = length.checked_add(std::mem::take(&mut self.padding));
        let behind = behind.and_then(|behind| position.checked_add(behind));
        let behind = behind.ok_or(UnpackError::Number("size"))?;
        self.reader
            .seek(std::io::SeekFrom::Start(behind))
            .map_err(UnpackError::Read)?;
        Ok((position, length))
    }
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
    pub fn next_entry(&mut self, limits: &Limits) -> Result<Option<Entry>, UnpackError> {
        let mut before = Before::default();
        let mut block = [0; BLOCK];
        loop {
            self.skip()?;
            if !self.block(&mut block)? {
                // A header for an entry that does not come.
                return match before.bytes {
                    0 => Ok(None),
                    _ => Err(UnpackError::Truncated("an extended header")),
                };
            }
            let header = header::read(&block)?;
            let size = unsigned(&header.as_old().size, "size")?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let bytes = self.extension(size, &mut before, limits)?;
                    before.extended = Extended::read(&bytes, limits)?;
                }
                // Global headers carry comments (of `git archive`), which no layer needs.
                EntryType::XGlobalHeader => drop(self.extension(size, &mut before, limits)?),
                EntryType::GNULongName => {
                    let name = self.extension(size, &mut before, limits)?;
                    before.long_name = Some(without_nul(name));
                }
                EntryType::GNULongLink => {
                    let name = self.extension(size, &mut before, limits)?;
                    before.long_link = Some(without_nul(name));
                }
                _ => return self.entry(header, before, size, limits).map(Some),
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
            return Err(UnpackError::Truncated("a file"));
        }
        self.content -= count as u64;
        Ok(count)
    }

    /// Lets `take` have the next of the entry's content where it lies, at most `limit` bytes; how many, 0 at its end.
    pub(super) fn take_content(
        &mut self,
        limit: u64,
        take: impl FnOnce(&[u8]) -> Result<(), UnpackError>,
    ) -> Result<usize, UnpackError>
    where
        R: BufRead,
    {
        let wanted = usize::try_from(self.content.min(limit)).unwrap_or(usize::MAX);
        if wanted == 0 {
            return Ok(0);
        }
        let available = loop {
            match self.reader.fill_buf() {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                available => break available.map_err(UnpackError::Read)?,
            }
        };
        if available.is_empty() {
            return Err(UnpackError::Truncated("a file"));
        }
        let count = wanted.min(available.len());
        take(&available[..count])?;
        self.reader.consume(count);
        self.content -= count as u64;
        Ok(count)
    }

    fn entry(
        &mut self,
        header: &Header,
        mut before: Before,
        size: u64,
        limits: &Limits,
    ) -> Result<Entry, UnpackError> {
        let mut extended = std::mem::take(&mut before.extended);
        let sparse_name = extended.sparse.as_mut().and_then(|map| map.name.take());
        let name = sparse_name
            .or_else(|| extended.path.take())
            .or_else(|| before.long_name.take())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extended.link.take().or_else(|| before.long_link.take());
        let link =
            || link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        if extended.access_list {
            return Err(UnpackError::AccessList(shown(&name)));
        }
        let kind =
            match header.entry_type() {
                // Before ustar, a directory was a file whose name ends in a slash. What would be its content is read
                // as headers by some readers and passed over by others.
                EntryType::Regular if name.ends_with(b"/") => {
                    if extended.size.unwrap_or(size) > 0 {
                        return Err(UnpackError::Content(shown(&name)));
                    }
                    Kind::Directory
                }
                EntryType::Regular | EntryType::Continuous => {
                    self.file(&name, &mut extended, &mut before, size, limits)?
                }
                EntryType::GNUSparse => {
                    self.old_sparse(header, &name, &extended, &mut before, size, limits)?
                }
                EntryType::Directory => Kind::Directory,
                EntryType::Symlink => Kind::Symlink(link()),
                EntryType::Link => Kind::HardLink(link()),
                EntryType::Char => header::device(header)
                    .map(|(major, minor)| Kind::CharDevice { major, minor })?,
                EntryType::Block => header::device(header)
                    .map(|(major, minor)| Kind::BlockDevice { major, minor })?,
                EntryType::Fifo => Kind::Fifo,
                other => {
                    return Err(UnpackError::Kind {
                        entry: shown(&name),
                        kind: format!("{other:?}"),
                    });
                }
            };
        let old = header.as_old();
        let id =
            |wide: Option<u32>, field: &[u8], name| wide.map_or_else(|| narrow(field, name), Ok);
        let mode = number(&old.mode, "mode")? & 0o7777;
        Ok(Entry {
            mode: u32::try_from(mode).unwrap_or(0),
            uid: id(extended.uid, &old.uid, "uid")?,
            gid: id(extended.gid, &old.gid, "gid")?,
            mtime: match extended.mtime {
                Some(mtime) => mtime,
                None => (number(&old.mtime, "mtime")?, 0),
            },
            xattrs: extended.xattrs,
            header_bytes: before.bytes,
            name,
            kind,
        })
    }

    /// A file, or a sparse one as PAX has it.
    fn file(
        &mut self,
        name: &[u8],
        extended: &mut Extended,
        before: &mut Before,
        size: u64,
        limits: &Limits,
    ) -> Result<Kind, UnpackError> {
        let stored = extended.size.unwrap_or(size);
        self.expect(stored);
        let Some(mut said) = extended.sparse.take() else {
            return Ok(Kind::File { size: stored });
        };
        let map = match said.map()? {
            Some(map) => map,
            None => self.data_map(before, limits)?,
        };
        let size = said.size.ok_or(UnpackError::Number("sparse size"))?;
        sparse::check(&map, size, self.content, name)?;
        Ok(Kind::Sparse { size, map })
    }

    /// The map that stands before the data, in blocks of its own.
    fn data_map(
        &mut self,
        before: &mut Before,
        limits: &Limits,
    ) -> Result<Vec<Segment>, UnpackError> {
        let mut map = DataMap::default();
        let mut block = [0; BLOCK];
        loop {
            before.count(BLOCK as u64, limits)?;
            let mut filled = 0;
            while filled < BLOCK {
                match self.read_content(&mut block[filled..])? {
                    0 => return Err(UnpackError::Truncated("a sparse map")),
                    count => filled += count,
                }
            }
            if let Some(map) = map.add(&block)? {
                return Ok(map);
            }
        }
    }

    /// A sparse file as GNU tar wrote it before PAX.
    fn old_sparse(
        &mut self,
        header: &Header,
        name: &[u8],
        extended: &Extended,
        before: &mut Before,
        size: u64,
        limits: &Limits,
    ) -> Result<Kind, UnpackError> {
        let gnu = header.as_gnu().ok_or_else(|| UnpackError::Kind {
            entry: shown(name),
            kind: "sparse without a GNU header".to_owned(),
        })?;
        let real = unsigned(&gnu.realsize, "sparse size")?;
        let (mut map, mut more) = header::sparse(gnu)?;
        let mut block = [0; BLOCK];
        while more {
            before.count(BLOCK as u64, limits)?;
            if !self.fill(&mut block)? {
                return Err(UnpackError::Truncated("a sparse map"));
            }
            let next = header::more_sparse(&block)?;
            map.extend(next.0);
            more = next.1;
        }
        self.expect(extended.size.unwrap_or(size));
        sparse::check(&map, real, self.content, name)?;
        Ok(Kind::Sparse { size: real, map })
    }

    /// Reads the next block; `false` at the end of the archive, or of the stream at a block's edge. Two blocks of zeros
    /// end it: what stood behind only one would be there for some readers and not for others.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let is_zero = |block: &[u8; BLOCK]| block.iter().all(|byte| *byte == 0);
        if !self.fill(block)? {
            return Ok(false);
        }
        if !is_zero(block) {
            return Ok(true);
        }
        match self.fill(block)? && !is_zero(block) {
            true => Err(UnpackError::Archive(
                "something stands behind a lone block of zeros".to_owned(),
            )),
            false => Ok(false),
        }
    }

    /// Fills a block; `false` at the end of the stream.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, UnpackError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self
                .reader
                .read(&mut block[filled..])
                .map_err(UnpackError::Read)?
            {
                0 if filled == 0 => return Ok(false),
                0 => return Err(UnpackError::Truncated("a header")),
                count => filled += count,
            }
        }
        Ok(true)
    }

    fn extension(
        &mut self,
        size: u64,
        before: &mut Before,
        limits: &Limits,
    ) -> Result<Vec<u8>, UnpackError> {
        // With its header, so that empty ones are not free either.
        before.count(size.saturating_add(BLOCK as u64), limits)?;
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
        if left == 0 {
            return Ok(());
        }
        let skipped = std::io::copy(&mut self.reader.by_ref().take(left), &mut std::io::sink());
        // The padding of the last file may be missing.
        if skipped.map_err(UnpackError::Read)? < self.content {
            return Err(UnpackError::Truncated("a file"));
        }
        (self.content, self.padding) = (0, 0);
        Ok(())
    }
}

impl Before {
    fn count(&mut self, bytes: u64, limits: &Limits) -> Result<(), UnpackError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > limits.header_bytes {
            return Err(UnpackError::limit("header_bytes", limits.header_bytes));
        }
        Ok(())
    }
}

fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(bytes: &[u8]) -> Result<Option<Entry>, UnpackError> {
        Archive::new(bytes).next_entry(&Limits::default())
    }

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    #[test]
    fn an_empty_archive_has_no_entries() {
        for bytes in [Vec::new(), vec![0; 1024]] {
            assert!(next(&bytes).unwrap().is_none());
        }
    }

    #[test]
    fn a_broken_header_is_refused() {
        let mut block = [0; BLOCK];
        block[0] = b'a';
        assert!(matches!(next(&block), Err(UnpackError::Checksum)));
    }

    #[test]
    fn a_long_name_of_a_gigabyte_is_not_taken_into_memory() {
        let header = header(EntryType::GNULongName, 1 << 30);
        let error = next(header.as_bytes()).unwrap_err();
        assert!(matches!(error, UnpackError::Limit { .. }), "{error}");
    }

    #[test]
    fn headers_without_end_are_not_read_without_end() {
        let one = header(EntryType::XGlobalHeader, 0);
        let error = next(&one.as_bytes().repeat(3000)).unwrap_err();
        assert!(
            matches!(
                error,
                UnpackError::Limit {
                    setting: "header_bytes",
                    ..
                }
            ),
            "{error}"
        );
        let error = next(one.as_bytes()).unwrap_err();
        assert!(matches!(error, UnpackError::Truncated(_)), "{error}");
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let mut header = header(EntryType::Regular, 10);
        header.set_path("a").unwrap();
        header.set_cksum();
        let bytes = [header.as_bytes().as_slice(), b"12345"].concat();
        let (mut archive, limits) = (Archive::new(bytes.as_slice()), Limits::default());
        assert_eq!(
            archive.next_entry(&limits).unwrap().unwrap().kind,
            Kind::File { size: 10 }
        );
        assert!(matches!(
            archive.next_entry(&limits),
            Err(UnpackError::Truncated(_))
        ));
    }
}
