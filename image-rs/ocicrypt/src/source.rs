//! Where the keys that open an image come from.

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::jwe::PrivateKey;
use crate::secret::Key;

/// Private options as a key provider unwrapped them.
pub type Unwrapped = Zeroizing<Vec<u8>>;

/// Why a key is not there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    /// The broker has no such key.
    #[error("key {kid} does not exist at the broker")]
    NotFound {
        /// Which key.
        kid: String,
    },
    /// The one who decrypts has not given it.
    #[error("key {kid} is needed, and was not given")]
    NotGiven {
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
    /// A key provider did not unwrap.
    #[error("key provider {name:?} does not unwrap the layer key: {reason}")]
    Provider {
        /// Which provider.
        name: String,
        /// What it said.
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

    /// Has the source's own key provider `name` unwrap what it wrote; `None` where the source has no such provider, and
    /// then a packet of Confidential Containers is opened with the key that it names.
    async fn unwrap(&self, name: &str, annotation: &[u8]) -> Option<Result<Unwrapped, KeyError>> {
        let _ = (name, annotation);
        None
    }

    /// Private keys that open layers wrapped as JWE; most sources have none.
    fn private_keys(&self) -> &[PrivateKey] {
        &[]
    }
}
