//! A header's content by its type, and the names of those that a VMM does not load.

use super::super::{PAGE, Vmm};
use super::error::IgvmError;
use super::file::{File, Header, words};

/// What headers are for. A file has them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Platform,
    Initialization,
    Directive,
}

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageType {
    Normal,
    Secrets,
    Cpuid,
    /// As [`Self::Cpuid`] for the hardware.
    CpuidXf,
}

/// A page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page<'a> {
    pub(super) address: u64,
    pub(super) mask: u32,
    pub(super) kind: PageType,
    pub(super) unmeasured: bool,
    /// `None` for zeros.
    pub(super) data: Option<&'a [u8]>,
}

impl Page<'_> {
    /// Whether its content counts.
    pub(super) fn is_measured(&self) -> bool {
        self.kind == PageType::Normal && !self.unmeasured
    }
}

/// A header that is loaded.
#[derive(Debug)]
pub(super) enum Directive<'a> {
    Platform {
        mask: u32,
        kind: u8,
    },
    Policy {
        mask: u32,
        policy: u64,
    },
    Page(Page<'a>),
    Area {
        index: u32,
        bytes: u64,
    },
    Insert {
        mask: u32,
        index: u32,
        address: u64,
    },
    /// The host writes something into an area.
    Parameter {
        index: u32,
        offset: u32,
    },
    Registers {
        mask: u32,
        address: u64,
        vcpu: u16,
        data: &'a [u8; PAGE],
    },
    /// Memory that has to be there, which nothing is put into.
    Memory,
    IdBlock {
        mask: u32,
        digest: [u8; 48],
    },
}

/// Bits of a page's flags.
const LARGE: u32 = 1;
const UNMEASURED: u32 = 2;
const SHARED: u32 = 4;

/// Bytes of an ID block's header, and where the digest is in it.
const ID_BLOCK_BYTES: usize = 696;
const ID_BLOCK_DIGEST: usize = 8;

/// Types that not every VMM has something for.
const NAMES: [(u32, &str); 17] = [
    (0x102, "RELOCATABLE_REGION"),
    (0x103, "PAGE_TABLE_RELOCATION_REGION"),
    (0x104, "CORIM_DOCUMENT"),
    (0x105, "CORIM_SIGNATURE"),
    (0x106, "CCA_POLICY"),
    (0x306, "SHARED_BOUNDARY_GPA"),
    (0x308, "SRAT"),
    (0x309, "MADT"),
    (0x30a, "MMIO_RANGES"),
    (0x30d, "ERROR_RANGE"),
    (0x30e, "COMMAND_LINE"),
    (0x30f, "SLIT"),
    (0x310, "PPTT"),
    (0x311, "VBS_MEASUREMENT"),
    (0x312, "DEVICE_TREE"),
    (0x313, "ENVIRONMENT_INFO"),
    (0, "INVALID"),
];

impl<'a> Directive<'a> {
    pub(super) fn read(
        header: Header<'a>,
        file: &File<'a>,
        vmm: Vmm,
    ) -> Result<(Stage, Self), IgvmError> {
        let Header { at, kind, content } = header;
        if !loads(vmm, kind) {
            return Err(unknown(kind, vmm));
        }
        let wrong = |why| IgvmError::Header { at, why };
        let length = || wrong("has another length than its type has");
        let read = match kind {
            0x1 => (Stage::Platform, platform(content).ok_or_else(length)?),
            0x101 => (Stage::Initialization, policy(content).ok_or_else(length)?),
            _ => {
                let read = match kind {
                    0x301 => area(content),
                    0x302 => return page(header, file).map(|page| (Stage::Directive, page)),
                    0x303 => insert(content),
                    0x304 => return registers(header, file).map(|read| (Stage::Directive, read)),
                    0x305 => memory(content),
                    0x30b => id_block(content),
                    _ => parameter(content),
                };
                (Stage::Directive, read.ok_or_else(length)?)
            }
        };
        Ok(read)
    }
}

/// Whether a VMM does something with a header of this type: QEMU's `backends/igvm.c`, and Cloud Hypervisor's
/// `vmm/src/igvm/igvm_loader.rs`, which ends at another. (Its library of IGVM files refuses relocation in a file for
/// SEV-SNP.)
fn loads(vmm: Vmm, kind: u32) -> bool {
    match kind {
        0x1 | 0x101 | 0x301..=0x305 | 0x30b => true,
        // VP_COUNT, MEMORY_MAP.
        0x307 | 0x30c => true,
        // MADT, ENVIRONMENT_INFO.
        0x309 | 0x313 => vmm == Vmm::Qemu,
        // COMMAND_LINE.
        0x30e => vmm == Vmm::CloudHypervisor,
        _ => false,
    }
}

