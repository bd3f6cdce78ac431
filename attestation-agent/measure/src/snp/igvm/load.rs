//! What a file has for SEV-SNP, in its order.

use std::collections::{BTreeMap, BTreeSet};

use super::super::chain::{LaunchDigest, PageKind, contents};
use super::super::{Firmware, FirmwareError, PAGE, Vmm};
use super::Loaded;
use super::directive::{Directive, Page, Stage};
use super::error::IgvmError;
use super::file::File;
use crate::ovmf::FIRMWARE_BYTES;

/// The number of the platform SEV-SNP.
const SNP: u8 = 2;
/// Where firmware ends in the guest's memory.
const END: u64 = 1 << 32;
/// The end of all addresses.
const ADDRESSES: u64 = 1 << 52;
/// Bytes of one parameter area.
const AREA_BYTES: u64 = 1024 * 1024;
/// Parameter areas.
const AREAS: usize = 64;
/// Bytes of a page, as addresses are counted.
pub(super) const STEP: u64 = PAGE as u64;

/// A file's directives, each where it may be.
#[derive(Default)]
pub(super) struct Contents<'a> {
    /// Guest policies.
    pub(super) policies: Vec<u64>,
    pub(super) memory: Vec<Memory<'a>>,
    /// Registers of vCPUs: their address and the page.
    pub(super) registers: BTreeMap<u16, (u64, &'a [u8; PAGE])>,
    /// What an ID block lets start.
    pub(super) signed: Option<LaunchDigest>,
    /// The bits that stand for SEV-SNP.
    mask: Option<u32>,
    /// Which of the directives is at hand.
    index: usize,
    areas: BTreeMap<u32, Area>,
    /// All addresses that have a page.
    taken: BTreeSet<u64>,
}

/// A part of the guest's memory.
pub(super) enum Memory<'a> {
    /// A page, and its place among the directives.
    Page(Page<'a>, usize),
    /// What the host writes: where it begins and how long it is.
    Area(u64, u64),
}

/// A parameter area.
struct Area {
    bytes: u64,
    inserted: bool,
}

pub(super) fn read<'a>(file: &File<'a>, vmm: Vmm) -> Result<Contents<'a>, IgvmError> {
    let mut stage = Stage::Platform;
    let mut all = Contents::default();
    for header in file.headers() {
        let header = header?;
        let (of, directive) = Directive::read(header, file, vmm)?;
        if of < stage {
            let why = "stands behind one of a later part of the file";
            return Err(IgvmError::Header { at: header.at, why });
        }
        stage = of;
        all.take(directive)?;
        if of == Stage::Directive {
            all.index += 1;
        }
    }
    match (all.mask, all.memory.is_empty()) {
        (None, _) => Err(IgvmError::Platform),
        (Some(_), true) => Err(IgvmError::Empty),
        (Some(_), false) => Ok(all),
    }
}

