//! Bytes sealed with a key that only the broker has: cookies, and resources at rest.

use std::io;

use aes_gcm::{
    Aes256Gcm,
    aead::{Aead, KeyInit, Payload},
};
use rand::Rng;
use zeroize::Zeroizing;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;
const IV_BYTES: usize = 12;

/// AES-256-GCM under one key, with a fresh IV in front of each text. It has no `Debug`.
pub(crate) struct Sealer(Aes256Gcm);

impl Sealer {
    /// A key that nobody else has, for as long as this process lives.
    pub(crate) fn ephemeral() -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rand::rng().fill_bytes(&mut *key);
        Self(Aes256Gcm::new((&*key).into()))
    }

    /// A key of 64 hex digits.
    pub(crate) fn from_hex(text: &str) -> Result<Self, KeyFileError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(text, &mut *key).map_err(|_| KeyFileError::Form)?;
        Ok(Self(Aes256Gcm::new((&*key).into())))
    }

    /// A key that was just made, or unwrapped.
    pub(crate) fn from_bytes(key: &[u8; KEY_BYTES]) -> Self {
        Self(Aes256Gcm::new(key.into()))
    }

    /// The text of a new key file.
    pub(crate) fn new_key() -> Zeroizing<String> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rand::rng().fill_bytes(&mut *key);
        let mut text = Zeroizing::new(hex::encode(key.as_slice()));
        text.push('\n');
        text
    }

    /// Seals bytes for one purpose or place, which is `context`.
    pub(crate) fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut iv = [0; IV_BYTES];
        rand::rng().fill_bytes(&mut iv);
        let payload = Payload {
            msg: plain,
            aad: context.as_bytes(),
        };
        let sealed = self
            .0
            .encrypt((&iv).into(), payload)
            .map_err(|_| SealError)?;
        Ok([&iv[..], &sealed].concat())
    }

    /// Opens what was sealed under the same key for the same context.
    pub(crate) fn open(
        &self,
        context: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (iv, rest) = sealed.split_first_chunk::<IV_BYTES>().ok_or(SealError)?;
        let payload = Payload {
            msg: rest,
            aad: context.as_bytes(),
        };
        self.0
            .decrypt(iv.into(), payload)
            .map(Zeroizing::new)
            .map_err(|_| SealError)
    }
}

/// Sealed under another key, for another context, or altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed under another key or for another place, or altered")]
pub struct SealError;

/// A key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("read: {0}")]
    Read(io::Error),
    /// It cannot be replaced.
    #[error("write: {0}")]
    Write(io::Error),
    /// The variable is not set.
    #[error("not set in the environment")]
    Environment,
    /// It is not 64 hex digits.
    #[error("not 64 hex digits: `kbs init` writes such a file")]
    Form,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_for_its_key_and_context_only() {
        let sealer = Sealer::ephemeral();
        let sealed = sealer.seal("here", b"secret").unwrap();
        assert_eq!(&**sealer.open("here", &sealed).ok().unwrap(), b"secret");
        assert!(sealer.open("there", &sealed).is_err());
        assert!(Sealer::ephemeral().open("here", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(sealer.open("here", &altered).is_err());
            assert!(sealer.open("here", &sealed[..at]).is_err());
        }
    }
}
