//! The chain of pages: each link is the SHA-384 of a `PAGE_INFO`, which holds the link before it (56860,
//! 8.17.2, table "PAGE_INFO").

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha384};

use super::PAGE;

/// Bytes of a `PAGE_INFO`.
const PAGE_INFO_BYTES: usize = 0x70;

/// Where the page of a vCPU's registers is: at no address, of which the bits of a physical page remain.
pub(super) const VMSA_ADDRESS: u64 = 0xffff_ffff_f000;

/// The digest of a launch, or of its beginning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaunchDigest(pub [u8; 48]);

impl LaunchDigest {
    /// The digest in hex.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for LaunchDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaunchDigest({self})")
    }
}

/// Text that is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a launch digest is 96 hex digits")]
pub struct DigestError;

impl FromStr for LaunchDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let mut digest = [0; 48];
        hex::decode_to_slice(text, &mut digest).map_err(|_| DigestError)?;
        Ok(Self(digest))
    }
}

/// What a page is, by the number in `PAGE_INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageKind {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Unmeasured = 4,
    Secrets = 5,
    Cpuid = 6,
}

/// A launch so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain(LaunchDigest);

impl Chain {
    /// Before the first page.
    pub(super) const fn new() -> Self {
        Self(LaunchDigest([0; 48]))
    }

    /// After pages that others have measured.
    pub(super) const fn after(digest: LaunchDigest) -> Self {
        Self(digest)
    }

    /// Adds pages with content, one behind the other. The last must be whole.
    pub(super) fn normal(&mut self, address: u64, content: &[u8]) {
        for (page, address) in content.chunks(PAGE).zip(pages(address)) {
            self.page(PageKind::Normal, address, &contents(page));
        }
    }

    /// Adds pages whose content the security processor knows or fills in.
    pub(super) fn filled(&mut self, kind: PageKind, address: u64, bytes: u64) {
        for address in pages(address).take_while(|page| *page < address.saturating_add(bytes)) {
            self.page(kind, address, &[0; 48]);
        }
    }

    /// Adds a vCPU by the digest of its page.
    pub(super) fn vcpu(&mut self, registers: &[u8; 48]) {
        self.page(PageKind::Vmsa, VMSA_ADDRESS, registers);
    }

    /// The digest of all that was added.
    pub(super) const fn digest(&self) -> LaunchDigest {
        self.0
    }

    /// No page is of IMI, and no VMPL below 0 may touch one, so that what is between is zero.
    pub(super) fn page(&mut self, kind: PageKind, address: u64, contents: &[u8; 48]) {
        let mut info = [0; PAGE_INFO_BYTES];
        info[..48].copy_from_slice(&self.0.0);
        info[48..96].copy_from_slice(contents);
        info[96] = 0x70;
        info[98] = kind as u8;
        info[104..].copy_from_slice(&address.to_le_bytes());
        self.0 = LaunchDigest(Sha384::digest(info).into());
    }
}

/// The digest of a page's content.
pub(super) fn contents(page: &[u8]) -> [u8; 48] {
    Sha384::digest(page).into()
}

fn pages(from: u64) -> impl Iterator<Item = u64> {
    (from..).step_by(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_by_kind_address_content_and_place() {
        let mut seen = Vec::new();
        for (kind, address) in [
            (PageKind::Zero, 0),
            (PageKind::Zero, 0x1000),
            (PageKind::Secrets, 0),
            (PageKind::Cpuid, 0),
        ] {
            let mut chain = Chain::new();
            chain.filled(kind, address, 4096);
            seen.push(chain.digest());
        }
        for content in [[0; 4096], [1; 4096]] {
            let mut chain = Chain::new();
            chain.normal(0, &content);
            seen.push(chain.digest());
        }
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn a_range_is_its_pages_and_a_chain_can_be_taken_up_again() {
        let mut whole = Chain::new();
        whole.filled(PageKind::Zero, 0x1000, 0x2000);
        let mut first = Chain::new();
        first.filled(PageKind::Zero, 0x1000, 0x1000);
        let mut rest = Chain::after(first.digest());
        rest.filled(PageKind::Zero, 0x2000, 0x1000);
        assert_eq!(whole.digest(), rest.digest());
        assert_eq!(whole.digest().hex().parse(), Ok(whole.digest()));
        assert_eq!("00".parse::<LaunchDigest>(), Err(DigestError));
    }
}
