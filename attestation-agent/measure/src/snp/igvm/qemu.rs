//! A launch by QEMU: what a file has, in the order in which QEMU hands it to the security processor.
//!
//! That is the file's order, but for one thing: pages that follow each other are held back until one comes
//! that does not, or the file ends, while the pages of a parameter area go at once. So an area in the
//! file behind a run of pages is measured before them. A page without content counts as one of zeros.
//!
//! QEMU has no place for hashes of the kernel in such a launch. The file has to bring the page, as firmware
//! for direct boot expects it, and [`super::IgvmLaunch::kernel`] is compared with it.

use super::super::chain::PageKind;
use super::super::{Firmware, PAGE, Vmm};
use super::directive::{Page, PageType};
use super::error::IgvmError;
use super::load::{Contents, Memory, STEP, area, firmware};
use super::{Hashes, Igvm, Loaded, registers};

pub(super) fn load(contents: &Contents<'_>) -> Result<Igvm, IgvmError> {
    let registers = registers::of_file(&contents.registers)?;
    // QEMU takes the last.
    let policy = contents.policies.last().copied();
    let measured = contents.measured();
    let firmware = firmware(&measured);
    let page = firmware.as_ref().ok().and_then(Firmware::hashes_page);
    let hashes = page.and_then(|page| {
        let content = (*measured.get(&page)?)?;
        Some(Box::new(*content.first_chunk()?))
    });
    Ok(Igvm {
        vmm: Vmm::Qemu,
        policy: policy.ok_or(IgvmError::NoPolicy)?,
        signed: contents.signed,
        pages: ordered(&contents.memory),
        features: registers::features(&registers),
        registers,
        firmware,
        hashes: Hashes::File(hashes),
    })
}

fn ordered(memory: &[Memory<'_>]) -> Vec<Loaded> {
    let zeros = Loaded::normal(0, &[0; PAGE]);
    let (mut pages, mut held) = (Vec::new(), Vec::new());
    let mut last = None;
    for part in memory {
        match part {
            Memory::Area(address, bytes) => pages.extend(area(*address, *bytes)),
            Memory::Page(page, index) => {
                if !last.is_some_and(|last| continues(last, (page, *index))) {
                    pages.append(&mut held);
                }
                held.push(loaded(page, zeros));
                last = Some((page, *index));
            }
        }
    }
    pages.append(&mut held);
    pages
}

fn loaded(page: &Page<'_>, zeros: Loaded) -> Loaded {
    let address = page.address;
    match (page.kind, page.data) {
        (PageType::Normal, _) if page.unmeasured => Loaded::bare(PageKind::Unmeasured, address),
        (PageType::Normal, Some(data)) => Loaded::normal(address, data),
        (PageType::Normal, None) => Loaded { address, ..zeros },
        (PageType::Secrets, _) => Loaded::bare(PageKind::Secrets, address),
        (PageType::Cpuid | PageType::CpuidXf, _) => Loaded::bare(PageKind::Cpuid, address),
    }
}

/// Whether a page goes on where the last one was, in the file and in memory, and is as that was.
fn continues(last: (&Page<'_>, usize), next: (&Page<'_>, usize)) -> bool {
    let ((before, last), (page, index)) = (last, next);
    before.address.checked_add(STEP) == Some(page.address)
        && last + 1 == index
        && (before.kind, before.unmeasured, before.mask) == (page.kind, page.unmeasured, page.mask)
        && before.data.is_some() == page.data.is_some()
}
