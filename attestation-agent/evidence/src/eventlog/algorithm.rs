//! The algorithms that a log may name (TCG Algorithm Registry, `TPM_ALG_ID`).

use sha2::{Digest, Sha256, Sha384, Sha512};

/// An algorithm of digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestAlgorithm {
    /// 20 bytes.
    Sha1,
    /// 32 bytes.
    Sha256,
    /// 48 bytes; the registers of a TD have it.
    Sha384,
    /// 64 bytes.
    Sha512,
    /// 32 bytes.
    Sm3,
}

impl DigestAlgorithm {
    const ALL: [Self; 5] = [
        Self::Sha1,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Sm3,
    ];

    /// The identifier in a log.
    #[must_use]
    pub const fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x04,
            Self::Sha256 => 0x0b,
            Self::Sha384 => 0x0c,
            Self::Sha512 => 0x0d,
            Self::Sm3 => 0x12,
        }
    }

    /// Bytes of a digest.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sm3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The name in claims.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
            Self::Sm3 => "SM3",
        }
    }

    pub(super) fn of_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.id() == id)
    }

    /// Whether this is the digest of these bytes. SHA-1 is too weak to say it, and no TD has SM3.
    pub(super) fn is_digest(self, digest: &[u8], data: &[u8]) -> bool {
        match self {
            Self::Sha256 => Sha256::digest(data)[..] == *digest,
            Self::Sha384 => Sha384::digest(data)[..] == *digest,
            Self::Sha512 => Sha512::digest(data)[..] == *digest,
            Self::Sha1 | Self::Sm3 => false,
        }
    }
}
