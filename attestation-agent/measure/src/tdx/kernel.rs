//! The kernel as the firmware finds it: as in its file, or with QEMU's changes to its header.
//!
//! For a boot without EFI a boot loader writes into a kernel's set-up header (Linux's
//! `Documentation/arch/x86/boot.rst`), and QEMU is that boot loader also where firmware then starts the
//! kernel by its EFI stub. QEMU 10.1, the first with TDX, leaves the header of every confidential guest
//! alone; QEMUs that distributions gave TDX to before that write into it, so that the kernel's hash
//! depends on memory size and initramfs.

use super::{
    Digest, ImageError, Memory, authenticode,
    bytes::{put, u16_at, u32_at},
};

const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
const VERSION_AT: usize = 0x206;
/// Which loader.
const LOADER_AT: usize = 0x210;
const QEMU: u8 = 0xb0;
const FLAGS_AT: usize = 0x211;
const LOADED_HIGH: u8 = 0x01;
const CAN_USE_HEAP: u8 = 0x80;
const INITRAMFS_AT: usize = 0x218;
const HEAP_END_AT: usize = 0x224;
const LINE_AT: usize = 0x228;
const INITRAMFS_MAX_AT: usize = 0x22c;
const XLOAD_FLAGS_AT: usize = 0x236;
const ABOVE_4G: u16 = 0x02;

/// The first version of the boot protocol with all that is written here (Linux 3.8).
const PROTOCOL: u16 = 0x20c;
/// Where QEMU puts the command line of such a kernel, less its heap's end.
const LINE: u32 = 0x2_0000;
const HEAP_END: u16 = 0xfe00;
/// What QEMU keeps free below the end of memory for ACPI tables.
const ACPI_BYTES: u64 = 0x2_8000;
const PAGE_MASK: u32 = !0xfff;

/// In which form the firmware gets the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KernelForm {
    /// As in its file: QEMU since 10.1.
    #[default]
    AsInFile,
    /// With what QEMU writes for a boot without EFI.
    Patched,
}

/// A kernel that would not start, or not measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Another kind of file.
    #[error("the kernel is no bzImage: give vmlinuz, which QEMU passes on to firmware")]
    NoBzImage,
    /// Too old.
    #[error("the kernel speaks version {0:#x} of the boot protocol: {PROTOCOL:#x} is needed")]
    Protocol(u16),
    /// An argument that QEMU acts on.
    #[error("the command line has vga=, which QEMU writes into the kernel's header: leave it out")]
    Vga,
    /// Too long.
    #[error("the initramfs has {0} bytes, for which there is no room below 4 GiB")]
    Initramfs(usize),
    /// Not what firmware starts.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// The kernel's hash.
pub(super) fn measure(
    kernel: &[u8],
    form: KernelForm,
    memory: Memory,
    initramfs: Option<usize>,
    line: &str,
) -> Result<Digest, KernelError> {
    if kernel
        .get(MAGIC_AT..)
        .is_none_or(|rest| !rest.starts_with(MAGIC))
    {
        return Err(KernelError::NoBzImage);
    }
    match form {
        KernelForm::AsInFile => Ok(authenticode(kernel)?),
        KernelForm::Patched => Ok(authenticode(&patched(kernel, memory, initramfs, line)?)?),
    }
}

fn patched(
    kernel: &[u8],
    memory: Memory,
    initramfs: Option<usize>,
    line: &str,
) -> Result<Vec<u8>, KernelError> {
    let short = KernelError::NoBzImage;
    let version = u16_at(kernel, VERSION_AT).ok_or(short.clone())?;
    let flags = *kernel.get(FLAGS_AT).ok_or(short.clone())?;
    if version < PROTOCOL || flags & LOADED_HIGH == 0 {
        return Err(KernelError::Protocol(version));
    }
    if line.contains("vga=") {
        return Err(KernelError::Vga);
    }
    let mut patched = kernel.to_vec();
    put(&mut patched, LOADER_AT, &[QEMU, flags | CAN_USE_HEAP]);
    put(&mut patched, HEAP_END_AT, &HEAP_END.to_le_bytes());
    put(&mut patched, LINE_AT, &LINE.to_le_bytes());
    if let Some(length) = initramfs {
        let above = u16_at(kernel, XLOAD_FLAGS_AT).ok_or(short.clone())? & ABOVE_4G != 0;
        let said = u32_at(kernel, INITRAMFS_MAX_AT).ok_or(short)?;
        let limit = if above { u32::MAX } else { said };
        let (place, bytes) = place(limit, memory, length)?;
        put(&mut patched, INITRAMFS_AT, &place.to_le_bytes());
        put(&mut patched, INITRAMFS_AT + 4, &bytes.to_le_bytes());
    }
    Ok(patched)
}

/// Where QEMU puts an initramfs, as high as it may, and its length.
fn place(limit: u32, memory: Memory, length: usize) -> Result<(u32, u32), KernelError> {
    let end = memory.below_4g().saturating_sub(ACPI_BYTES);
    let end = u32::try_from(end).unwrap_or(u32::MAX);
    let limit = if limit >= end {
        end.saturating_sub(1)
    } else {
        limit
    };
    let bytes = u32::try_from(length).ok().filter(|bytes| *bytes < limit);
    let bytes = bytes.ok_or(KernelError::Initramfs(length))?;
    Ok(((limit - bytes) & PAGE_MASK, bytes))
}
