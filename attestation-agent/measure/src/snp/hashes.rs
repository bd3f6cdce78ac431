//! Kernel, initramfs and command line by their SHA-256, in the table that the firmware checks what it
//! is given against (QEMU's `kernel-hashes=on`, and Cloud Hypervisor's `fw_cfg` of an SNP guest).
//!
//! The kernel counts as it is in its file: both VMMs patch the set-up header of other guests only. The
//! command line counts with the zero byte behind it. A guest without an initramfs has the hash of
//! nothing in its place.
//!
//! Cloud Hypervisor reads the kernel as a set-up of so many sectors and a rest (`vmm/src/sev.rs`), and takes the
//! command line in printable ASCII, without spaces around it (`generate_cmdline` in `vmm/src/vm.rs`, and the
//! `linux-loader` crate's `Cmdline`).

use sha2::{Digest, Sha256};

use super::{PAGE, Vmm};
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

/// What Cloud Hypervisor reads of a kernel's set-up at once, and where in it the number of its sectors is.
const SETUP_BYTES: usize = 4096;
const SETUP_SECTORS: usize = 0x1f1;
/// Bytes of Cloud Hypervisor's command line, with the zero byte.
const LINE_BYTES: usize = 0x1_0000;

/// What the firmware is to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelHashes {
    vmm: Vmm,
    kernel: [u8; 32],
    initramfs: [u8; 32],
    command_line: [u8; 32],
}

/// A kernel or a command line that the VMM would not launch as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// An uncompressed kernel.
    #[error(
        "the kernel is an ELF file, which QEMU passes on without hashes, and Cloud Hypervisor in parts that nothing \
         boots: give the bzImage, vmlinuz"
    )]
    Elf,
    /// A part of a kernel.
    #[error(
        "the kernel has fewer than the {0} bytes that Cloud Hypervisor reads of its set-up: give the whole bzImage, vmlinuz"
    )]
    Short(usize),
    /// A command line with a zero byte in it.
    #[error("the command line has a zero byte in it: QEMU would end it there")]
    CommandLine,
    /// A command line that Cloud Hypervisor refuses or changes.
    #[error(
        "the command line is none for Cloud Hypervisor, which takes printable ASCII of less than 64 KiB, and cuts off \
         spaces around it: give it as that"
    )]
    Line,
}

impl KernelHashes {
    /// From the files' content, and the command line without the zero byte behind it, passed on by QEMU.
    ///
    /// # Errors
    /// When it would not pass on what is given.
    pub fn new(
        kernel: &[u8],
        initramfs: Option<&[u8]>,
        command_line: &str,
    ) -> Result<Self, KernelError> {
        Self::by(Vmm::Qemu, kernel, initramfs, command_line)
    }

    /// The same, passed on by this VMM.
    ///
    /// # Errors
    /// When it would not pass on what is given.
    pub fn by(
        vmm: Vmm,
        kernel: &[u8],
        initramfs: Option<&[u8]>,
        command_line: &str,
    ) -> Result<Self, KernelError> {
        if kernel.starts_with(ELF) {
            return Err(KernelError::Elf);
        }
        let least = setup_bytes(kernel);
        if vmm == Vmm::CloudHypervisor && kernel.len() < least {
            return Err(KernelError::Short(least));
        }
        let hashes = Self {
            vmm,
            kernel: Sha256::digest(kernel).into(),
            initramfs: Sha256::digest(initramfs.unwrap_or_default()).into(),
            command_line: [0; 32],
        };
        hashes.with_command_line(command_line)
    }

    /// The same kernel and initramfs with another command line.
    ///
    /// # Errors
    /// When the VMM would not pass it on.
    pub fn with_command_line(self, line: &str) -> Result<Self, KernelError> {
        match self.vmm {
            Vmm::Qemu if line.contains('\0') => return Err(KernelError::CommandLine),
            Vmm::CloudHypervisor if !is_line(line) => return Err(KernelError::Line),
            Vmm::Qemu | Vmm::CloudHypervisor => {}
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

/// What Cloud Hypervisor reads of a kernel before its rest.
fn setup_bytes(kernel: &[u8]) -> usize {
    let sectors = match kernel.get(SETUP_SECTORS) {
        None | Some(0) => 4,
        Some(sectors) => usize::from(*sectors),
    };
    SETUP_BYTES.max((sectors + 1) * 512)
}

/// Whether Cloud Hypervisor takes this command line, and as it is.
fn is_line(line: &str) -> bool {
    let printable = line.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    printable && line.trim() == line && line.len() < LINE_BYTES
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
    #[test]
    fn what_cloud_hypervisor_would_not_hash_as_it_is_is_refused() {
        let mut kernel = vec![0; 4096];
        let by = |kernel: &[u8], line: &str| {
            let hashes = KernelHashes::by(Vmm::CloudHypervisor, kernel, None, line);
            hashes.map(|hashes| hashes.page(0))
        };
        let qemu = KernelHashes::new(&kernel, None, "quiet").unwrap().page(0);
        assert_eq!(by(&kernel, "quiet"), Ok(qemu));
        for line in [" quiet", "quiet ", "quiet\n", "qui\0et", "qu\u{ef}et"] {
            assert_eq!(by(&kernel, line), Err(KernelError::Line), "{line:?}");
        }
        assert_eq!(by(&kernel, &"x".repeat(0x1_0000)), Err(KernelError::Line));
        assert!(by(&kernel, &"x".repeat(0xffff)).is_ok());
        assert_eq!(by(&kernel[1..], ""), Err(KernelError::Short(4096)));
        kernel[0x1f1] = 9;
        assert_eq!(by(&kernel, ""), Err(KernelError::Short(5120)));
        kernel.resize(5120, 0);
        assert!(by(&kernel, "").is_ok());
    }
}
