//! The words of a report that have parts: TCB versions, policy, platform, key, signature.

use serde::{Deserialize, Serialize};

use super::bytes::array;

/// Security version numbers of the firmware's parts (56860, "TCB_VERSION").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcb {
    /// The FMC; from Turin on.
    pub fmc: Option<u8>,
    /// The secure processor's boot loader.
    pub bootloader: u8,
    /// The secure processor's operating system.
    pub tee: u8,
    /// The SNP firmware.
    pub snp: u8,
    /// The lowest patch level of all cores.
    pub microcode: u8,
}

impl Tcb {
    pub(super) fn read(bytes: [u8; 8], with_fmc: bool) -> Self {
        let [a, b, c, d, _, _, e, microcode] = bytes;
        if with_fmc {
            let (fmc, bootloader, tee, snp) = (Some(a), b, c, d);
            return Self {
                fmc,
                bootloader,
                tee,
                snp,
                microcode,
            };
        }
        Self {
            fmc: None,
            bootloader: a,
            tee: b,
            snp: e,
            microcode,
        }
    }

    pub(super) fn write(self, with_fmc: bool) -> [u8; 8] {
        if with_fmc {
            let fmc = self.fmc.unwrap_or(0);
            return [
                fmc,
                self.bootloader,
                self.tee,
                self.snp,
                0,
                0,
                0,
                self.microcode,
            ];
        }
        [
            self.bootloader,
            self.tee,
            0,
            0,
            0,
            0,
            self.snp,
            self.microcode,
        ]
    }
}

/// A version of the SNP firmware.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareVersion {
    /// The major number.
    pub major: u8,
    /// The minor number.
    pub minor: u8,
    /// The build.
    pub build: u8,
}

/// What the guest's owner allowed (56860, "Guest Policy").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    /// The lowest minor version of the firmware's ABI.
    #[must_use]
    pub const fn abi_minor(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// The lowest major version of the firmware's ABI.
    #[must_use]
    pub const fn abi_major(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    /// Whether simultaneous multithreading is allowed.
    #[must_use]
    pub const fn smt_allowed(self) -> bool {
        bit(self.0, 16)
    }

    /// Whether a migration agent may be associated.
    #[must_use]
    pub const fn migrate_ma(self) -> bool {
        bit(self.0, 18)
    }

    /// Whether the host may read the guest for debugging.
    #[must_use]
    pub const fn debug_allowed(self) -> bool {
        bit(self.0, 19)
    }

    /// Whether the guest may run on one socket only.
    #[must_use]
    pub const fn single_socket(self) -> bool {
        bit(self.0, 20)
    }

    /// Whether CXL memory may be used.
    #[must_use]
    pub const fn cxl_allowed(self) -> bool {
        bit(self.0, 21)
    }

    /// Whether memory has to be encrypted with AES-256-XTS.
    #[must_use]
    pub const fn mem_aes_256_xts(self) -> bool {
        bit(self.0, 22)
    }

    /// Whether power measurement has to be off.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        bit(self.0, 23)
    }

    /// Whether ciphertext hiding has to be on.
    #[must_use]
    pub const fn ciphertext_hiding(self) -> bool {
        bit(self.0, 24)
    }

    /// Whether the host may not move or swap pages.
    #[must_use]
    pub const fn page_swap_disabled(self) -> bool {
        bit(self.0, 25)
    }
}

/// How the platform is set up (56860, "PLATFORM_INFO").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    /// Simultaneous multithreading is on.
    #[must_use]
    pub const fn smt(self) -> bool {
        bit(self.0, 0)
    }

    /// Transparent memory encryption is on.
    #[must_use]
    pub const fn tsme(self) -> bool {
        bit(self.0, 1)
    }

    /// The memory has error correction.
    #[must_use]
    pub const fn ecc(self) -> bool {
        bit(self.0, 2)
    }

    /// Power measurement is off.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        bit(self.0, 3)
    }

    /// Ciphertext hiding is on.
    #[must_use]
    pub const fn ciphertext_hiding(self) -> bool {
        bit(self.0, 4)
    }

    /// No memory alias was found since the last reset.
    #[must_use]
    pub const fn alias_check_complete(self) -> bool {
        bit(self.0, 5)
    }

    /// Trusted I/O is on.
    #[must_use]
    pub const fn tio(self) -> bool {
        bit(self.0, 7)
    }
}

/// What signed the report (56860, "ATTESTATION_REPORT", 48h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo(pub u32);

/// The kind of key that signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKey {
    /// The chip's own.
    Vcek,
    /// One that AMD loaded for a cloud provider.
    Vlek,
    /// None, or one of a kind that this version of the ABI does not have.
    None,
}

impl KeyInfo {
    /// Whether AUTHOR_KEY_DIGEST is filled.
    #[must_use]
    pub const fn author_key(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether the firmware left the signature out.
    #[must_use]
    pub const fn signature_masked(self) -> bool {
        self.0 & 2 != 0
    }

    /// The kind of key.
    #[must_use]
    pub const fn signing_key(self) -> SigningKey {
        match self.0 >> 2 & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            _ => SigningKey::None,
        }
    }
}

/// ECDSA over P-384, both numbers little-endian (56860, "Signature Formats").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The first number.
    #[serde(with = "array")]
    pub r: [u8; 72],
    /// The second number.
    #[serde(with = "array")]
    pub s: [u8; 72],
}

impl Default for Signature {
    fn default() -> Self {
        Self {
            r: [0; 72],
            s: [0; 72],
        }
    }
}

const SCALAR_BYTES: usize = 48;

impl Signature {
    /// Both numbers big-endian, one after the other; nothing when one has more than 384 bits.
    #[must_use]
    pub fn fixed(&self) -> Option<[u8; 2 * SCALAR_BYTES]> {
        let mut fixed = [0; 2 * SCALAR_BYTES];
        for (number, to) in [self.r, self.s].iter().zip(fixed.chunks_mut(SCALAR_BYTES)) {
            let (value, padding) = number.split_at(SCALAR_BYTES);
            if padding.iter().any(|byte| *byte != 0) {
                return None;
            }
            to.copy_from_slice(value);
            to.reverse();
        }
        Some(fixed)
    }

    /// The reverse of [`fixed`](Self::fixed).
    #[must_use]
    pub fn from_fixed(fixed: &[u8; 2 * SCALAR_BYTES]) -> Self {
        let mut signature = Self::default();
        let (r, s) = fixed.split_at(SCALAR_BYTES);
        for (value, to) in [(r, &mut signature.r), (s, &mut signature.s)] {
            to[..SCALAR_BYTES].copy_from_slice(value);
            to[..SCALAR_BYTES].reverse();
        }
        signature
    }
}

const fn bit(word: u64, at: u32) -> bool {
    word >> at & 1 != 0
}
