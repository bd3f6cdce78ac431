//! TDVF: an OVMF image whose metadata says what a TD consists of before it starts.
//!
//! An entry of the table at the image's end leads to a descriptor, which lists sections: parts of the
//! image that go to a place of the guest's memory, and memory that the firmware needs at once. What the
//! VMM would not do as the metadata says it, or does in a way that is not known here, is refused.

use std::fmt;

use super::{
    BELOW_4G, PAGE, StoreError,
    bytes::{u32_at, u64_at},
    store::Store,
    variable::is_enrolled,
};
use crate::{
    guid::guid,
    ovmf::{Entries, FIRMWARE_BYTES, TableError},
};

/// Sections of the metadata.
const SECTIONS: usize = 64;
/// Bytes of one section.
const SECTION_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes of all sections: each page of them is a step of the measurement.
const ALL_SECTIONS_BYTES: u64 = 128 * 1024 * 1024;

const SIGNATURE: &[u8] = b"TDVF";
const VERSION: u32 = 1;
/// Signature, length, version and number of sections.
const HEADER_BYTES: usize = 4 * 4;
/// Place and length in the image, address and length in memory, kind and attributes.
const ENTRY_BYTES: usize = 2 * 4 + 2 * 8 + 2 * 4;

/// Where the metadata is, from the image's end backwards.
const METADATA: [u8; 16] = guid(0xe47a_6535, 0x984a, 0x4798, 0x865e_4685_a7bf_8ec2);

/// The section's content counts for MRTD, not only its place.
const EXTEND: u32 = 1;

/// Who launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU, which takes four kinds of sections, and fills each from the image as a whole.
    Qemu,
    /// Cloud Hypervisor, which takes td-shim's kinds too, and zeros behind what the image has.
    CloudHypervisor,
}

/// What a section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionKind {
    /// The firmware's code (BFV).
    Code,
    /// Its variables (CFV).
    Variables,
    /// Where the VMM leaves the list of memory (`TD_HOB`).
    TdHob,
    /// Memory that the firmware needs at once (`TempMem`).
    Memory,
    /// Memory that it keeps (`PermMem`).
    KeptMemory,
    /// Where a kernel goes (`Payload`).
    Payload,
    /// Where its command line goes (`PayloadParam`).
    PayloadParameters,
}

/// A part of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// What it is.
    pub kind: SectionKind,
    /// What the image has for it: nothing for memory, which is zero.
    pub content: &'a [u8],
    /// Where it begins.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// Whether its content counts for MRTD.
    pub measured: bool,
}

/// A firmware that can start a TD. It borrows the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware<'a> {
    sections: Vec<Section<'a>>,
    vmm: Vmm,
}

/// An image that is no firmware for TDX, or not one that is understood whole.
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
    /// A firmware for other guests.
    #[error(
        "the firmware has no TDX metadata, so that it cannot start a TD: use one that is built for it, \
         such as OVMF.inteltdx.fd"
    )]
    NoMetadata,
    /// Metadata that lies outside of the image or is of another form.
    #[error("the firmware's TDX metadata is broken: {0}")]
    Metadata(&'static str),
    /// A newer form.
    #[error(
        "the firmware's TDX metadata has version {0}, and only {VERSION} is known here: update cloister"
    )]
    MetadataVersion(u32),
    /// Something that this VMM does not do.
    #[error(
        "the firmware's TDX metadata has a section of kind {kind:#x} at {address:#x}, which is not known \
         here for {vmm}: use a firmware for it, or update cloister"
    )]
    SectionKind { kind: u32, address: u64, vmm: Vmm },
    /// A section that cannot be.
    #[error("the firmware's TDX metadata has a section at {address:#x} that {why}")]
    Section { address: u64, why: &'static str },
    /// A firmware without something that every TD has.
    #[error("the firmware's TDX metadata has {0}")]
    Whole(&'static str),
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "QEMU",
            Self::CloudHypervisor => "Cloud Hypervisor",
        })
    }
}

