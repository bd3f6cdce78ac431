//! OVMF, as far as a launch depends on it: its bytes, and what it says of itself at its end.
//!
//! Three entries of its table count: where a second vCPU begins, where the table of hashes goes, and
//! where the SEV metadata is, a list of memory that the guest has to own before it starts. What the
//! metadata asks for and we do not know is refused: QEMU would put zeros there, another VMM something
//! else.
//!
//! Source: edk2's `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`.

use super::{
    PAGE,
    chain::{Chain, LaunchDigest},
    hashes::PADDED_BYTES,
};
pub use crate::ovmf::FIRMWARE_BYTES;
use crate::{
    guid::guid,
    ovmf::{Entries, TableError},
};

/// Sections of the metadata.
const SECTIONS: usize = 64;
/// Bytes of a section.
const SECTION_BYTES: u32 = 64 * 1024 * 1024;

/// Where an image ends in the guest's memory.
const END: u64 = 1 << 32;
/// Signature, length, version and number of sections.
const HEADER_BYTES: usize = 4 * 4;
/// Address, length and kind of a section.
const SECTION_ENTRY_BYTES: usize = 3 * 4;
const METADATA_VERSION: u32 = 1;

const RESET: [u8; 16] = guid(0x00f7_71de, 0x1a7e, 0x4fcb, 0x890e_68c7_7e2f_b44e);
const HASHES: [u8; 16] = guid(0x7255_371f, 0x3a3b, 0x4b04, 0x927b_1da6_efa8_d454);
const METADATA: [u8; 16] = guid(0xdc88_6566, 0x984a, 0x4798, 0xa75e_5585_a7bf_67cc);

/// What has to be in a place before the guest starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// Zeros.
    Memory,
    /// The page in which the security processor leaves the guest's secrets.
    Secrets,
    /// The page of CPUID answers.
    Cpuid,
    /// Where the guest and a module of VMPL 0 call each other.
    CallingArea,
    /// The page of hashes.
    KernelHashes,
}

/// A part of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// What has to be in it.
    pub kind: SectionKind,
    /// Where it begins.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
}

/// A firmware that can start an SNP guest.
#[derive(Debug, Clone)]
pub struct Firmware {
    digest: LaunchDigest,
    sections: Vec<Section>,
    /// Where a vCPU begins that is not the first.
    reset: Option<u32>,
    /// Where the table of hashes is in its page.
    hashes: Option<usize>,
}

/// An image that is no firmware for SNP, or not one that is understood whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the members are what the text says")]
pub enum FirmwareError {
    /// Another length.
    #[error(
        "the firmware has {0} bytes: an image has whole pages of {PAGE} bytes, and at most {FIRMWARE_BYTES}"
    )]
    Size(usize),
    /// Another firmware, or a table that contradicts itself.
    #[error(transparent)]
    Table(#[from] TableError),
    /// An entry that is there twice.
    #[error("the OVMF table has the entry {0} twice, and it is not said which holds")]
    Twice(&'static str),
    /// An entry of another length.
    #[error("the OVMF table's entry {name} has {found} bytes, and needs {needed}")]
    Entry {
        name: &'static str,
        found: usize,
        needed: usize,
    },
    /// A firmware for other guests.
    #[error(
        "the firmware has no SEV metadata, so that it cannot start an SNP guest: use one that is built \
         for it, such as OVMF.amdsev.fd"
    )]
    NoMetadata,
    /// Metadata that lies outside of the image or is of another form.
    #[error("the firmware's SEV metadata is broken: {0}")]
    Metadata(&'static str),
    /// A newer form.
    #[error(
        "the firmware's SEV metadata has version {0}, and only {METADATA_VERSION} is known here: update cloister"
    )]
    MetadataVersion(u32),
    /// Something that a newer firmware asks for.
    #[error(
        "the firmware's SEV metadata has a section of kind {kind:#x} at {address:#x}, which is not known \
         here: update cloister, or use an older firmware"
    )]
    SectionKind { kind: u32, address: u32 },
    /// A section that cannot be.
    #[error("the firmware's SEV metadata has a section at {address:#x} that {why}")]
    Section { address: u32, why: &'static str },
}

