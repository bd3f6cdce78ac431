//! Opens the keys of all the encrypted layers of an image at once.
//!
//! Every distinct key id is asked for once, and all of them at the same time, before any layer is fetched: an image
//! that cannot be opened is refused in one round, not after its first gigabyte.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;

use futures_util::future::join_all;
use zeroize::Zeroizing;

use crate::annotation::{AnnotationError, Encryption, Wrapped};
use crate::cipher::{HMAC_BYTES, Nonce};
use crate::jwe::{self, JweError};
use crate::options::{OptionsError, PrivateOptions};
use crate::packet::{Packet, PacketError};
use crate::secret::{Key, LayerKey};
use crate::source::{KeyError, KeySource};

/// Cap on the distinct keys of one image.
pub const KEYS_MAX: usize = 128;

/// Why a layer's key cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The annotations of a layer.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The source of keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A packet.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// A JWE.
    #[error(transparent)]
    Jwe(#[from] JweError),
    /// What was wrapped is not private options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Neither options have a nonce.
    #[error("an encrypted layer has no nonce")]
    NoNonce,
    /// A cap.
    #[error("the image names more than {KEYS_MAX} keys")]
    TooManyKeys,
}

/// All that is needed to decrypt one layer.
#[expect(missing_debug_implementations, reason = "holds the layer key")]
pub struct LayerOptions {
    /// The layer key.
    pub key: LayerKey,
    /// The start of the counter.
    pub nonce: Nonce,
    /// The HMAC that the ciphertext must have.
    pub hmac: [u8; HMAC_BYTES],
    /// The digest that the layer had before encryption, `sha256:<hex>`; empty where its writer left it out.
    ///
    /// A writer that compresses while it encrypts (skopeo) names the layer as it was before that, so this is the
    /// digest of either the compressed or the uncompressed plaintext.
    pub digest: String,
}

/// Opens the layers whose annotations are given, in order.
///
/// # Errors
/// See [`Error`]. The first failed way of a layer is told when no way opens it.
pub async fn unwrap_layers<S: BuildHasher>(
    layers: &[&HashMap<String, String, S>],
    source: &dyn KeySource,
) -> Result<Vec<LayerOptions>, Error> {
    let layers: Vec<_> = layers
        .iter()
        .map(|annotations| Ways::read(annotations))
        .collect::<Result<_, _>>()?;
    let kids: BTreeSet<String> = layers.iter().flat_map(Ways::kids).collect();
    if kids.len() > KEYS_MAX {
        return Err(Error::TooManyKeys);
    }
    let asked = kids
        .iter()
        .map(|kid| async move { (kid.clone(), source.key(kid).await) });
    let keks: BTreeMap<_, _> = join_all(asked).await.into_iter().collect();
    layers
        .iter()
        .map(|layer| layer.open(&keks, source))
        .collect()
}

/// One layer, and every way to open it.
struct Ways(Encryption);

impl Ways {
    fn read<S: BuildHasher>(
        annotations: &HashMap<String, String, S>,
    ) -> Result<Self, AnnotationError> {
        Encryption::read(annotations).map(Self)
    }

    /// A packet that cannot be read asks for no key; opening it says why.
    fn kids(&self) -> Vec<String> {
        let packets = self.0.keys.iter().filter_map(|wrapped| match wrapped {
            Wrapped::Provider { annotation, .. } => Packet::from_json(annotation).ok(),
            Wrapped::Jwe(_) => None,
        });
        packets.map(|packet| packet.kid().to_owned()).collect()
    }

    fn open(&self, keks: &Keks, source: &dyn KeySource) -> Result<LayerOptions, Error> {
        let mut first = None;
        for wrapped in &self.0.keys {
            let opened = match wrapped {
                Wrapped::Provider { annotation, .. } => open_packet(annotation, keks),
                Wrapped::Jwe(message) => {
                    jwe::unwrap(message, source.private_keys()).map_err(Error::from)
                }
            };
            match opened {
                Ok(plain) => return self.finish(&plain),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| AnnotationError::NoKeys(String::new()).into()))
    }

    fn finish(&self, plain: &[u8]) -> Result<LayerOptions, Error> {
        let private = PrivateOptions::from_json(plain)?;
        let nonce = private
            .nonce
            .or(self.0.public.nonce)
            .ok_or(Error::NoNonce)?;
        Ok(LayerOptions {
            key: private.key,
            nonce,
            hmac: self.0.public.hmac,
            digest: private.digest,
        })
    }
}

type Keks = BTreeMap<String, Result<Key, KeyError>>;

fn open_packet(annotation: &[u8], keks: &Keks) -> Result<Zeroizing<Vec<u8>>, Error> {
    let packet = Packet::from_json(annotation)?;
    match keks.get(packet.kid()) {
        Some(Ok(kek)) => Ok(packet.open(kek)?),
        Some(Err(error)) => Err(error.clone().into()),
        None => Err(KeyError::NotFound {
            kid: packet.kid().to_owned(),
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::annotation::PROVIDER_COCO;
    use crate::options::PublicOptions;
    use crate::packet::Format;

    /// A broker with one key, that counts how often it is asked.
    struct OneKey(&'static str, [u8; 32], AtomicUsize);

    #[async_trait]
    impl KeySource for OneKey {
        async fn key(&self, kid: &str) -> Result<Key, KeyError> {
            self.2.fetch_add(1, Ordering::Relaxed);
            if kid == self.0 {
                Ok(Key::new(self.1.to_vec()))
            } else {
                Err(KeyError::NotFound {
                    kid: kid.to_owned(),
                })
            }
        }
    }

    fn layer(kid: &str, kek: [u8; 32], seed: u8) -> HashMap<String, String> {
        let private = PrivateOptions {
            key: LayerKey::from_slice(&[seed; 32]).unwrap(),
            digest: String::new(),
            nonce: Some(Nonce([seed; 16])),
        };
        let packet =
            Packet::seal(Format::V2, kid, &Key::new(kek.to_vec()), &private.to_json()).unwrap();
        let wrapped = Wrapped::Provider {
            name: PROVIDER_COCO.to_owned(),
            annotation: packet.to_json(),
        };
        let encryption = Encryption {
            public: PublicOptions::new([seed; 32]),
            keys: vec![wrapped],
        };
        encryption.write().into_iter().collect()
    }

    #[tokio::test]
    async fn a_key_that_many_layers_share_is_asked_for_once() {
        let source = OneKey("kbs:///a/b/c", [8; 32], AtomicUsize::new(0));
        let layers: Vec<_> = (1..=5)
            .map(|seed| layer("kbs:///a/b/c", [8; 32], seed))
            .collect();
        let opened = unwrap_layers(&layers.iter().collect::<Vec<_>>(), &source)
            .await
            .unwrap();
        assert_eq!(source.2.load(Ordering::Relaxed), 1);
        let keys: Vec<_> = opened.iter().map(|layer| layer.key.expose()[0]).collect();
        assert_eq!(keys, [1, 2, 3, 4, 5]);
    }

    #[tokio::test]
    async fn one_layer_that_stays_shut_fails_the_image_and_is_named() {
        let source = OneKey("kbs:///a/b/c", [8; 32], AtomicUsize::new(0));
        let layers = [
            layer("kbs:///a/b/c", [8; 32], 1),
            layer("kbs:///a/b/other", [8; 32], 2),
        ];
        let error = unwrap_layers(&layers.iter().collect::<Vec<_>>(), &source)
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("kbs:///a/b/other"), "{error}");
    }
}
