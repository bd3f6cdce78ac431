//! The file: a fixed header, a list of headers, and the data that they point into.

use super::error::IgvmError;

/// Bytes of a file.
pub const IGVM_BYTES: usize = 256 * 1024 * 1024;
/// Bytes of all headers: 262144 pages.
const HEADERS_BYTES: usize = 8 * 1024 * 1024;

/// Magic, version, offset and length of the headers, length of the file, checksum.
const FIXED_WORDS: usize = 6;
/// Besides these, from version 2 on: architecture, bytes of a page.
const FIXED_WORDS_2: usize = 8;
/// Which of the words is the checksum.
const CHECKSUM: usize = 5;
/// Type and length of a header.
const TYPE_BYTES: usize = 8;

/// A file whose checksum is right.
#[derive(Debug)]
pub(super) struct File<'a> {
    bytes: &'a [u8],
    /// Where the headers begin.
    start: usize,
    /// Where they end, and data begins.
    end: usize,
}

/// A header: where it is, its type and its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header<'a> {
    pub(super) at: usize,
    pub(super) kind: u32,
    pub(super) content: &'a [u8],
}

impl<'a> File<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, IgvmError> {
        if bytes.len() > IGVM_BYTES {
            return Err(IgvmError::Size(bytes.len()));
        }
        const SHORT: IgvmError = IgvmError::Fixed("it ends within its first header");
        let words: [u32; FIXED_WORDS] = words(bytes).ok_or(SHORT)?;
        let [magic, version, offset, length, total, checksum] = words;
        if magic != u32::from_le_bytes(*b"IGVM") {
            return Err(IgvmError::Fixed("it does not begin with IGVM"));
        }
        let fixed = match version {
            1 => FIXED_WORDS * 4,
            2 => {
                page_of_x86(bytes)?;
                FIXED_WORDS_2 * 4
            }
            _ => return Err(IgvmError::Version(version)),
        };
        if size(total) != bytes.len() {
            return Err(IgvmError::Fixed("its length is not the one that it says"));
        }
        let (start, length) = (size(offset), size(length));
        if start < fixed || !start.is_multiple_of(8) {
            return Err(IgvmError::Fixed("its headers begin where they cannot"));
        }
        if length > HEADERS_BYTES {
            return Err(IgvmError::Fixed("its headers have more than 8 MiB"));
        }
        let end = start.saturating_add(length);
        let (Some(head), Some(headers)) = (bytes.get(..fixed), bytes.get(start..end)) else {
            return Err(IgvmError::Fixed("its headers lie outside of it"));
        };
        let found = sum(head, headers);
        if found != checksum {
            let said = checksum;
            return Err(IgvmError::Checksum { said, found });
        }
        Ok(Self { bytes, start, end })
    }

    /// The headers in their order.
    pub(super) fn headers(&self) -> Headers<'a> {
        Headers {
            bytes: self.bytes.get(..self.end).unwrap_or_default(),
            at: self.start,
        }
    }

    /// Data of this length; `None` where it is not in the part of the file that has data.
    pub(super) fn data(&self, offset: u32, length: usize) -> Option<&'a [u8]> {
        let start = size(offset);
        let end = start.checked_add(length)?;
        self.bytes.get(start..end).filter(|_| start >= self.end)
    }
}

/// The list of headers; it ends with the first that is broken.
#[derive(Debug)]
pub(super) struct Headers<'a> {
    /// The file up to the end of the headers.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<Header<'a>, IgvmError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let rest = self.bytes.get(at..).filter(|rest| !rest.is_empty())?;
        let header = words(rest).and_then(|[kind, length]| {
            let (length, body) = (size(length), rest.get(TYPE_BYTES..)?);
            // The next one begins at a multiple of eight bytes.
            body.get(..length.checked_next_multiple_of(8)?)?;
            let content = body.get(..length)?;
            Some(Header { at, kind, content })
        });
        let Some(header) = header else {
            self.at = self.bytes.len();
            let why = "does not end where all of them do";
            return Some(Err(IgvmError::Header { at, why }));
        };
        self.at = at + TYPE_BYTES + header.content.len().next_multiple_of(8);
        Some(Ok(header))
    }
}

/// Version 2 is for other machines too.
fn page_of_x86(bytes: &[u8]) -> Result<(), IgvmError> {
    match words::<FIXED_WORDS_2>(bytes) {
        Some([.., 0, 4096]) => Ok(()),
        Some(_) => Err(IgvmError::Fixed(
            "it is for another processor than x86-64, or for other pages than of 4096 bytes",
        )),
        None => Err(IgvmError::Fixed("it ends within its first header")),
    }
}

/// The CRC-32 of the fixed header, with zero in the checksum's place, and the other headers.
fn sum(fixed: &[u8], headers: &[u8]) -> u32 {
    let (before, rest) = fixed.split_at(CHECKSUM * 4);
    let mut crc = crc32fast::Hasher::new();
    crc.update(before);
    crc.update(&[0; 4]);
    crc.update(rest.get(4..).unwrap_or_default());
    crc.update(headers);
    crc.finalize()
}

/// Words at the beginning of bytes.
pub(super) fn words<const WORDS: usize>(bytes: &[u8]) -> Option<[u32; WORDS]> {
    let mut words = [0; WORDS];
    for (word, at) in words.iter_mut().zip((0..).step_by(4)) {
        *word = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    }
    Some(words)
}

/// A length that no file has where this machine cannot hold it.
fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
