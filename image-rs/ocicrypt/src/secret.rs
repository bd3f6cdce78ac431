//! Keys in memory: wiped when dropped, never printed.
//!
//! Neither type has `Debug` or `Display`, so that a key cannot reach a log by accident. A layer key stands in a box,
//! because a move on the stack leaves what was moved behind; and text that holds a key is written into a buffer which
//! wipes itself when it grows, because a `Vec` hands its old memory back as it is.

use std::io::{self, Read, Write};

use rand::TryRng;
use rand::rngs::SysRng;
use serde::Serialize;
use zeroize::Zeroizing;

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
pub struct LayerKey(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl LayerKey {
    /// Makes a new random key.
    ///
    /// # Errors
    /// [`NoEntropy`] when the operating system has no random source.
    pub fn generate() -> Result<Self, NoEntropy> {
        let mut key = Self::zero();
        fill(key.0.as_mut_slice())?;
        Ok(key)
    }

    /// Reads a key of exactly 32 bytes; `None` for any other length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = Self::zero();
        (bytes.len() == KEY_BYTES).then(|| key.0.copy_from_slice(bytes))?;
        Some(key)
    }

    fn zero() -> Self {
        Self(Box::new(Zeroizing::new([0; KEY_BYTES])))
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

/// Bytes in the making that hold a secret. What it outgrows is wiped.
pub(crate) struct SecretBuffer(Zeroizing<Vec<u8>>);

impl SecretBuffer {
    /// Enough for what usually is written.
    const FIRST_BYTES: usize = 1024;

    pub(crate) fn new() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(Self::FIRST_BYTES)))
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut grown = Zeroizing::new(Vec::with_capacity(needed.max(2 * self.0.capacity())));
            grown.extend_from_slice(&self.0);
            self.0 = grown;
        }
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn into_inner(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl Write for SecretBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON that holds a secret. Our own types have no map with keys that are no text, so that none fails.
pub(crate) fn to_json(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut buffer = SecretBuffer::new();
    match serde_json::to_writer(&mut buffer, value) {
        Ok(()) => buffer.into_inner(),
        Err(_) => Zeroizing::default(),
    }
}

/// Reads a secret to its end, without leaving copies of it behind; `None` when it has more than `cap` bytes.
///
/// # Errors
/// The reader's own.
pub fn read_secret(mut reader: impl Read, cap: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut buffer = SecretBuffer::new();
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        match reader.read(piece.as_mut_slice()) {
            Ok(0) => return Ok(Some(buffer.into_inner())),
            Ok(count) if buffer.len() + count > cap => return Ok(None),
            Ok(count) => buffer.extend(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_without_losing_a_byte() {
        let mut buffer = SecretBuffer::new();
        let expected: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        for piece in expected.chunks(333) {
            buffer.extend(piece);
        }
        assert_eq!(*buffer.into_inner(), expected);
    }

    #[test]
    fn a_secret_is_read_up_to_its_cap_and_no_further() {
        let bytes = [7; 5000];
        assert_eq!(read_secret(&bytes[..], 5000).unwrap().unwrap().len(), 5000);
        assert!(read_secret(&bytes[..], 4999).unwrap().is_none());
    }

    #[test]
    fn a_layer_key_has_32_bytes_or_is_none() {
        assert!(LayerKey::from_slice(&[1; 31]).is_none());
        assert!(LayerKey::from_slice(&[1; 33]).is_none());
        assert_eq!(LayerKey::from_slice(&[1; 32]).unwrap().expose(), &[1; 32]);
    }
}
