//! Events: what extends which register, and where it comes from.

use std::fmt;

use evidence::eventlog::EventKind;
use sha2::{Digest as _, Sha384};

use super::{Digest, REGISTER_BYTES};

/// RTMR0 to RTMR3.
pub type Rtmrs = [Digest; 4];

/// An event as it is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The register as logs count: 1 to 4 are RTMR0 to RTMR3.
    pub index: u32,
    /// The type, which no register answers for: firmware has given some events other types over time.
    pub kind: EventKind,
    /// What extends the register.
    pub digest: Digest,
    /// What it is the digest of.
    pub origin: Origin,
}

/// The input that an event's digest comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The list of memory that the VMM writes.
    TdHob,
    /// The firmware's section of variables.
    Variables,
    /// An item of fw_cfg that the firmware takes before its drivers start.
    FwCfg(String),
    /// A variable of Secure Boot.
    SecureBoot(&'static str),
    /// The line that the firmware draws below what it has measured.
    Separator,
    /// A file of the ACPI tables.
    Acpi(String),
    /// The list of SMBIOS' tables.
    Smbios,
    /// What Secure Boot let something start by.
    Authority,
    /// The list of what to start.
    BootOrder,
    /// A thing to start, by its number.
    BootOption(u16),
    /// The kernel.
    Kernel,
    /// Something that the firmware does.
    Action(&'static str),
    /// The kernel's command line.
    CommandLine,
    /// The initramfs.
    Initramfs,
    /// An event of the guest while it runs: its domain and operation.
    Runtime(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TdHob => f.write_str("the list of memory (TD HOB)"),
            Self::Variables => f.write_str("the firmware's variables (CFV)"),
            Self::FwCfg(name) => write!(f, "fw_cfg's {name}"),
            Self::SecureBoot(name) => write!(f, "the variable {name}"),
            Self::Separator => f.write_str("a separator"),
            Self::Acpi(name) => write!(f, "ACPI's {name}"),
            Self::Smbios => f.write_str("SMBIOS' tables"),
            Self::Authority => f.write_str("an authority of Secure Boot"),
            Self::BootOrder => f.write_str("the variable BootOrder"),
            Self::BootOption(number) => write!(f, "the variable Boot{number:04x}"),
            Self::Kernel => f.write_str("the kernel"),
            Self::Action(text) => write!(f, "the action \"{text}\""),
            Self::CommandLine => f.write_str("the command line"),
            Self::Initramfs => f.write_str("the initramfs"),
            Self::Runtime(name) => write!(f, "the runtime event {name}"),
        }
    }
}

impl Origin {
    /// What decides it, and so is to be looked at where it differs.
    pub(super) fn cause(&self) -> &'static str {
        match self {
            Self::TdHob => "memory size, and where the firmware's metadata wants memory",
            Self::Variables => {
                "the firmware file's part of variables, also where somebody enrolled keys"
            }
            Self::FwCfg(_) => {
                "the VMM's options of booting, its version, and devices with a bootindex"
            }
            Self::SecureBoot(_) | Self::Authority => {
                "keys of Secure Boot in the firmware's variables"
            }
            Self::Acpi(_) => "number of vCPUs, devices, memory layout, and the VMM's version",
            Self::Smbios => {
                "number and model of vCPUs, memory size, and the versions of VMM and firmware"
            }
            Self::BootOrder | Self::BootOption(_) => "the firmware's build, and bootable devices",
            Self::Separator | Self::Action(_) => {
                "the firmware's version, or a boot that took another way"
            }
            Self::Kernel => {
                "the kernel file, or whether the VMM patches its header (then also memory size and length \
                 of the initramfs)"
            }
            Self::CommandLine => {
                "the command line, or whether the firmware puts initrd=initrd before or behind it"
            }
            Self::Initramfs => "the initramfs file",
            Self::Runtime(_) => "what the guest recorded while it ran",
        }
    }
}

impl Event {
    /// An event whose digest is of these bytes.
    pub(super) fn of(index: u32, kind: EventKind, origin: Origin, data: &[u8]) -> Self {
        Self {
            index,
            kind,
            digest: of_data(data),
            origin,
        }
    }

    /// The line below what was measured.
    pub(super) fn separator(index: u32) -> Self {
        Self::of(index, EventKind::Separator, Origin::Separator, &[0; 4])
    }

    /// Something that the firmware does, in RTMR1.
    pub(super) fn action(text: &'static str) -> Self {
        let origin = Origin::Action(text);
        Self::of(2, EventKind::EfiAction, origin, text.as_bytes())
    }
}

pub(super) fn of_data(data: &[u8]) -> Digest {
    Sha384::digest(data).into()
}

/// What the registers are after these events. An event of another register extends none.
#[must_use]
pub fn replay(events: &[Event]) -> Rtmrs {
    let mut registers = [[0; REGISTER_BYTES]; 4];
    for event in events {
        let register = usize::try_from(event.index)
            .ok()
            .and_then(|index| registers.get_mut(index.checked_sub(1)?));
        if let Some(register) = register {
            let value = Sha384::new()
                .chain_update(*register)
                .chain_update(event.digest);
            *register = value.finalize().into();
        }
    }
    registers
}
