//! Guests whose memory and registers the host cannot read: AMD SEV-SNP and Intel TDX.
//!
//! ```text
//!   Confidential (what is measured or bound) ──check──► CheckedSpec ──┐
//!   host::look  KVM, module, device, CPUID ── or Lack, with a fix ────┼─► arguments()
//!   ability::of the objects, properties and models of this QEMU ──────┘
//! ```
//!
//! All three are asked before anything is started, so that who asked for such a guest gets it or is told
//! what is missing, and never gets a plain VM.
//!
//! What such a guest is made of is measured at its start and stays: nothing is plugged in, no memory is
//! given back, no directory is shared. Its kernel command line depends on nothing but the spec: the
//! vsock device is ours, as the kernel's has one space of ports for the whole host and may have to tell
//! the guest another one. The memory that QEMU and the device map holds only what the guest shares; what
//! it keeps to itself is in guest_memfd, which no process of the host can map.

pub mod ability;
mod fit;
pub mod host;

use std::path::{Path, PathBuf};

use thiserror::Error;

use self::host::MemoryEncryption;

pub(crate) use self::fit::check;

/// Bytes of `HOST_DATA` (AMD 56860, 8.18).
pub const HOST_DATA_BYTES: usize = 32;
/// Bytes of an ID block (AMD 56860, table 75).
pub const ID_BLOCK_BYTES: usize = 96;
/// Bytes of the ID authentication information (AMD 56860, table 78).
pub const ID_AUTH_BYTES: usize = 4096;
/// Bytes of `MRCONFIGID`, `MROWNER` and `MROWNERCONFIG` (Intel TDX module ABI, TD_PARAMS).
pub const TDX_ID_BYTES: usize = 48;
/// The guest policy that asks for nothing: SMT is allowed, and the bit that is always one.
pub const DEFAULT_POLICY: u64 = POLICY_SMT | POLICY_ONE;
/// The CPU model that every generation with SNP can be.
pub const DEFAULT_CPU_MODEL: &str = "EPYC-v4";
/// The port at which Intel's quoting service listens on the host's vsock.
pub const DEFAULT_QUOTE_PORT: u32 = 4050;

/// Bits of an SNP guest's policy (AMD 56860, table 9).
const POLICY_SMT: u64 = 1 << 16;
const POLICY_ONE: u64 = 1 << 17;
const POLICY_MIGRATION: u64 = 1 << 18;
const POLICY_DEBUG: u64 = 1 << 19;
/// Where the ID block has the policy.
const ID_BLOCK_POLICY: usize = 88;
/// Where the authentication information has the algorithm of the author's key.
const AUTHOR_ALGORITHM: std::ops::Range<usize> = 4..8;
/// The longest name of a CPU model.
const MAX_MODEL: usize = 40;

/// The technology.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Kind {
    /// The name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snp => "SEV-SNP",
            Self::Tdx => "TDX",
        }
    }
}

/// What makes a VM a confidential one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confidential {
    /// An SEV-SNP guest.
    Snp(Snp),
    /// A TD.
    Tdx(Tdx),
}

/// How an SEV-SNP guest is launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snp {
    /// QEMU's CPU model, whose signature is measured.
    pub cpu_model: String,
    /// The guest policy (AMD 56860, table 9).
    pub policy: u64,
    /// What the report says as `HOST_DATA`: the digest of the init-data.
    pub host_data: [u8; HOST_DATA_BYTES],
    /// What the security processor compares the launch with.
    pub id_block: Option<IdBlock>,
    /// Whether reports are signed with the key that AMD lends to the cloud (VLEK) alone, never with the chip's (VCEK).
    pub vcek_disabled: bool,
}

/// An owner's signed statement of what may start.
#[derive(Clone, PartialEq, Eq)]
pub struct IdBlock {
    block: [u8; ID_BLOCK_BYTES],
    auth: Box<[u8; ID_AUTH_BYTES]>,
}

/// How a TD is launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tdx {
    /// What the report says as `MRCONFIGID`: the digest of the init-data.
    pub mrconfigid: [u8; TDX_ID_BYTES],
    /// What it says as `MROWNER`; zeros where nobody is named.
    pub mrowner: [u8; TDX_ID_BYTES],
    /// What it says as `MROWNERCONFIG`; zeros where there is none.
    pub mrownerconfig: [u8; TDX_ID_BYTES],
    /// Who makes quotes of the guest's reports.
    pub quotes: QuoteService,
}

/// Where the host's quoting service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuoteService {
    /// On the host's vsock.
    Vsock {
        /// The port.
        port: u32,
    },
    /// On a socket.
    Unix(PathBuf),
}

/// What a confidential guest cannot have, or lacks.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Unfit {
    /// Something of the VM.
    #[error("a confidential guest {reason}")]
    Shape {
        /// What and why.
        reason: &'static str,
    },
    /// The policy lets the host in, or is none.
    #[error("SNP guest policy {policy:#x} {reason}")]
    Policy {
        /// The policy.
        policy: u64,
        /// Why not.
        reason: &'static str,
    },
    /// An IGVM file that cannot be this guest's.
    #[error("an IGVM file {reason}")]
    Igvm {
        /// Why not.
        reason: &'static str,
    },
    /// No name of a model.
    #[error("CPU model {model:?}: use 1 to {MAX_MODEL} of the characters A-Z a-z 0-9 . _ -")]
    Model {
        /// The name.
        model: String,
    },
}

