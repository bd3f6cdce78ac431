//! The Authenticode hash of an EFI image, as firmware measures what it starts.
//!
//! The whole file counts but its checksum and what a signer adds: the entry that leads to the
//! signatures, and the signatures at the end. The steps are those of edk2's `MeasureBootPeCoff.c`, which
//! unlike a signer pads nothing. Where an image's parts overlap or lie outside of it, the firmware would
//! hash what it happens to find; such an image is refused.

use sha2::{Digest as _, Sha384};

use super::{
    Digest,
    bytes::{place_at, u16_at, u32_at},
};

/// The most bytes of an image.
const IMAGE_BYTES: usize = 1 << 30;
/// The most sections of an image; kernels have four to six.
const SECTIONS: u16 = 96;

const DOS: &[u8] = b"MZ";
const PE: &[u8] = b"PE\0\0";
/// Where the DOS header says where the PE header is.
const PE_AT: usize = 0x3c;
/// Signature and COFF header.
const COFF_BYTES: usize = 4 + 20;
const SECTION_BYTES: usize = 40;
/// The directory's entry for signatures.
const SIGNATURES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// A file that firmware would not start, or would not measure as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Another kind of file.
    #[error(
        "the kernel is no EFI image (no EFI stub): firmware would start it unmeasured, or not at all"
    )]
    NoImage,
    /// A file that contradicts itself.
    #[error("the kernel's PE header is broken: {0}")]
    Header(&'static str),
    /// A file that nobody starts.
    #[error("the kernel has {0} bytes: at most {IMAGE_BYTES} are measured here")]
    Length(usize),
}

/// What the hash needs of an image's headers.
struct Headers<'a> {
    /// From the PE header on.
    pe: &'a [u8],
    /// Where that is.
    start: usize,
    /// The checksum's place in it.
    checksum: usize,
    /// The place of the entry that leads to the signatures, where there is one.
    entry: Option<usize>,
    /// Bytes of signatures.
    signatures: usize,
    /// Bytes of all headers.
    bytes: usize,
}

impl<'a> Headers<'a> {
    fn of(image: &'a [u8]) -> Result<Self, ImageError> {
        const SHORT: ImageError = ImageError::Header("it is cut off");
        if !image.starts_with(DOS) {
            return Err(ImageError::NoImage);
        }
        let start = place_at(image, PE_AT).ok_or(SHORT)?;
        let pe = image.get(start..).ok_or(SHORT)?;
        if !pe.starts_with(PE) {
            return Err(ImageError::NoImage);
        }
        let optional = COFF_BYTES;
        // Where the directory begins in a PE32 and in a PE32+ header, behind the number of its entries.
        let directory = match u16_at(pe, optional) {
            Some(0x10b) => optional + 96,
            Some(0x20b) => optional + 112,
            _ => return Err(ImageError::Header("it is neither PE32 nor PE32+")),
        };
        let bytes = place_at(pe, optional + 60).ok_or(SHORT)?;
        let entries = u32_at(pe, directory - 4).ok_or(SHORT)?;
        let entry = (entries > 4).then_some(directory + SIGNATURES * ENTRY_BYTES);
        let signatures = match entry {
            Some(entry) => place_at(pe, entry + 4).ok_or(SHORT)?,
            None => 0,
        };
        Ok(Self {
            pe,
            start,
            checksum: optional + 64,
            entry,
            signatures,
            bytes,
        })
    }
}

/// Whether an image has signatures, whosever they are. Its headers are enough.
///
/// # Errors
/// When it is no image, or a broken one.
pub fn is_signed(image: &[u8]) -> Result<bool, ImageError> {
    Ok(Headers::of(image)?.signatures > 0)
}

/// The hash of an image.
///
/// # Errors
/// When it is no image, or a broken one.
pub fn authenticode(image: &[u8]) -> Result<Digest, ImageError> {
    if image.len() > IMAGE_BYTES {
        return Err(ImageError::Length(image.len()));
    }
    let headers = Headers::of(image)?;
    let mut hash = Hash::new(image);
    hash.up_to(headers.start + headers.checksum)?;
    hash.skip(4);
    if let Some(entry) = headers.entry {
        hash.up_to(headers.start + entry)?;
        hash.skip(ENTRY_BYTES);
    }
    hash.up_to(headers.bytes)?;
    for (start, bytes) in sections(headers.pe)? {
        hash.section(start, bytes)?;
    }
    let end = image.len().checked_sub(headers.signatures);
    let end = end.filter(|end| *end >= hash.at);
    hash.up_to(end.ok_or(ImageError::Header("its signatures lie in a section"))?)?;
    Ok(hash.sha.finalize().into())
}

/// Start and length of each section that has content, by their order in the file.
fn sections(pe: &[u8]) -> Result<Vec<(usize, usize)>, ImageError> {
    const SHORT: ImageError = ImageError::Header("its list of sections is cut off");
    let count = u16_at(pe, 4 + 2).ok_or(SHORT)?;
    let optional: usize = u16_at(pe, 4 + 16).ok_or(SHORT)?.into();
    if count > SECTIONS {
        return Err(ImageError::Header("it has more than 96 sections"));
    }
    let list = COFF_BYTES + optional;
    let mut sections = Vec::new();
    for number in 0..usize::from(count) {
        let at = list + number * SECTION_BYTES;
        let bytes = place_at(pe, at + 16).ok_or(SHORT)?;
        let start = place_at(pe, at + 20).ok_or(SHORT)?;
        if bytes > 0 {
            sections.push((start, bytes));
        }
    }
    sections.sort_unstable();
    Ok(sections)
}

/// The hash, and how far in the file it is.
struct Hash<'a> {
    image: &'a [u8],
    at: usize,
    sha: Sha384,
}

impl<'a> Hash<'a> {
    fn new(image: &'a [u8]) -> Self {
        Self {
            image,
            at: 0,
            sha: Sha384::new(),
        }
    }

    fn up_to(&mut self, end: usize) -> Result<(), ImageError> {
        let part = self.image.get(self.at..end);
        self.sha
            .update(part.ok_or(ImageError::Header("its parts do not follow each other"))?);
        self.at = end;
        Ok(())
    }

    fn skip(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes);
    }

    /// A section, which has to begin where the last one ended: firmware takes what is behind the sum of
    /// all lengths for the rest of the file, so that with a gap it would hash some bytes twice.
    fn section(&mut self, start: usize, bytes: usize) -> Result<(), ImageError> {
        const APART: ImageError = ImageError::Header(
            "its sections overlap, or leave a gap, in which firmware would not look",
        );
        let end = start.checked_add(bytes).ok_or(APART)?;
        if start != self.at || end > self.image.len() {
            return Err(APART);
        }
        self.up_to(end)
    }
}
