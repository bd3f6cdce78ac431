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

/// The hash of an image.
///
/// # Errors
/// When it is no image, or a broken one.
pub fn authenticode(image: &[u8]) -> Result<Digest, ImageError> {
    const SHORT: ImageError = ImageError::Header("it is cut off");
    if image.len() > IMAGE_BYTES {
        return Err(ImageError::Length(image.len()));
    }
    if !image.starts_with(DOS) {
        return Err(ImageError::NoImage);
    }
    let header = place_at(image, PE_AT).ok_or(SHORT)?;
    let pe = image.get(header..).ok_or(SHORT)?;
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
    let checksum = optional + 64;
    let headers = place_at(pe, optional + 60).ok_or(SHORT)?;
    let entries = u32_at(pe, directory - 4).ok_or(SHORT)?;
    let signed = entries > 4;
    let entry = directory + SIGNATURES * ENTRY_BYTES;
    let signatures = if signed {
        place_at(pe, entry + 4).ok_or(SHORT)?
    } else {
        0
    };
    let mut hash = Hash::new(image);
    hash.up_to(header + checksum)?;
    hash.skip(4);
    if signed {
        hash.up_to(header + entry)?;
        hash.skip(ENTRY_BYTES);
    }
    hash.up_to(headers)?;
    for (start, bytes) in sections(pe)? {
        hash.section(start, bytes)?;
    }
    let end = image.len().checked_sub(signatures);
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