impl<'a> Firmware<'a> {
    /// Reads an image: code and variables in one file, as `-bios` takes it.
    ///
    /// # Errors
    /// When it is no firmware for TDX, or has something that this VMM does not do as it says.
    pub fn parse(image: &'a [u8], vmm: Vmm) -> Result<Self, FirmwareError> {
        if image.is_empty() || image.len() > FIRMWARE_BYTES || !image.len().is_multiple_of(PAGE) {
            return Err(FirmwareError::Size(image.len()));
        }
        let mut sections: Vec<Section<'a>> = Vec::new();
        for entry in entries(image)?.chunks_exact(ENTRY_BYTES) {
            let section = section(image, entry, vmm)?;
            let meets = |other: &Section<'_>| {
                section.address < other.address + other.bytes
                    && other.address < section.address + section.bytes
            };
            if sections.iter().any(meets) {
                return Err(FirmwareError::Section {
                    address: section.address,
                    why: "lies in another one: the TDX module takes no page twice",
                });
            }
            sections.push(section);
        }
        whole(&sections)?;
        Ok(Self { sections, vmm })
    }

    /// What the metadata asks for, in its order.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Whether a platform key is among the variables of its image: with it the firmware starts no kernel that is
    /// not signed.
    ///
    /// # Errors
    /// When the variables cannot be read.
    pub fn has_platform_key(&self) -> Result<bool, StoreError> {
        let Some(variables) = self.one(SectionKind::Variables) else {
            return Ok(false);
        };
        Ok(is_enrolled(&Store::parse(variables.content)?))
    }

    /// Whose launch this is of.
    #[must_use]
    pub fn vmm(&self) -> Vmm {
        self.vmm
    }

    /// The only section of this kind; [`Self::parse`] has seen to that for those that are asked for.
    pub(super) fn one(&self, kind: SectionKind) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.kind == kind)
    }
}

/// The descriptor's entries.
fn entries(image: &[u8]) -> Result<&[u8], FirmwareError> {
    const OUTSIDE: FirmwareError = FirmwareError::Metadata("it lies outside of the image");
    let mut found = None;
    for entry in Entries::of(image)? {
        let (guid, content) = entry?;
        if guid == METADATA && found.replace(content).is_some() {
            return Err(FirmwareError::Metadata(
                "the table has its place twice, and it is not said which holds",
            ));
        }
    }
    let place = found.ok_or(FirmwareError::NoMetadata)?;
    let offset: &[u8; 4] = place
        .try_into()
        .map_err(|_| FirmwareError::Metadata("its place in the table has another length than 4"))?;
    let start = usize::try_from(u32::from_le_bytes(*offset))
        .ok()
        .and_then(|offset| image.len().checked_sub(offset))
        .ok_or(OUTSIDE)?;
    let metadata = image.get(start..).ok_or(OUTSIDE)?;
    let word = |at| u32_at(metadata, at).ok_or(OUTSIDE);
    if !metadata.starts_with(SIGNATURE) {
        return Err(FirmwareError::Metadata("it does not begin with TDVF"));
    }
    let (length, version, count) = (word(4)?, word(8)?, word(12)?);
    if version != VERSION {
        return Err(FirmwareError::MetadataVersion(version));
    }
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > SECTIONS {
        return Err(FirmwareError::Metadata("it has more than 64 sections"));
    }
    let needed = HEADER_BYTES + count * ENTRY_BYTES;
    if usize::try_from(length) != Ok(needed) {
        return Err(FirmwareError::Metadata(
            "its length is not that of its sections",
        ));
    }
    metadata.get(HEADER_BYTES..needed).ok_or(OUTSIDE)
}

