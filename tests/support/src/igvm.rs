//! IGVM files of a guest by its pages, written apart from the code that reads them.

use sha2::{Digest, Sha256};

use crate::firmware;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Magic, version, offset and length of headers, length, checksum.
const FIXED: usize = 24;
/// The bit for SEV-SNP.
pub const SNP: u32 = 1;
/// Where KVM has registers.
pub const REGISTERS: u64 = 0xffff_ffff_f000;

/// A file as it is written.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    headers: Vec<(u32, Vec<u8>, Option<usize>)>,
    data: Vec<u8>,
}

impl Builder {
    /// A file for SEV-SNP with this policy.
    #[must_use]
    pub fn snp(policy: u64) -> Self {
        let mut builder = Self::default();
        let mut platform = SNP.to_le_bytes().to_vec();
        platform.extend([0, 2, 1, 0]);
        platform.extend([0; 8]);
        builder.header(0x1, platform);
        let mut content = policy.to_le_bytes().to_vec();
        content.extend(firmware::words(&[SNP, 0]));
        builder.header(0x101, content);
        builder
    }

    /// Adds a header as it is.
    pub fn header(&mut self, kind: u32, content: Vec<u8>) -> &mut Self {
        self.headers.push((kind, content, None));
        self
    }

    /// Adds a page of this type: 0 is normal, 1 secrets, 2 CPUID; without content it is of zeros.
    pub fn page(
        &mut self,
        address: u64,
        kind: u32,
        flags: u32,
        content: Option<&[u8]>,
    ) -> &mut Self {
        self.page_for(SNP, address, [kind, flags], content)
    }

    /// The same for platforms of these bits.
    pub fn page_for(
        &mut self,
        mask: u32,
        address: u64,
        [kind, flags]: [u32; 2],
        content: Option<&[u8]>,
    ) -> &mut Self {
        let mut header = address.to_le_bytes().to_vec();
        header.extend(firmware::words(&[mask, 0, flags, kind]));
        let place = content.map(|content| self.put(content));
        self.headers.push((0x302, header, place));
        self
    }

    /// Adds pages with this content, one behind the other.
    pub fn pages(&mut self, address: u64, content: &[u8]) -> &mut Self {
        for (page, address) in content.chunks(PAGE).zip((address..).step_by(PAGE)) {
            self.page(address, 0, 0, Some(page));
        }
        self
    }

    /// Adds a vCPU's registers.
    pub fn vcpu(&mut self, vcpu: u16, address: u64, registers: &[u8]) -> &mut Self {
        let mut header = address.to_le_bytes().to_vec();
        header.extend(firmware::words(&[SNP, 0, vcpu.into()]));
        let place = Some(self.put(registers));
        self.headers.push((0x304, header, place));
        self
    }

    /// Adds a parameter area of so many bytes.
    pub fn area(&mut self, index: u32, bytes: u64) -> &mut Self {
        let mut content = bytes.to_le_bytes().to_vec();
        content.extend(firmware::words(&[index, 0]));
        self.header(0x301, content)
    }

    /// Puts an area into memory.
    pub fn insert(&mut self, index: u32, address: u64) -> &mut Self {
        let mut content = address.to_le_bytes().to_vec();
        content.extend(firmware::words(&[SNP, index]));
        self.header(0x303, content)
    }

