//! Bytes that are wiped when dropped and that no formatter can print.

use zeroize::Zeroizing;

/// A secret in the clear. It has no `Debug`, so it cannot slip into a log or an error.
#[derive(Clone)]
#[expect(
    missing_debug_implementations,
    reason = "a secret has no printable form"
)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The bytes; the caller promises to keep them out of logs.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes by value, still wiped when dropped.
    #[must_use]
    pub fn into_zeroizing(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl From<Zeroizing<Vec<u8>>> for Secret {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}
