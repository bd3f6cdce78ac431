//! The ELF kernel inside a bzImage. The layout is the x86 boot protocol's
//! (`Documentation/arch/x86/boot.rst` in the kernel's tree, fields by their names there).

use crate::elf::{Elf, ElfError};
use crate::unpack::{self, UnpackError};

/// Why no kernel came out.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// There is no `HdrS` where the boot protocol has it.
    #[error("not a bzImage: no setup header")]
    NoHeader,
    /// A protocol before 2.08 does not say where the payload is.
    #[error("boot protocol {major}.{minor:02} is too old, 2.08 is needed")]
    Protocol {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// The payload's place is outside of the file.
    #[error("the payload lies outside of the file")]
    Payload,
    /// The payload did not unpack.
    #[error("the payload does not unpack")]
    Unpack(#[from] UnpackError),
    /// The payload unpacked to another size than it says at its end.
    #[error("the payload says {expected} bytes and unpacks to {found}")]
    Size {
        /// What stands in the payload's last four bytes.
        expected: u32,
        /// What came out.
        found: usize,
    },
    /// The payload is no ELF file.
    #[error("the payload is not a kernel")]
    Elf(#[from] ElfError),
    /// The kernel was built without `CONFIG_PVH`.
    #[error("the kernel has no PVH entry (Xen ELF note 18); build it with CONFIG_PVH=y")]
    NoPvh,
}

const SETUP_SECTS: usize = 0x1f1;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// Unpacks the kernel of a bzImage and checks that a VMM can enter it by PVH.
///
/// # Errors
/// [`BzImageError`], which names the step that failed.
pub fn vmlinux(bzimage: &[u8]) -> Result<Vec<u8>, BzImageError> {
    if bzimage.get(HEADER..HEADER + 4) != Some(b"HdrS") {
        return Err(BzImageError::NoHeader);
    }
    let version = u16::from_le_bytes(array(bzimage, VERSION)?);
    if version < 0x0208 {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(BzImageError::Protocol { major, minor });
    }
    let [setup_sectors] = array(bzimage, SETUP_SECTS)?;
    // For old loaders' sake zero means four.
    let setup_sectors = if setup_sectors == 0 {
        4
    } else {
        usize::from(setup_sectors)
    };
    let offset = u32::from_le_bytes(array(bzimage, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(array(bzimage, PAYLOAD_LENGTH)?) as usize;
    let start = (setup_sectors + 1) * SECTOR + offset;
    let payload = bzimage
        .get(start..start + length)
        .ok_or(BzImageError::Payload)?;
    // The build appends the unpacked size to the compressed data, whatever the compression.
    let (packed, size) = payload
        .split_last_chunk::<4>()
        .ok_or(BzImageError::Payload)?;
    let vmlinux = unpack::by_magic(packed)?;
    let expected = u32::from_le_bytes(*size);
    if vmlinux.len() != expected as usize {
        let found = vmlinux.len();
        return Err(BzImageError::Size { expected, found });
    }
    check_pvh(&vmlinux)?;
    Ok(vmlinux)
}

/// Checks that an ELF kernel has a PVH entry.
///
/// # Errors
/// [`BzImageError::Elf`] when it is no ELF file, [`BzImageError::NoPvh`] when it has no such entry.
pub fn check_pvh(vmlinux: &[u8]) -> Result<(), BzImageError> {
    match Elf::parse(vmlinux)?.pvh_entry()? {
        Some(_) => Ok(()),
        None => Err(BzImageError::NoPvh),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BzImageError> {
    bytes
        .get(at..at + N)
        .and_then(|found| found.try_into().ok())
        .ok_or(BzImageError::NoHeader)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(kernel: &[u8], said: u32) -> Vec<u8> {
        let payload = [
            zstd::encode_all(kernel, 3).unwrap(),
            said.to_le_bytes().to_vec(),
        ]
        .concat();
        let mut image = vec![0_u8; 5 * SECTOR];
        image[HEADER..HEADER + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend([0; 16]);
        image.extend(payload);
        image
    }

    #[test]
    fn a_kernel_without_pvh_is_refused_after_it_unpacked() {
        let kernel = [b"\x7fELF\x02\x01".as_slice(), &[0; 58]].concat();
        let refused = vmlinux(&bzimage(&kernel, 64)).unwrap_err();
        assert!(matches!(refused, BzImageError::NoPvh), "{refused}");
    }

    #[test]
    fn a_payload_of_another_size_is_refused() {
        let refused = vmlinux(&bzimage(b"\x7fELF", 5)).unwrap_err().to_string();
        assert_eq!(refused, "the payload says 5 bytes and unpacks to 4");
    }

    #[test]
    fn what_is_no_bzimage_is_refused() {
        assert!(matches!(vmlinux(b"MZ"), Err(BzImageError::NoHeader)));
        let mut cut = bzimage(b"\x7fELF", 4);
        cut.truncate(cut.len() - 1);
        assert!(matches!(vmlinux(&cut), Err(BzImageError::Payload)));
        let mut old = bzimage(b"\x7fELF", 4);
        old[VERSION] = 7;
        let refused = vmlinux(&old).unwrap_err().to_string();
        assert_eq!(refused, "boot protocol 2.07 is too old, 2.08 is needed");
    }
}