    fn put(&mut self, content: &[u8]) -> usize {
        let place = self.data.len();
        self.data.extend_from_slice(content);
        self.data.resize(place + PAGE, 0);
        place
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> Vec<u8> {
        let lengths = self
            .headers
            .iter()
            .map(|(_, content, _)| 8 + content.len().next_multiple_of(8));
        let length: usize = lengths.sum();
        let mut file = vec![0; FIXED];
        for (kind, content, place) in &self.headers {
            let mut content = content.clone();
            if let Some(place) = place {
                let offset = word(FIXED + length + place);
                content[12..16].copy_from_slice(&offset.to_le_bytes());
            }
            file.extend(firmware::words(&[*kind, word(content.len())]));
            file.extend(&content);
            file.resize(file.len().next_multiple_of(8), 0);
        }
        file.extend(&self.data);
        let total = word(file.len());
        let magic = u32::from_le_bytes(*b"IGVM");
        let fixed = firmware::words(&[magic, 1, word(FIXED), word(length), total, 0]);
        file[..FIXED].copy_from_slice(&fixed);
        seal(&mut file);
        file
    }
}

/// Puts the checksum anew where a file was changed.
pub fn seal(file: &mut [u8]) {
    file[20..24].fill(0);
    let length = u32::from_le_bytes(file[12..16].try_into().unwrap_or_default());
    let end = (FIXED + usize::try_from(length).unwrap_or(0)).min(file.len());
    let sum = crc32(&file[..end]);
    file[20..24].copy_from_slice(&sum.to_le_bytes());
}

/// CRC-32 of IEEE 802.3, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            let mask = 0_u32.wrapping_sub(sum & 1);
            (sum >> 1) ^ (0xedb8_8320 & mask)
        })
    })
}

fn word(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The page of hashes as firmware expects it, with the table where [`firmware::direct_boot`] says; the command
/// line counts with the zero byte behind it.
#[must_use]
pub fn hashes(kernel: &[u8], initramfs: &[u8], line: &[u8]) -> Vec<u8> {
    const TABLE: [u8; 16] = *b"\x06\xd6\x38\x94\x22\x4f\xc9\x4c\xb4\x79\xa7\x93\xd4\x11\xfd\x21";
    const KERNEL: [u8; 16] = *b"\x37\x94\xe7\x4d\xd2\xab\x7f\x42\xb8\x35\xd5\xb1\x72\xd2\x04\x5b";
    const INITRD: [u8; 16] = *b"\x31\xf7\xba\x44\x2f\x3a\xd7\x4b\x9a\xf1\x41\xe2\x91\x69\x78\x1d";
    const LINE: [u8; 16] = *b"\xd8\x2d\xd0\x97\x20\xbd\x94\x4c\xaa\x78\xe7\x71\x4d\x36\xab\x2a";
    let mut page = vec![0; 0xc00];
    page.extend(TABLE);
    page.extend(168_u16.to_le_bytes());
    for (guid, content) in [(LINE, line), (INITRD, initramfs), (KERNEL, kernel)] {
        page.extend(guid);
        page.extend(50_u16.to_le_bytes());
        page.extend(Sha256::digest(content));
    }
    page.resize(PAGE, 0);
    page
}

/// The registers of a vCPU that begins as processors do, as QEMU and KVM leave them: with this signature
/// in RDX.
#[must_use]
pub fn reset(signature: u32) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let segments: [(u16, u16, u64); 10] = [
        (0, 0x93, 0),
        (0xf000, 0x9b, 0xffff_0000),
        (0, 0x93, 0),
        (0, 0x93, 0),
        (0, 0x93, 0),
        (0, 0x93, 0),
        (0, 0, 0),
        (0, 0x82, 0),
        (0, 0, 0),
        (0, 0x8b, 0),
    ];
    for (at, (selector, attributes, base)) in (0..).step_by(16).zip(segments) {
        page[at..at + 2].copy_from_slice(&selector.to_le_bytes());
        page[at + 2..at + 4].copy_from_slice(&attributes.to_le_bytes());
        page[at + 4..at + 8].copy_from_slice(&0xffff_u32.to_le_bytes());
        page[at + 8..at + 16].copy_from_slice(&base.to_le_bytes());
    }
    let registers: [(usize, u64); 13] = [
        (0x0d0, 0x1000),
        (0x148, 0x40),
        (0x158, 0x10),
        (0x160, 0x400),
        (0x168, 0xffff_0ff0),
        (0x170, 2),
        (0x178, 0xfff0),
        (0x268, 0x0007_0406_0007_0406),
        (0x310, signature.into()),
        (0x3b0, 1),
        (0x3e8, 1),
        (0x408, 0x1f80),
        (0x410, 0x37f),
    ];
    for (at, value) in registers {
        page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    page
}
