//! Where the keys that open an image come from.

use async_trait::async_trait;

use crate::jwe::PrivateKey;
use crate::secret::Key;

/// Why a key is not there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    /// The broker has no such key.
    #[error("key {kid} does not exist at the broker")]
    NotFound {
        /// Which key.
        kid: String,
    },
    /// The broker refused to release it.
    #[error("the broker does not release key {kid}: {reason}")]
    Denied {
        /// Which key.
        kid: String,
        /// What the broker said.
        reason: String,
    },
    /// The broker could not be asked.
    #[error("key {kid} could not be fetched: {reason}")]
    Unavailable {
        /// Which key.
        kid: String,
        /// What failed.
        reason: String,
    },
}

/// A holder of keys: the guest's client of a broker, or a file on an operator's machine.
#[async_trait]
pub trait KeySource: Send + Sync {
    /// Gives the key that `kid` (a `kbs:///` URI) names. Asked once per distinct id of an image.
    ///
    /// # Errors
    /// See [`KeyError`].
    async fn key(&self, kid: &str) -> Result<Key, KeyError>;

    /// Private keys that open layers wrapped as JWE; most sources have none.
    fn private_keys(&self) -> &[PrivateKey] {
        &[]
    }
}
