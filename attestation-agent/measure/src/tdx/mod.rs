//! Intel TDX: MRTD and RTMR0 to RTMR3 of a guest, before it is launched.
//!
//! MRTD is a hash over the pages that the VMM adds before the guest starts, and over the content of
//! those that the firmware's metadata ([`Firmware`]) wants measured. The firmware then extends RTMR0 to
//! RTMR1 by what it is given and what it starts, and the kernel's EFI stub RTMR2. Each event has a
//! digest, and [`Launch::predict`] makes them in the same order; [`explain`] finds the first event in
//! which a guest's own log differs.
//!
//! Where versions of firmware or VMM differ, the caller says which it is ([`Dialect`],
//! [`KernelForm`], [`PageOrder`]). Nothing is guessed: the firmware's code is compressed, and does not
//! say.
//!
//! Sources: Intel 348549 (TDX module base specification), 12.2 (measurement); Intel 344991 (TDX virtual
//! firmware design guide), chapters 8 and 11; edk2's `OvmfPkg/Tcg/TdTcg2Dxe`, `OvmfPkg/IntelTdx` and
//! `OvmfPkg/Library/QemuFwCfgLib`; QEMU's `hw/i386/tdvf.c`, `tdvf-hob.c`, `x86-common.c` and
//! `target/i386/kvm/tdx.c`; Linux's `drivers/firmware/efi/libstub/efi-stub-helper.c`.

mod acpi;
mod bytes;
mod command_line;
mod dialect;
mod event;
mod explain;
mod firmware;
mod hob;
mod kernel;
mod launch;
mod memory;
mod mrtd;
mod pe;
mod runtime;
mod smbios;
mod store;
mod variable;

pub use acpi::{ACPI_FILE_BYTES, Acpi, AcpiError};
pub use command_line::{COMMAND_LINE_BYTES, CommandLineError};
pub use dialect::{Dialect, InitrdArgument, Rtmr, UnknownDialect};
pub use event::{Event, Origin, Rtmrs, replay};
pub use explain::{Difference, explain};
pub use firmware::{Firmware, FirmwareError, Section, SectionKind, Vmm};
pub use hob::{HobError, memory_of, td_hob};
pub use kernel::{KernelError, KernelForm};
pub use launch::{Launch, LaunchError, Prediction};
pub use memory::{MEMORY_BYTES, Memory, MemoryError};
pub use mrtd::PageOrder;
pub use pe::{ImageError, authenticode, is_signed};
pub use runtime::{RuntimeError, RuntimeEvent, event as runtime_event};
pub use smbios::{SMBIOS_BYTES, SmbiosError};
pub use store::StoreError;
pub use variable::{BootOption, SecureBoot, VariableError};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Where an image of firmware ends in the guest's memory, and what lies above is memory again.
const BELOW_4G: u64 = 1 << 32;

/// Bytes of MRTD and of an RTMR.
pub const REGISTER_BYTES: usize = 48;
/// A register's value, or what extends one.
pub type Digest = [u8; REGISTER_BYTES];