impl Firmware {
    /// Reads an image.
    ///
    /// # Errors
    /// When it is no firmware for SNP, or has something that is not known here.
    pub fn parse(image: &[u8]) -> Result<Self, FirmwareError> {
        if image.is_empty() || image.len() > FIRMWARE_BYTES || !image.len().is_multiple_of(PAGE) {
            return Err(FirmwareError::Size(image.len()));
        }
        let base = END - image.len() as u64;
        let table = Table::read(image)?;
        let sections = match table.metadata {
            Some(offset) => sections(image, offset, base)?,
            None => return Err(FirmwareError::NoMetadata),
        };
        let hashes = hashes(table.hashes, &sections)?;
        let mut chain = Chain::new();
        chain.normal(base, image);
        Ok(Self {
            digest: chain.digest(),
            sections,
            reset: table.reset.filter(|address| *address != 0),
            hashes,
        })
    }

    /// The same, but with the digest of an image of which these bytes are just the end.
    #[must_use]
    pub fn with_digest(self, digest: LaunchDigest) -> Self {
        Self { digest, ..self }
    }

    /// The digest of a launch after the firmware's own pages.
    #[must_use]
    pub fn digest(&self) -> LaunchDigest {
        self.digest
    }

    /// What the metadata asks for, in its order.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Whether it has a page for the hashes of kernel, initramfs and command line, without which it boots what it
    /// finds.
    #[must_use]
    pub fn takes_hashes(&self) -> bool {
        self.hashes.is_some()
    }

    pub(super) fn reset(&self) -> Option<u32> {
        self.reset
    }

    /// Where the table of hashes is in its page.
    pub(super) fn hashes(&self) -> Option<usize> {
        self.hashes
    }

    /// The address of that page.
    pub(super) fn hashes_page(&self) -> Option<u64> {
        let mut sections = self.sections.iter();
        let page = sections.find(|section| section.kind == SectionKind::KernelHashes);
        page.map(|page| page.address)
    }
}

/// The entries that count.
#[derive(Default)]
struct Table {
    reset: Option<u32>,
    /// Address and length.
    hashes: Option<(u32, u32)>,
    /// From the image's end backwards.
    metadata: Option<u32>,
}

impl Table {
    fn read(image: &[u8]) -> Result<Self, FirmwareError> {
        let mut table = Self::default();
        for entry in Entries::of(image)? {
            let (guid, content) = entry?;
            table.take(guid, content)?;
        }
        Ok(table)
    }

    fn take(&mut self, guid: [u8; 16], content: &[u8]) -> Result<(), FirmwareError> {
        match guid {
            RESET => once(
                &mut self.reset,
                "of the reset address",
                content,
                |[word]| word,
            ),
            HASHES => once(&mut self.hashes, "of the hashes", content, |[at, bytes]| {
                (at, bytes)
            }),
            METADATA => once(
                &mut self.metadata,
                "of the SEV metadata",
                content,
                |[at]| at,
            ),
            _ => Ok(()),
        }
    }
}

/// Keeps what words say; an entry may be there once.
fn once<T, const WORDS: usize>(
    kept: &mut Option<T>,
    name: &'static str,
    content: &[u8],
    read: impl FnOnce([u32; WORDS]) -> T,
) -> Result<(), FirmwareError> {
    if kept.is_some() {
        return Err(FirmwareError::Twice(name));
    }
    let (found, needed) = (content.len(), WORDS * 4);
    let words = (found == needed).then(|| words(content)).flatten();
    let words = words.ok_or(FirmwareError::Entry {
        name,
        found,
        needed,
    })?;
    *kept = Some(read(words));
    Ok(())
}

/// Words at the beginning of bytes.
fn words<const WORDS: usize>(bytes: &[u8]) -> Option<[u32; WORDS]> {
    let mut words = [0; WORDS];
    for (word, at) in words.iter_mut().zip((0..).step_by(4)) {
        *word = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    }
    Some(words)
}