impl<'a> Contents<'a> {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "each directive is loaded once"
    )]
    fn take(&mut self, directive: Directive<'a>) -> Result<(), IgvmError> {
        match directive {
            Directive::Platform { mask, kind } if kind == SNP => self.platform(mask),
            Directive::Platform { .. } | Directive::Memory => Ok(()),
            Directive::Policy { mask, policy } => {
                if self.is_for_snp(mask)? {
                    self.policies.push(policy);
                }
                Ok(())
            }
            Directive::Page(page) => match self.is_for_snp(page.mask)? {
                true => self.page(page),
                false => Ok(()),
            },
            Directive::Area { index, bytes } => self.area(index, bytes),
            Directive::Insert {
                mask,
                index,
                address,
            } => match self.is_for_snp(mask)? {
                true => self.insert(index, address),
                false => Ok(()),
            },
            Directive::Parameter { index, offset } => self.parameter(index, offset),
            Directive::Registers {
                mask,
                address,
                vcpu,
                data,
            } => match self.is_for_snp(mask)? {
                true => self.vcpu(vcpu, address, data),
                false => Ok(()),
            },
            Directive::IdBlock { mask, digest } => match self.is_for_snp(mask)? {
                true => self.id_block(LaunchDigest(digest)),
                false => Ok(()),
            },
        }
    }

    fn platform(&mut self, mask: u32) -> Result<(), IgvmError> {
        if mask == 0 || self.mask.is_some() {
            return Err(IgvmError::Fixed(
                "it names SEV-SNP twice, or with no bit for what is of it",
            ));
        }
        self.mask = Some(mask);
        Ok(())
    }

    fn is_for_snp(&self, mask: u32) -> Result<bool, IgvmError> {
        let ours = self.mask.ok_or(IgvmError::Platform)?;
        Ok(mask & ours != 0)
    }

    fn page(&mut self, page: Page<'a>) -> Result<(), IgvmError> {
        self.claim(page.address)?;
        self.memory.push(Memory::Page(page, self.index));
        Ok(())
    }

    /// The security processor takes no page twice.
    pub(super) fn claim(&mut self, address: u64) -> Result<(), IgvmError> {
        let why = if !address.is_multiple_of(STEP) {
            "does not begin where pages do"
        } else if address >= ADDRESSES {
            "lies beyond all memory"
        } else if !self.taken.insert(address) {
            "is there twice"
        } else {
            return Ok(());
        };
        Err(IgvmError::Page { address, why })
    }

    /// Whether something is at this page.
    pub(super) fn is_taken(&self, address: u64) -> bool {
        self.taken.contains(&address)
    }

    fn area(&mut self, index: u32, bytes: u64) -> Result<(), IgvmError> {
        let fail = |why| Err(IgvmError::Area { index, why });
        if bytes == 0 || bytes > AREA_BYTES || !bytes.is_multiple_of(STEP) {
            return fail("is not of whole pages, or has more than 1 MiB");
        }
        if self.areas.len() >= AREAS {
            return fail("is one too many: a file has at most 64");
        }
        let inserted = false;
        if self.areas.insert(index, Area { bytes, inserted }).is_some() {
            return fail("is there twice");
        }
        Ok(())
    }

    fn parameter(&self, index: u32, offset: u32) -> Result<(), IgvmError> {
        let fail = |why| Err(IgvmError::Area { index, why });
        match self.areas.get(&index) {
            None => fail("is written to, and there is none of this number"),
            Some(area) if area.inserted => fail("is written to when it is in memory already"),
            Some(area) if u64::from(offset) + 4 > area.bytes => {
                fail("is written to behind its end")
            }
            Some(_) => Ok(()),
        }
    }

    fn insert(&mut self, index: u32, address: u64) -> Result<(), IgvmError> {
        let fail = |why| Err(IgvmError::Area { index, why });
        let bytes = match self.areas.get_mut(&index) {
            None => return fail("is put into memory, and there is none of this number"),
            Some(area) if area.inserted => return fail("is put into memory twice"),
            Some(area) => {
                area.inserted = true;
                area.bytes
            }
        };
        for step in (0..bytes).step_by(PAGE) {
            let page = address.checked_add(step);
            let page = page.ok_or(IgvmError::Page {
                address,
                why: "lies beyond all memory",
            })?;
            self.claim(page)?;
        }
        self.memory.push(Memory::Area(address, bytes));
        Ok(())
    }

    fn vcpu(&mut self, vcpu: u16, address: u64, data: &'a [u8; PAGE]) -> Result<(), IgvmError> {
        if self.registers.insert(vcpu, (address, data)).is_some() {
            let why = "are there twice";
            return Err(IgvmError::Registers { vcpu, why });
        }
        Ok(())
    }

    fn id_block(&mut self, digest: LaunchDigest) -> Result<(), IgvmError> {
        if self.signed.replace(digest).is_some() {
            return Err(IgvmError::Fixed("it has two ID blocks for SEV-SNP"));
        }
        Ok(())
    }

    /// The pages that are measured with their content, by their addresses.
    pub(super) fn measured(&self) -> BTreeMap<u64, Option<&'a [u8]>> {
        let pages = self.memory.iter().filter_map(|memory| match memory {
            Memory::Page(page, _) if page.is_measured() => Some((page.address, page.data)),
            Memory::Page(..) | Memory::Area(..) => None,
        });
        pages.collect()
    }
}

/// The pages of an area: the host chooses what is in them, so that only their places are measured.
pub(super) fn area(address: u64, bytes: u64) -> impl Iterator<Item = Loaded> {
    let pages = (0..bytes).step_by(PAGE);
    pages.map(move |step| Loaded::bare(PageKind::Unmeasured, address + step))
}

impl Loaded {
    /// A page whose content does not count.
    pub(super) const fn bare(kind: PageKind, address: u64) -> Self {
        let content = [0; 48];
        Self {
            kind,
            address,
            content,
        }
    }

    /// A page with this content.
    pub(super) fn normal(address: u64, content: &[u8]) -> Self {
        Self {
            kind: PageKind::Normal,
            address,
            content: contents(content),
        }
    }
}

/// The firmware: the measured pages right below 4 GiB, as far down as there are some.
pub(super) fn firmware(measured: &BTreeMap<u64, Option<&[u8]>>) -> Result<Firmware, FirmwareError> {
    let lowest = END - FIRMWARE_BYTES as u64;
    let below = measured.range(lowest..END).rev();
    let places = std::iter::successors(Some(END - STEP), |place| place.checked_sub(STEP));
    let pages: Vec<_> = below
        .zip(places)
        .take_while(|((address, _), place)| **address == *place)
        .map(|((_, data), _)| *data)
        .collect();
    let mut image = Vec::with_capacity(pages.len() * PAGE);
    for page in pages.into_iter().rev() {
        image.extend_from_slice(page.unwrap_or(&[0; PAGE]));
    }
    Firmware::parse(&image)
}