fn section<'a>(image: &'a [u8], entry: &[u8], vmm: Vmm) -> Result<Section<'a>, FirmwareError> {
    const SHORT: FirmwareError = FirmwareError::Metadata("it lies outside of the image");
    let word = |at| u32_at(entry, at).ok_or(SHORT);
    let long = |at| u64_at(entry, at).ok_or(SHORT);
    let (place, length) = (word(0)?, word(4)?);
    let (address, bytes) = (long(8)?, long(16)?);
    let (number, attributes) = (word(24)?, word(28)?);
    let unknown = FirmwareError::SectionKind {
        kind: number,
        address,
        vmm,
    };
    let kind = kind(number, vmm).ok_or(unknown)?;
    let fail = |why| Err(FirmwareError::Section { address, why });
    if attributes & !EXTEND != 0 {
        return fail("has attributes other than MR.EXTEND, which the VMM passes over");
    }
    let page = PAGE as u64;
    if bytes == 0
        || bytes > SECTION_BYTES
        || !bytes.is_multiple_of(page)
        || !address.is_multiple_of(page)
    {
        return fail("is not of whole pages, or has more than 64 MiB");
    }
    if address.checked_add(bytes).is_none_or(|end| end > BELOW_4G) {
        return fail("ends above 4 GiB");
    }
    let content = usize::try_from(place)
        .ok()
        .zip(usize::try_from(length).ok())
        .and_then(|(place, length)| image.get(place..place.checked_add(length)?));
    let Some(content) = content else {
        return fail(
            "is taken from outside of the image: give the whole image, variables and code in one file",
        );
    };
    let section = Section {
        kind,
        content,
        address,
        bytes,
        measured: attributes & EXTEND != 0,
    };
    match contradiction(&section, vmm) {
        Some(why) => fail(why),
        None => Ok(section),
    }
}

/// Why a section of its kind cannot have what it has.
fn contradiction(section: &Section<'_>, vmm: Vmm) -> Option<&'static str> {
    let content = section.content.len() as u64;
    match section.kind {
        SectionKind::Code | SectionKind::Variables => {
            if content == 0 || content > section.bytes {
                Some("has no content in the image, or more than it has room for")
            } else if vmm == Vmm::Qemu && content != section.bytes {
                Some(
                    "has less content in the image than memory, and QEMU fills it with what follows",
                )
            } else {
                None
            }
        }
        SectionKind::TdHob | SectionKind::Payload | SectionKind::PayloadParameters
            if section.measured =>
        {
            Some("is written by the VMM at the launch, and yet is to be measured into MRTD")
        }
        _ if content > 0 => Some("is memory, and yet has content in the image"),
        _ => None,
    }
}

fn kind(number: u32, vmm: Vmm) -> Option<SectionKind> {
    Some(match number {
        0 => SectionKind::Code,
        1 => SectionKind::Variables,
        2 => SectionKind::TdHob,
        3 => SectionKind::Memory,
        4 if vmm == Vmm::CloudHypervisor => SectionKind::KeptMemory,
        5 if vmm == Vmm::CloudHypervisor => SectionKind::Payload,
        6 if vmm == Vmm::CloudHypervisor => SectionKind::PayloadParameters,
        _ => return None,
    })
}

/// What holds of the sections together.
fn whole(sections: &[Section<'_>]) -> Result<(), FirmwareError> {
    let count = |kind| sections.iter().filter(|one| one.kind == kind).count();
    let bytes: u64 = sections.iter().map(|section| section.bytes).sum();
    let code = |section: &&Section<'_>| section.kind == SectionKind::Code;
    let wrong = if bytes > ALL_SECTIONS_BYTES {
        "more than 128 MiB in its sections"
    } else if count(SectionKind::Code) == 0 {
        "no section of code (BFV)"
    } else if !sections.iter().filter(code).all(|one| one.measured) {
        "a section of code (BFV) without MR.EXTEND: MRTD would not tell one firmware from another"
    } else if count(SectionKind::TdHob) != 1 {
        "not just one section for the list of memory (TD_HOB)"
    } else if count(SectionKind::Variables) > 1 {
        "more than one section of variables (CFV)"
    } else {
        return Ok(());
    };
    Err(FirmwareError::Whole(wrong))
}