fn sections(image: &[u8], offset: u32, base: u64) -> Result<Vec<Section>, FirmwareError> {
    const OUTSIDE: FirmwareError = FirmwareError::Metadata("it lies outside of the image");
    let offset = usize::try_from(offset).map_err(|_| OUTSIDE)?;
    let start = image.len().checked_sub(offset).ok_or(OUTSIDE)?;
    let metadata = image.get(start..).ok_or(OUTSIDE)?;
    let [signature, length, version, count] = words(metadata).ok_or(OUTSIDE)?;
    if signature != u32::from_le_bytes(*b"ASEV") {
        return Err(FirmwareError::Metadata("it does not begin with ASEV"));
    }
    if version != METADATA_VERSION {
        return Err(FirmwareError::MetadataVersion(version));
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > SECTIONS {
        return Err(FirmwareError::Metadata("it has more than 64 sections"));
    }
    let needed = HEADER_BYTES + count * SECTION_ENTRY_BYTES;
    if usize::try_from(length) != Ok(needed) {
        return Err(FirmwareError::Metadata(
            "its length is not that of its sections",
        ));
    }
    let entries = metadata.get(HEADER_BYTES..needed).ok_or(OUTSIDE)?;
    let mut sections: Vec<Section> = Vec::with_capacity(count);
    for entry in entries.chunks_exact(SECTION_ENTRY_BYTES) {
        let entry = words(entry).ok_or(OUTSIDE)?;
        sections.push(section(entry, base, &sections)?);
    }
    Ok(sections)
}

fn section(
    [address, bytes, kind]: [u32; 3],
    base: u64,
    before: &[Section],
) -> Result<Section, FirmwareError> {
    let kind = match kind {
        1 => SectionKind::Memory,
        2 => SectionKind::Secrets,
        3 => SectionKind::Cpuid,
        4 => SectionKind::CallingArea,
        0x10 => SectionKind::KernelHashes,
        _ => return Err(FirmwareError::SectionKind { kind, address }),
    };
    let fail = |why| Err(FirmwareError::Section { address, why });
    let whole = |number: u32| usize::try_from(number).is_ok_and(|n| n.is_multiple_of(PAGE));
    if bytes == 0 || bytes > SECTION_BYTES || !whole(address) || !whole(bytes) {
        return fail("is not of whole pages, or has more than 64 MiB");
    }
    let section = Section {
        kind,
        address: address.into(),
        bytes: bytes.into(),
    };
    let end = section.address + section.bytes;
    if end > base {
        return fail("lies in the firmware itself");
    }
    let meets =
        |other: &Section| section.address < other.address + other.bytes && other.address < end;
    if before.iter().any(meets) {
        return fail("lies in another one: the security processor takes no page twice");
    }
    let single = !matches!(kind, SectionKind::Memory | SectionKind::CallingArea);
    if single && (section.bytes != PAGE as u64 || before.iter().any(|one| one.kind == kind)) {
        return fail("is of a kind that has one page, once");
    }
    Ok(section)
}

/// Where in its page the table of hashes is, where the firmware has a page for it.
fn hashes(table: Option<(u32, u32)>, sections: &[Section]) -> Result<Option<usize>, FirmwareError> {
    const WRONG: FirmwareError =
        FirmwareError::Metadata("the table of hashes does not fit into the page of hashes");
    let page = sections
        .iter()
        .find(|section| section.kind == SectionKind::KernelHashes);
    let (Some(page), Some((address, bytes))) = (page, table) else {
        return Ok(None);
    };
    let offset = u64::from(address).checked_sub(page.address).ok_or(WRONG)?;
    let offset = usize::try_from(offset).map_err(|_| WRONG)?;
    let fits = offset
        .checked_add(PADDED_BYTES)
        .is_some_and(|end| end <= PAGE);
    let room = usize::try_from(bytes).is_ok_and(|bytes| bytes >= PADDED_BYTES);
    if fits && room {
        Ok(Some(offset))
    } else {
        Err(WRONG)
    }
}
