//! Kernel, initramfs and command line by their SHA-256, in the table that the firmware checks what it
//! is given against (QEMU's `kernel-hashes=on`).
//!
//! The kernel counts as it is in its file: QEMU patches the set-up header of other guests only. The
//! command line counts with the zero byte behind it. A guest without an initramfs has the hash of
//! nothing in its place.

use sha2::{Digest, Sha256};

use super::PAGE;
use crate::guid::guid;

const TABLE: [u8; 16] = guid(0x9438_d606, 0x4f22, 0x4cc9, 0xb479_a793_d411_fd21);
const KERNEL: [u8; 16] = guid(0x4de7_9437, 0xabd2, 0x427f, 0xb835_d5b1_72d2_045b);
const INITRAMFS: [u8; 16] = guid(0x44ba_f731, 0x3a2f, 0x4bd7, 0x9af1_41e2_9169_781d);
const COMMAND_LINE: [u8; 16] = guid(0x97d0_2dd8, 0xbd20, 0x4c94, 0xaa78_e771_4d36_ab2a);

/// An entry: a GUID, its own length, a SHA-256.
const ENTRY_BYTES: usize = 16 + 2 + 32;
/// The table: a GUID, its own length, three entries.
const TABLE_BYTES: usize = 16 + 2 + 3 * ENTRY_BYTES;
/// The same, padded as QEMU pads it.
pub(super) const PADDED_BYTES: usize = TABLE_BYTES.next_multiple_of(16);

/// What an ELF file begins with.
const ELF: &[u8] = b"\x7fELF";

/// What the firmware is to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelHashes {
    kernel: [u8; 32],
    initramfs: [u8; 32],
    command_line: [u8; 32],
}

/// A kernel or a command line that QEMU would not launch as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// An uncompressed kernel.
    #[error(
        "the kernel is an ELF file, which QEMU passes on without hashes: give the bzImage, vmlinuz"
    )]
    Elf,
    /// A command line with a zero byte in it.
    #[error("the command line has a zero byte in it: QEMU would end it there")]
    CommandLine,
}

impl KernelHashes {
    /// From the files' content, and the command line without the zero byte behind it.
    ///
    /// # Errors
    /// When QEMU would not pass on what is given.
    pub fn new(
        kernel: &[u8],
        initramfs: Option<&[u8]>,
        command_line: &str,
    ) -> Result<Self, KernelError> {
        if kernel.starts_with(ELF) {
            return Err(KernelError::Elf);
        }
        let hashes = Self {
            kernel: Sha256::digest(kernel).into(),
            initramfs: Sha256::digest(initramfs.unwrap_or_default()).into(),
            command_line: [0; 32],
        };
        hashes.with_command_line(command_line)
    }

    /// The same kernel and initramfs with another command line.
    ///
    /// # Errors
    /// When QEMU would not pass it on.
    pub fn with_command_line(self, line: &str) -> Result<Self, KernelError> {
        if line.contains('\0') {
            return Err(KernelError::CommandLine);
        }
        let ended = Sha256::new().chain_update(line).chain_update([0]);
        Ok(Self {
            command_line: ended.finalize().into(),
            ..self
        })
    }

    /// The page with the table at this offset, which the caller has checked.
    pub(super) fn page(&self, offset: usize) -> [u8; PAGE] {
        let mut table = Vec::with_capacity(TABLE_BYTES);
        let mut put = |name: [u8; 16], length: usize, content: &[u8]| {
            table.extend(name);
            table.extend(u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes());
            table.extend(content);
        };
        put(TABLE, TABLE_BYTES, &[]);
        put(COMMAND_LINE, ENTRY_BYTES, &self.command_line);
        put(INITRAMFS, ENTRY_BYTES, &self.initramfs);
        put(KERNEL, ENTRY_BYTES, &self.kernel);
        let mut page = [0; PAGE];
        for (to, from) in page.iter_mut().skip(offset).zip(table) {
            *to = from;
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_in_any_part_is_another_page() {
        let base = KernelHashes::new(b"kernel", Some(b"initramfs"), "quiet").unwrap();
        for (kernel, initramfs, line) in [
            (b"kernem", Some(&b"initramfs"[..]), "quiet"),
            (b"kernel", Some(b"initramfr"), "quiet"),
            (b"kernel", None, "quiet"),
            (b"kernel", Some(b"initramfs"), "quiet "),
        ] {
            let other = KernelHashes::new(kernel, initramfs, line).unwrap();
            assert_ne!(base.page(0), other.page(0));
        }
        assert_ne!(base.page(0), base.page(16));
    }

    #[test]
    fn what_qemu_would_not_hash_is_refused() {
        assert_eq!(
            KernelHashes::new(b"\x7fELF\x02", None, ""),
            Err(KernelError::Elf)
        );
        assert_eq!(
            KernelHashes::new(b"MZ", None, "quiet\0debug"),
            Err(KernelError::CommandLine)
        );
    }
}