fn unknown(kind: u32, vmm: Vmm) -> IgvmError {
    let known = NAMES.iter().find(|(number, _)| *number == kind);
    let name = known.map_or("of an unknown type", |(_, name)| *name);
    IgvmError::Unknown { kind, name, vmm }
}

/// All words of a content that has no more.
fn exactly<const WORDS: usize>(content: &[u8]) -> Option<[u32; WORDS]> {
    words(content).filter(|_| content.len() == WORDS * 4)
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The lower and the upper half of a word.
fn halves(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_le_bytes();
    (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
}

fn platform<'a>(content: &[u8]) -> Option<Directive<'a>> {
    let [mask, rest, _, _] = exactly(content)?;
    let [_, kind, ..] = rest.to_le_bytes();
    Some(Directive::Platform { mask, kind })
}

fn policy<'a>(content: &[u8]) -> Option<Directive<'a>> {
    let [low, high, mask, _] = exactly(content)?;
    let policy = wide(low, high);
    Some(Directive::Policy { mask, policy })
}

/// What an area holds at first is unmeasured: QEMU begins with zeros, Cloud Hypervisor with what the file has.
fn area<'a>(content: &[u8]) -> Option<Directive<'a>> {
    let [low, high, index, _] = exactly(content)?;
    let bytes = wide(low, high);
    Some(Directive::Area { index, bytes })
}

fn insert<'a>(content: &[u8]) -> Option<Directive<'a>> {
    let [low, high, mask, index] = exactly(content)?;
    Some(Directive::Insert {
        mask,
        index,
        address: wide(low, high),
    })
}

fn parameter<'a>(content: &[u8]) -> Option<Directive<'a>> {
    let [index, offset] = exactly(content)?;
    Some(Directive::Parameter { index, offset })
}

fn memory<'a>(content: &[u8]) -> Option<Directive<'a>> {
    let [_, _, _, _, _, _] = exactly(content)?;
    Some(Directive::Memory)
}

fn id_block<'a>(content: &[u8]) -> Option<Directive<'a>> {
    let [mask] = words(content).filter(|_| content.len() == ID_BLOCK_BYTES)?;
    let (digest, _) = content.get(ID_BLOCK_DIGEST..)?.split_first_chunk()?;
    Some(Directive::IdBlock {
        mask,
        digest: *digest,
    })
}

fn page<'a>(header: Header<'a>, file: &File<'a>) -> Result<Directive<'a>, IgvmError> {
    let at = header.at;
    let wrong = |why| IgvmError::Header { at, why };
    let read = exactly(header.content);
    let [low, high, mask, offset, flags, kind] =
        read.ok_or_else(|| wrong("has another length than its type has"))?;
    let address = wide(low, high);
    let fail = |why| IgvmError::Page { address, why };
    if flags & SHARED != 0 {
        return Err(fail("is shared with the host, which no VMM heeds"));
    }
    if flags & LARGE != 0 {
        return Err(fail("is of 2 MiB: list its pages of 4096 bytes"));
    }
    if flags & !UNMEASURED != 0 {
        return Err(fail("has a flag that is not known here: update cloister"));
    }
    let kind = match halves(kind) {
        (0, 0) => PageType::Normal,
        (1, 0) => PageType::Secrets,
        (2, 0) => PageType::Cpuid,
        (3, 0) => PageType::CpuidXf,
        _ => return Err(fail("is of a type that is not known here: update cloister")),
    };
    let data = match offset {
        0 => None,
        _ => {
            let data = file.data(offset, PAGE);
            Some(data.ok_or_else(|| wrong("points outside of the file's data"))?)
        }
    };
    Ok(Directive::Page(Page {
        address,
        mask,
        kind,
        unmeasured: flags & UNMEASURED != 0,
        data,
    }))
}

fn registers<'a>(header: Header<'a>, file: &File<'a>) -> Result<Directive<'a>, IgvmError> {
    let at = header.at;
    let wrong = |why| IgvmError::Header { at, why };
    let read = exactly(header.content);
    let [low, high, mask, offset, vcpu] =
        read.ok_or_else(|| wrong("has another length than its type has"))?;
    let data = file.data(offset, PAGE).and_then(<[u8]>::first_chunk);
    Ok(Directive::Registers {
        mask,
        address: wide(low, high),
        vcpu: halves(vcpu).0,
        data: data.ok_or_else(|| wrong("points outside of the file's data"))?,
    })
}
