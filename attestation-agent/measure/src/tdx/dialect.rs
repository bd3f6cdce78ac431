//! What a firmware's version writes, and where.
//!
//! edk2 has changed over time which register an event goes to and what is measured at all, without a
//! sign in the image. The dialects here are those of which a log or the source is known.

use std::{fmt, str::FromStr};

use super::{BootOption, Digest};
use crate::guid::guid;

/// `UiApp`, by its file in OVMF's volume.
const UI_APP: [u8; 16] = guid(0x462c_aa21, 0x7614, 0x4503, 0x836e_8ab6_f466_2331);
/// `BootManagerMenuApp`.
const MENU_APP: [u8; 16] = guid(0xeec2_5bdc, 0x67f2, 0x4d95, 0xb1d5_f81b_2039_d11d);
/// An application that is active, and one that is hidden besides.
const ACTIVE: u32 = 0x101;
const HIDDEN: u32 = 0x109;

/// A register that firmware extends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rtmr {
    /// RTMR0: configuration.
    Rtmr0,
    /// RTMR1: what is started.
    Rtmr1,
}

/// Where firmware puts the argument that names the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitrdArgument {
    /// Before the line, so that no word of the line comes before it.
    Before,
    /// Behind it.
    Behind,
}

/// How a firmware's version measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    /// What of fw_cfg it measures before its drivers start, by name and content, in its order:
    /// `etc/extra-pci-roots`, `BootMenu`, `etc/boot-menu-wait`, `etc/reserved-memory-end`,
    /// `opt/ovmf/X-PciMmio64Mb`, `bootorder`; those that the VMM has.
    pub fw_cfg: Vec<(String, Vec<u8>)>,
    /// Digests of authorities between the ACPI tables and the boot order, as a log of this firmware
    /// has them. With Secure Boot on there is one, and without it is not predicted.
    pub authorities: Vec<Digest>,
    /// Whether it measures SMBIOS' tables, right before its boot order.
    pub measures_smbios: bool,
    /// Its boot order; empty where it has none.
    pub boot_options: Vec<BootOption>,
    /// Where boot order and options go.
    pub boot_variables: Rtmr,
    /// Where the separator goes that follows the first attempt to boot.
    pub boot_separator: Rtmr,
    /// Where the name of the initramfs goes.
    pub initrd: InitrdArgument,
}

/// A name that no dialect has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an unknown dialect of firmware: edk2-2023, edk2-2024, edk2-202505 and edk2-202508 are known"
)]
pub struct UnknownDialect;

impl Dialect {
    /// edk2 as the first logs of TDX show it: all separators are in RTMR0.
    #[must_use]
    pub fn edk2_2023() -> Self {
        Self {
            fw_cfg: Vec::new(),
            authorities: Vec::new(),
            measures_smbios: false,
            boot_options: vec![BootOption::application(0, HIDDEN, "UiApp", UI_APP)],
            boot_variables: Rtmr::Rtmr0,
            boot_separator: Rtmr::Rtmr0,
            initrd: InitrdArgument::Behind,
        }
    }

    /// edk2 since the separator of the boot is in RTMR1, up to stable202502.
    #[must_use]
    pub fn edk2_2024() -> Self {
        Self {
            boot_separator: Rtmr::Rtmr1,
            ..Self::edk2_2023()
        }
    }

    /// edk2 since stable202505: it measures what it takes from fw_cfg at its start and SMBIOS' tables, and has two
    /// applications to start. QEMU with a kernel and no device with a `bootindex` says that the kernel's
    /// loader comes first, and shows no menu.
    #[must_use]
    pub fn edk2_202505() -> Self {
        let fw_cfg = [
            ("BootMenu", &[0, 0][..]),
            ("bootorder", b"/rom@genroms/linuxboot_dma.bin\0"),
        ];
        Self {
            fw_cfg: fw_cfg
                .map(|(name, content)| (name.to_owned(), content.to_vec()))
                .to_vec(),
            measures_smbios: true,
            boot_options: vec![
                BootOption::application(0, HIDDEN, "BootManagerMenuApp", MENU_APP),
                BootOption::application(1, ACTIVE, "EFI Firmware Setup", UI_APP),
            ],
            ..Self::edk2_2024()
        }
    }

    /// edk2 since stable202508, which puts the name of the initramfs first.
    #[must_use]
    pub fn edk2_202508() -> Self {
        Self {
            initrd: InitrdArgument::Before,
            ..Self::edk2_202505()
        }
    }
}

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        match name {
            "edk2-2023" => Ok(Self::edk2_2023()),
            "edk2-2024" => Ok(Self::edk2_2024()),
            "edk2-202505" => Ok(Self::edk2_202505()),
            "edk2-202508" => Ok(Self::edk2_202508()),
            _ => Err(UnknownDialect),
        }
    }
}

impl Rtmr {
    /// The number in logs.
    pub(super) const fn index(self) -> u32 {
        match self {
            Self::Rtmr0 => 1,
            Self::Rtmr1 => 2,
        }
    }
}

impl fmt::Display for Rtmr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RTMR{}", self.index() - 1)
    }
}