/// An ID block that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum IdBlockError {
    /// The block's length.
    #[error("an ID block has {ID_BLOCK_BYTES} bytes, and this one {0}")]
    Block(usize),
    /// The length of what authenticates it.
    #[error("ID authentication information has {ID_AUTH_BYTES} bytes, and this one {0}")]
    Auth(usize),
}

impl IdBlock {
    /// From the bytes of both structures.
    ///
    /// # Errors
    /// [`IdBlockError`] where a length is not right.
    pub fn new(block: &[u8], auth: &[u8]) -> Result<Self, IdBlockError> {
        let fixed = block.try_into();
        let boxed = Box::<[u8]>::from(auth).try_into();
        Ok(Self {
            block: fixed.map_err(|_| IdBlockError::Block(block.len()))?,
            auth: boxed.map_err(|_| IdBlockError::Auth(auth.len()))?,
        })
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn block(&self) -> &[u8] {
        &self.block
    }

    /// Signatures and keys.
    #[must_use]
    pub fn auth(&self) -> &[u8] {
        &self.auth[..]
    }

    /// Whether an author's key vouches for the ID key.
    #[must_use]
    pub fn has_author(&self) -> bool {
        self.auth[AUTHOR_ALGORITHM].iter().any(|byte| *byte != 0)
    }

    /// The policy that the launch must have.
    #[must_use]
    pub fn policy(&self) -> u64 {
        let (bytes, _) = self.block[ID_BLOCK_POLICY..]
            .split_first_chunk()
            .unwrap_or((&[0; 8], &[]));
        u64::from_le_bytes(*bytes)
    }
}

impl std::fmt::Debug for IdBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdBlock")
    }
}

impl Confidential {
    /// The technology.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Snp(_) => Kind::Snp,
            Self::Tdx(_) => Kind::Tdx,
        }
    }
}

/// Whether an SNP guest may have this policy.
///
/// # Errors
/// [`Unfit::Policy`]: one with which the host could read the guest, or which is none.
pub fn check_policy(policy: u64) -> Result<(), Unfit> {
    let reason = if policy & POLICY_DEBUG != 0 {
        "has bit 19 (DEBUG), with which the host reads the guest's memory: clear it"
    } else if policy & POLICY_MIGRATION != 0 {
        "has bit 18 (MIGRATE_MA), and there is no migration agent: clear it"
    } else if policy & POLICY_ONE == 0 {
        "lacks bit 17, which is always one: set it"
    } else {
        return Ok(());
    };
    Err(Unfit::Policy { policy, reason })
}

/// Why a host launches no such guest.
#[derive(Debug, Error)]
pub enum NotReady {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] host::Lack),
    /// The processor says nothing of how it encrypts memory.
    #[error(
        "SEV-SNP: CPUID 0x8000001F says nothing of encrypted memory: in a VM, its host hides it"
    )]
    Leaf,
    /// QEMU lacks something.
    #[error(transparent)]
    Qemu(#[from] ability::Unable),
}

/// Whether host and QEMU can launch the guest, from an IGVM file where it has one; how the processor encrypts memory, where that is asked.
///
/// # Errors
/// The first thing that is missing.
pub async fn ready(
    wanted: &Confidential,
    has_igvm: bool,
    qemu: &Path,
) -> Result<Option<MemoryEncryption>, NotReady> {
    host::look(wanted.kind(), &host::Files::below(Path::new("/")))?;
    ability::check(qemu, wanted, has_igvm).await?;
    match wanted.kind() {
        Kind::Snp => host::memory_encryption().ok_or(NotReady::Leaf).map(Some),
        Kind::Tdx => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_lets_the_host_in_is_refused() {
        assert_eq!(check_policy(DEFAULT_POLICY), Ok(()));
        assert_eq!(check_policy(DEFAULT_POLICY | 1 << 20), Ok(()));
        for (policy, named) in [
            (DEFAULT_POLICY | 1 << 19, "DEBUG"),
            (DEFAULT_POLICY | 1 << 18, "MIGRATE_MA"),
            (1 << 16, "bit 17"),
        ] {
            let error = check_policy(policy).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn an_id_block_has_its_lengths_and_says_its_policy_and_whether_an_author_signed() {
        let mut block = [0; ID_BLOCK_BYTES];
        block[90] = 3;
        let mut auth = [0; ID_AUTH_BYTES];
        let id = IdBlock::new(&block, &auth).unwrap();
        assert_eq!((id.policy(), id.has_author()), (0x3_0000, false));
        auth[4] = 1;
        assert!(IdBlock::new(&block, &auth).unwrap().has_author());
        assert_eq!(
            IdBlock::new(&block[1..], &auth),
            Err(IdBlockError::Block(95))
        );
        assert_eq!(
            IdBlock::new(&block, &auth[1..]),
            Err(IdBlockError::Auth(4095))
        );
    }
}
