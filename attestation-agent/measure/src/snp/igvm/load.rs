//! The directives in the order in which QEMU hands them to the security processor.
//!
//! That is the file's order, but for one thing: pages that follow each other are held back until one comes
//! that does not, or the file ends, while the pages of a parameter area go at once. So an area in the
//! file behind a run of pages is measured before them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::chain::{Chain, LaunchDigest, PageKind, contents};
use super::super::{Firmware, PAGE, SectionKind};
use super::directive::{Directive, Page, PageType, Stage};
use super::error::IgvmError;
use super::file::File;
use super::{Igvm, registers};
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
const STEP: u64 = PAGE as u64;

pub(super) fn load(file: &File<'_>) -> Result<Igvm, IgvmError> {
    let mut stage = Stage::Platform;
    let mut loader = Loader::default();
    for header in file.headers() {
        let header = header?;
        let (of, directive) = Directive::read(header, file)?;
        if of < stage {
            let why = "stands behind one of a later part of the file";
            return Err(IgvmError::Header { at: header.at, why });
        }
        stage = of;
        loader.take(directive)?;
        if of == Stage::Directive {
            loader.index += 1;
        }
    }
    loader.finish()
}

/// A parameter area.
struct Area {
    bytes: u64,
    inserted: bool,
}

/// A page that was taken last, and its place in the file.
struct Last<'a> {
    page: Page<'a>,
    index: usize,
}

#[derive(Default)]
struct Loader<'a> {
    /// The bits that stand for SEV-SNP.
    mask: Option<u32>,
    policy: Option<u64>,
    signed: Option<LaunchDigest>,
    chain: Option<Chain>,
    /// Which of the directives is at hand.
    index: usize,
    /// Pages that are held back.
    held: Vec<(PageKind, u64, [u8; 48])>,
    last: Option<Last<'a>>,
    areas: BTreeMap<u32, Area>,
    registers: BTreeMap<u16, Box<[u8; PAGE]>>,
    /// All addresses that have a page.
    taken: BTreeSet<u64>,
    /// The content of pages that are measured with it.
    measured: BTreeMap<u64, Option<&'a [u8]>>,
    /// The digest of zeros.
    zeros: Option<[u8; 48]>,
}

impl<'a> Loader<'a> {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "each directive is loaded once"
    )]
    fn take(&mut self, directive: Directive<'a>) -> Result<(), IgvmError> {
        match directive {
            Directive::Platform { mask, kind } if kind == SNP => self.platform(mask),
            Directive::Platform { .. } | Directive::Memory => Ok(()),
            Directive::Policy { mask, policy } => {
                // QEMU takes the last.
                if self.is_for_snp(mask)? {
                    self.policy = Some(policy);
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
        if !self.continues(&page) {
            self.release();
        }
        let (kind, content) = match (page.kind, page.unmeasured) {
            (PageType::Normal, false) => {
                self.measured.insert(page.address, page.data);
                (PageKind::Normal, self.content(page.data))
            }
            (PageType::Normal, true) => (PageKind::Unmeasured, [0; 48]),
            (PageType::Secrets, _) => (PageKind::Secrets, [0; 48]),
            (PageType::Cpuid | PageType::CpuidXf, _) => (PageKind::Cpuid, [0; 48]),
        };
        self.held.push((kind, page.address, content));
        let index = self.index;
        self.last = Some(Last { page, index });
        Ok(())
    }

    /// Whether it goes on where the last page was, in the file and in memory, and is as that was.
    fn continues(&self, page: &Page<'_>) -> bool {
        self.last.as_ref().is_some_and(|last| {
            let Last {
                page: before,
                index,
            } = last;
            before.address.checked_add(STEP) == Some(page.address)
                && index + 1 == self.index
                && (before.kind, before.unmeasured, before.mask)
                    == (page.kind, page.unmeasured, page.mask)
                && before.data.is_some() == page.data.is_some()
        })
    }

    /// Measures what was held back.
    fn release(&mut self) {
        let chain = self.chain.get_or_insert(Chain::new());
        for (kind, address, content) in self.held.drain(..) {
            chain.page(kind, address, &content);
        }
    }

    fn content(&mut self, data: Option<&[u8]>) -> [u8; 48] {
        match data {
            Some(data) => contents(data),
            None => *self.zeros.get_or_insert_with(|| contents(&[0; PAGE])),
        }
    }

    /// The security processor takes no page twice.
    fn claim(&mut self, address: u64) -> Result<(), IgvmError> {
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

    /// The host chooses what is in the pages, so that they are not measured, but for where they are.
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
            let chain = self.chain.get_or_insert(Chain::new());
            chain.page(PageKind::Unmeasured, page, &[0; 48]);
        }
        Ok(())
    }

    fn vcpu(&mut self, vcpu: u16, address: u64, data: &[u8]) -> Result<(), IgvmError> {
        let read = registers::read(address, data);
        let read = read.map_err(|why| IgvmError::Registers { vcpu, why })?;
        if self.registers.insert(vcpu, read).is_some() {
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

    fn finish(mut self) -> Result<Igvm, IgvmError> {
        self.release();
        let policy = self.policy;
        let chain = self.chain.filter(|_| !self.taken.is_empty());
        let (Some(_), Some(chain)) = (self.mask, chain) else {
            return Err(match self.mask {
                None => IgvmError::Platform,
                Some(_) => IgvmError::Empty,
            });
        };
        registers::same_features(&self.registers)?;
        let firmware = Firmware::parse(&image(&self.measured));
        let hashes = firmware.as_ref().ok().and_then(|firmware| {
            let mut sections = firmware.sections().iter();
            let section = sections.find(|section| section.kind == SectionKind::KernelHashes)?;
            let page = (*self.measured.get(&section.address)?)?;
            Some(Box::new(*page.first_chunk()?))
        });
        Ok(Igvm {
            policy: policy.ok_or(IgvmError::NoPolicy)?,
            signed: self.signed,
            chain,
            registers: self.registers,
            firmware,
            hashes,
        })
    }
}

/// The measured pages right below 4 GiB, as far down as there are some.
fn image(measured: &BTreeMap<u64, Option<&[u8]>>) -> Vec<u8> {
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
    image
}
