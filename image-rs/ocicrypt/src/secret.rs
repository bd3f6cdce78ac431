//! Keys in memory: wiped when dropped, never printed.
//!
//! Neither type has `Debug` or `Display`, so that a key cannot reach a log by accident.

use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::{Zeroize, Zeroizing};

/// Length in bytes of a layer key and of a key-encryption key.
pub const KEY_BYTES: usize = 32;

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct NoEntropy;

/// Secret bytes of any length, as a broker released them.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Makes a new key of 32 random bytes.
    ///
    /// # Errors
    /// [`NoEntropy`] when the operating system has no random source.
    pub fn generate() -> Result<Self, NoEntropy> {
        let mut bytes = Zeroizing::new(vec![0; KEY_BYTES]);
        fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, for the one who has to use them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// The key of one layer: 32 bytes, used by the cipher and by its HMAC.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
#[derive(Clone)]
pub struct LayerKey(Zeroizing<[u8; KEY_BYTES]>);

impl LayerKey {
    /// Makes a new random key.
    ///
    /// # Errors
    /// [`NoEntropy`] when the operating system has no random source.
    pub fn generate() -> Result<Self, NoEntropy> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        fill(bytes.as_mut_slice())?;
        Ok(Self(bytes))
    }

    /// Reads a key of exactly 32 bytes; `None` for any other length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut array: [u8; KEY_BYTES] = bytes.try_into().ok()?;
        let key = Self(Zeroizing::new(array));
        array.zeroize();
        Some(key)
    }

    /// The bytes, for the cipher.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

/// Fills `bytes` from the operating system.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), NoEntropy> {
    SysRng.try_fill_bytes(bytes).map_err(|_| NoEntropy)
}
