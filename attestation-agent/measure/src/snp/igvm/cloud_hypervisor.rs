//! A launch by Cloud Hypervisor on KVM: what a file has, as `load_igvm` of `vmm/src/igvm/igvm_loader.rs` hands it to
//! the security processor.
//!
//! That is the file's order. A page without content is one that the security processor fills with zeros.
//!
//! Where the guest is given a kernel and a command line by `fw_cfg`, a table of their hashes is written into the page
//! at 0x10000, which then is a normal one whatever it was; where the file has no page there, into one behind all others.
//! Firmware that looks for hashes elsewhere, or nowhere, boots what it is given.

use super::super::chain::PageKind;
use super::super::{Firmware, GuestFeatures, KernelHashes, PAGE, Vmm};
use super::directive::{Page, PageType};
use super::error::IgvmError;
use super::load::{Contents, Memory, area, firmware};
use super::{Hashes, Igvm, Loaded, registers};

/// The page with the table of hashes, and where the table is in it (`SEV_HASH_BLOCK_ADDRESS` in `vmm/src/sev.rs`).
const HASHES: u64 = 0x1_0000;
const TABLE: usize = 0xc00;

/// The guest policy where the file has none, or 0 (`get_default_sev_snp_guest_policy` in `vmm/src/vm.rs`): guests on
/// hosts with SMT.
const POLICY: u64 = 0x3_0000;

/// Where the table of hashes goes.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    /// The place of its page; behind all where the file has none.
    at: Option<usize>,
    /// What the page has besides.
    content: Box<[u8; PAGE]>,
}

pub(super) fn load(mut contents: Contents<'_>) -> Result<Igvm, IgvmError> {
    // Those of the first vCPU hold for all (`extract_sev_features`).
    let promised = contents
        .registers
        .get(&0)
        .map(|(_, page)| registers::promised(page));
    let features = GuestFeatures::with_snp(promised.unwrap_or_default());
    let registers = contents.registers.iter().map(|(vcpu, (address, data))| {
        let fail = |why| IgvmError::Registers { vcpu: *vcpu, why };
        if !address.is_multiple_of(PAGE as u64) {
            return Err(fail("do not begin where pages do"));
        }
        let page = registers::taken_over(data, features);
        Ok((*vcpu, page.map_err(fail)?))
    });
    let registers = registers.collect::<Result<_, _>>()?;
    // Those of the first vCPU are put into memory too.
    if let Some((address, _)) = contents.registers.get(&0) {
        contents.claim(*address)?;
    }
    let policy = contents.policies.iter().find(|policy| **policy != 0);
    let mut pages = Vec::new();
    let mut slot = Slot::behind(&contents);
    for part in &contents.memory {
        match part {
            Memory::Page(page, _) => {
                if let Some(place) = Slot::of(page, pages.len()) {
                    slot = Ok(place);
                }
                pages.push(loaded(page)?);
            }
            Memory::Area(address, bytes) => pages.extend(area(*address, *bytes)),
        }
    }
    let firmware = firmware(&contents.measured());
    Ok(Igvm {
        vmm: Vmm::CloudHypervisor,
        policy: policy.copied().unwrap_or(POLICY),
        signed: contents.signed,
        pages,
        registers,
        features: Some(features.bits()),
        hashes: Hashes::Written(slot),
        firmware,
    })
}

fn loaded(page: &Page<'_>) -> Result<Loaded, IgvmError> {
    let address = page.address;
    let bare = |kind| Ok(Loaded::bare(kind, address));
    match (page.kind, page.data) {
        (PageType::Normal, _) if page.unmeasured => bare(PageKind::Unmeasured),
        (PageType::Normal, Some(data)) => Ok(Loaded::normal(address, data)),
        (PageType::Normal, None) => bare(PageKind::Zero),
        (PageType::Secrets, _) => bare(PageKind::Secrets),
        (PageType::Cpuid, _) => bare(PageKind::Cpuid),
        (PageType::CpuidXf, _) => {
            let why = "is of the type CPUID_XF, at which Cloud Hypervisor ends: use CPUID_DATA";
            Err(IgvmError::Page { address, why })
        }
    }
}

impl Slot {
    /// Behind all pages, where the file has nothing in its place.
    fn behind(contents: &Contents<'_>) -> Result<Self, &'static str> {
        if contents.is_taken(HASHES) {
            return Err(
                "a parameter area, CPUID answers or registers lie over 0x10c00, where Cloud Hypervisor would write \
                 the hashes: build it with those elsewhere",
            );
        }
        let content = Box::new([0; PAGE]);
        Ok(Self { at: None, content })
    }

    /// In this page, which is the next, where Cloud Hypervisor writes into it. That of CPUID answers it leaves as it
    /// is, and cannot have a second one there.
    fn of(page: &Page<'_>, next: usize) -> Option<Self> {
        let is_here = page.address == HASHES && page.kind != PageType::Cpuid;
        let content = page.data.and_then(<[u8]>::first_chunk).copied();
        is_here.then(|| Self {
            at: Some(next),
            content: Box::new(content.unwrap_or([0; PAGE])),
        })
    }

    /// All pages with the hashes in their place.
    pub(super) fn filled(&self, kernel: &KernelHashes, pages: &[Loaded]) -> Vec<Loaded> {
        let mut content = self.content.clone();
        content[TABLE..].copy_from_slice(&kernel.page(TABLE)[TABLE..]);
        let page = Loaded::normal(HASHES, &content[..]);
        let mut pages = pages.to_vec();
        match self.at.and_then(|at| pages.get_mut(at)) {
            Some(place) => *place = page,
            None => pages.push(page),
        }
        pages
    }
}

/// Whether firmware looks for the hashes in that place; `None` where it does not say that it looks for some.
pub(super) fn looks_here(firmware: &Firmware) -> Option<bool> {
    let (page, table) = (firmware.hashes_page()?, firmware.hashes()?);
    Some((page, table) == (HASHES, TABLE))
}
