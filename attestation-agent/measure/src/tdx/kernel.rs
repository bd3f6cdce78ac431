//! The kernel as the firmware finds it: as in its file, or with QEMU's changes to its header.
//!
//! For a boot without EFI a boot loader writes into a kernel's set-up header (Linux's
//! `Documentation/arch/x86/boot.rst`), and QEMU is that boot loader also where firmware then starts the
//! kernel by its EFI stub. QEMU leaves the header of every confidential guest alone since 10.2; before,
//! it writes into that of a TD, and the kernel's hash depends on memory size and initramfs. Firmware
//! since edk2-stable202502 asks for the file as it is (`etc/boot/kernel`), which QEMU has since 10.0.

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
    /// As in its file: QEMU since 10.2, and firmware that asks for it.
    #[default]
    AsInFile,
    /// With what QEMU writes for a boot without EFI: QEMU up to 10.1 with older firmware.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(version: u16, xload_flags: u16) -> Vec<u8> {
        let mut kernel = vec![0; 0x400];
        put(&mut kernel, MAGIC_AT, MAGIC);
        put(&mut kernel, VERSION_AT, &version.to_le_bytes());
        put(&mut kernel, FLAGS_AT, &[LOADED_HIGH]);
        put(
            &mut kernel,
            INITRAMFS_MAX_AT,
            &0x37ff_ffff_u32.to_le_bytes(),
        );
        put(&mut kernel, XLOAD_FLAGS_AT, &xload_flags.to_le_bytes());
        kernel
    }

    fn memory(mib: u64) -> Memory {
        Memory::new(mib << 20).unwrap()
    }

    #[test]
    fn qemu_writes_these_fields_and_no_other() {
        let before = kernel(0x20f, ABOVE_4G);
        let after = patched(&before, memory(1024), Some(0x1234), "").unwrap();
        assert_eq!(after[0x210..0x212], [0xb0, 0x81]);
        assert_eq!(u32_at(&after, 0x218), Some(0x3ffd_6000));
        assert_eq!(u32_at(&after, 0x21c), Some(0x1234));
        assert_eq!(u16_at(&after, 0x224), Some(0xfe00));
        assert_eq!(u32_at(&after, 0x228), Some(0x2_0000));
        let changed: Vec<_> = (0..before.len())
            .filter(|at| before[*at] != after[*at])
            .collect();
        let fields = [0x210..0x212, 0x218..0x220, 0x224..0x226, 0x228..0x22c];
        let field = |at: &usize| fields.iter().any(|field| field.contains(at));
        assert!(changed.iter().all(field), "{changed:x?}");
        // Without an initramfs its place stays as it is.
        let none = patched(&before, memory(1024), None, "").unwrap();
        assert_eq!(none[0x218..0x220], before[0x218..0x220]);
    }

    #[test]
    fn a_kernel_with_a_limit_of_its_own_has_the_initramfs_below_it() {
        let place = |mib, flags| {
            let after = patched(&kernel(0x20f, flags), memory(mib), Some(0x1234), "").unwrap();
            u32_at(&after, INITRAMFS_AT).unwrap()
        };
        assert_eq!(place(2048, 0), 0x37ff_e000);
        assert_eq!(place(2048, ABOVE_4G), 0x7ffd_6000);
        assert_eq!(place(512, 0), 0x1ffd_6000);
    }

    #[test]
    fn what_qemu_or_firmware_would_not_start_is_refused() {
        let old = kernel(0x20b, 0);
        let refused = patched(&old, memory(1024), None, "");
        assert_eq!(refused, Err(KernelError::Protocol(0x20b)));
        let large = patched(&kernel(0x20f, 0), memory(64), Some(64 << 20), "");
        assert_eq!(large, Err(KernelError::Initramfs(64 << 20)));
        let form = KernelForm::AsInFile;
        let other = measure(b"\x7fELF", form, memory(64), None, "");
        assert_eq!(other, Err(KernelError::NoBzImage));
        let no_stub = measure(&kernel(0x20f, 0), form, memory(64), None, "");
        assert_eq!(no_stub, Err(KernelError::Image(ImageError::NoImage)));
    }
}
