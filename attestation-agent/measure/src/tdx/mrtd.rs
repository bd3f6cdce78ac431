//! MRTD: the hash over what the VMM adds to a TD, step by step as the TDX module writes them.
//!
//! `TDH.MEM.PAGE.ADD` hashes a page's address, `TDH.MR.EXTEND` the address and the content of 256
//! bytes. The order is KVM's, which adds a section's pages and measures those that are to be measured.

use sha2::{Digest as _, Sha384};

use super::{Digest, Firmware, PAGE, Section};

/// Bytes that one `TDH.MR.EXTEND` measures.
const CHUNK: usize = 256;
/// Bytes that name a step: its name, and at 16 the address.
const STEP_BYTES: usize = 128;
const ADDRESS_AT: usize = 16;

/// In which order a section's pages are added and measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PageOrder {
    /// A page is measured as soon as it is added: Linux since 6.16, by `KVM_TDX_INIT_MEM_REGION`.
    #[default]
    EachPage,
    /// First all pages of a section are added: some kernels with TDX before Linux had it, by
    /// `KVM_MEMORY_MAPPING` and `KVM_TDX_EXTEND_MEMORY`.
    WholeSection,
}

impl Firmware<'_> {
    /// MRTD of a TD with this firmware. Nothing else counts for it: not memory, nor vCPUs, nor what is
    /// booted.
    #[must_use]
    pub fn mrtd(&self, order: PageOrder) -> Digest {
        let mut hash = Sha384::new();
        for section in self.sections() {
            match order {
                PageOrder::EachPage => {
                    for page in pages(section) {
                        add(&mut hash, section, page);
                        measure(&mut hash, section, page);
                    }
                }
                PageOrder::WholeSection => {
                    pages(section).for_each(|page| add(&mut hash, section, page));
                    pages(section).for_each(|page| measure(&mut hash, section, page));
                }
            }
        }
        hash.finalize().into()
    }
}

/// The offsets of a section's pages.
fn pages(section: &Section<'_>) -> impl Iterator<Item = u64> + use<> {
    (0..section.bytes).step_by(PAGE)
}

fn add(hash: &mut Sha384, section: &Section<'_>, page: u64) {
    hash.update(step(b"MEM.PAGE.ADD", section.address + page));
}

fn measure(hash: &mut Sha384, section: &Section<'_>, page: u64) {
    if !section.measured {
        return;
    }
    for chunk in (page..).step_by(CHUNK).take(PAGE / CHUNK) {
        hash.update(step(b"MR.EXTEND", section.address + chunk));
        hash.update(content(section, chunk));
    }
}

fn step(name: &[u8], address: u64) -> [u8; STEP_BYTES] {
    let mut step = [0; STEP_BYTES];
    step[..name.len()].copy_from_slice(name);
    step[ADDRESS_AT..ADDRESS_AT + 8].copy_from_slice(&address.to_le_bytes());
    step
}

/// The image's bytes at this offset of the section, with zeros behind them.
fn content(section: &Section<'_>, offset: u64) -> [u8; CHUNK] {
    let mut chunk = [0; CHUNK];
    let from = usize::try_from(offset).ok();
    let from = from.and_then(|offset| section.content.get(offset..));
    for (to, from) in chunk.iter_mut().zip(from.unwrap_or_default()) {
        *to = *from;
    }
    chunk
}
