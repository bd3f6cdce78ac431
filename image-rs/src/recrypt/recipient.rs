//! For whom layers are encrypted, and the wrapping of a layer's key for each of them.

use ocicrypt::Key;
use ocicrypt::annotation::{PROVIDER_COCO, Wrapped};
use ocicrypt::jwe::{self, PublicKey};
use ocicrypt::keyprovider::{EncryptConfig, Endpoint};
use ocicrypt::packet::{Format, Packet};

use super::RecryptError;

/// For whom layers are encrypted; each of them can open every layer alone.
#[expect(missing_debug_implementations, reason = "holds a key")]
#[derive(Default)]
pub struct Recipients {
    /// Keys that a broker keeps: their ids and the keys.
    pub broker: Vec<(String, Key)>,
    /// How packets for a broker's keys are written.
    pub format: Format,
    /// Public keys, for JWE.
    pub public: Vec<PublicKey>,
    /// Key providers, which hold their keys themselves.
    pub providers: Vec<ProviderRecipient>,
}

/// A key provider.
#[derive(Debug, Clone)]
pub struct ProviderRecipient {
    /// Its name, which stands in the annotation.
    pub name: String,
    /// What the user says to it; may be empty.
    pub words: String,
    /// How it is reached.
    pub endpoint: Endpoint,
}

impl Recipients {
    /// Whether nobody could open what was encrypted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.broker.is_empty() && self.public.is_empty() && self.providers.is_empty()
    }

    /// Wraps a layer's private options for everybody.
    pub(super) async fn wrap(&self, private: &[u8]) -> Result<Vec<Wrapped>, RecryptError> {
        let mut keys = Vec::new();
        for (kid, kek) in &self.broker {
            let packet = Packet::seal(self.format, kid, kek, private)?;
            keys.push(Wrapped::Provider {
                name: PROVIDER_COCO.to_owned(),
                annotation: packet.to_json(),
            });
        }
        for provider in &self.providers {
            let ProviderRecipient { name, words, .. } = provider;
            let config = EncryptConfig::words(name, words);
            let annotation = provider.endpoint.wrap(private, config).await;
            let annotation = annotation.map_err(|source| RecryptError::Provider {
                name: name.clone(),
                source,
            })?;
            keys.push(Wrapped::Provider {
                name: name.clone(),
                annotation,
            });
        }
        if !self.public.is_empty() {
            keys.push(Wrapped::Jwe(jwe::wrap(&self.public, private)?));
        }
        Ok(keys)
    }
}
