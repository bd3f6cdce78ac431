//! Opens the keys of all the encrypted layers of an image at once.
//!
//! Every distinct key id is asked for once, and all of them at the same time, before any layer is fetched: an image
//! that cannot be opened is refused in one round, not after its first gigabyte.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;

use futures_util::{FutureExt as _, StreamExt as _, stream};

use crate::annotation::{AnnotationError, Encryption, Wrapped};
use crate::cipher::{HMAC_BYTES, Nonce};
use crate::jwe::{self, JweError};
use crate::options::{OptionsError, PrivateOptions, PublicOptions};
use crate::packet::{Packet, PacketError};
use crate::secret::{Key, LayerKey};
use crate::source::{KeyError, KeySource, Unwrapped};

/// Cap on the distinct keys of one image.
pub const KEYS_MAX: usize = 128;
/// Questions to a source that are under way at once.
const AT_ONCE: usize = 16;

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
    /// A nonce in clear that is not the wrapped one: only one of them was there when the layer was encrypted.
    #[error("the public options of an encrypted layer have another nonce than the private ones")]
    TwoNonces,
    /// Nothing would tell an altered key packet.
    #[error(
        "the layer key under {kid} is wrapped by {wrap_type}, which tells no alteration, and names no digest of the \
         layer that would; encrypt the image again"
    )]
    Unauthenticated {
        /// Which key.
        kid: String,
        /// How it is wrapped.
        wrap_type: &'static str,
    },
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
        .map(|annotations| Encryption::read(annotations))
        .collect::<Result<_, _>>()?;
    let opened = Opened::ask(&layers, source).await?;
    layers
        .iter()
        .enumerate()
        .map(|(index, layer)| opened.open(index, layer, source))
        .collect()
}

/// What was got for all layers together, before any of them is opened.
struct Opened {
    /// Options that a provider of the source unwrapped, by layer and way.
    unwrapped: BTreeMap<(usize, usize), Result<Unwrapped, KeyError>>,
    keks: BTreeMap<String, Result<Key, KeyError>>,
}

impl Opened {
    async fn ask(layers: &[Encryption], source: &dyn KeySource) -> Result<Self, Error> {
        let questions = layers.iter().enumerate().flat_map(|(layer, encryption)| {
            let ways = encryption.keys.iter().enumerate();
            ways.filter_map(move |(way, wrapped)| match wrapped {
                Wrapped::Provider { name, annotation } => Some(((layer, way), name, annotation)),
                Wrapped::Jwe(_) => None,
            })
        });
        let questions: Vec<_> = questions.collect();
        let asked: Vec<_> = questions
            .iter()
            .map(|&(place, name, annotation)| ask_provider(source, place, name, annotation).boxed())
            .collect();
        let answers: Vec<_> = stream::iter(asked)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let unwrapped: BTreeMap<_, _> = answers.into_iter().flatten().collect();
        // A packet that cannot be read asks for no key; opening it says why.
        let kids: BTreeSet<String> = questions
            .iter()
            .filter(|(place, ..)| !unwrapped.contains_key(place))
            .filter_map(|(_, _, annotation)| Packet::from_json(annotation).ok())
            .map(|packet| packet.kid().to_owned())
            .collect();
        if kids.len() > KEYS_MAX {
            return Err(Error::TooManyKeys);
        }
        let asked: Vec<_> = kids
            .into_iter()
            .map(|kid| ask_broker(source, kid).boxed())
            .collect();
        let keks = stream::iter(asked)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        Ok(Self { unwrapped, keks })
    }

    fn open(
        &self,
        index: usize,
        layer: &Encryption,
        source: &dyn KeySource,
    ) -> Result<LayerOptions, Error> {
        let mut first = None;
        for (way, wrapped) in layer.keys.iter().enumerate() {
            let opened = match (self.unwrapped.get(&(index, way)), wrapped) {
                (Some(Ok(plain)), _) => finish(&layer.public, plain, None),
                (Some(Err(error)), _) => Err(error.clone().into()),
                (None, Wrapped::Provider { annotation, .. }) => self.packet(layer, annotation),
                (None, Wrapped::Jwe(message)) => jwe::unwrap(message, source.private_keys())
                    .map_err(Error::from)
                    .and_then(|plain| finish(&layer.public, &plain, None)),
            };
            match opened {
                Ok(options) => return Ok(options),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| AnnotationError::NoKeys(String::new()).into()))
    }

    fn packet(&self, layer: &Encryption, annotation: &[u8]) -> Result<LayerOptions, Error> {
        let packet = Packet::from_json(annotation)?;
        let kek = match self.keks.get(packet.kid()) {
            Some(Ok(kek)) => kek,
            Some(Err(error)) => return Err(error.clone().into()),
            None => {
                let kid = packet.kid().to_owned();
                return Err(KeyError::NotFound { kid }.into());
            }
        };
        finish(&layer.public, &packet.open(kek)?, Some(&packet))
    }
}

// Functions and boxes rather than closures: the future of a pull must be `Send` for every lifetime.

type Unwrapping = ((usize, usize), Result<Unwrapped, KeyError>);

async fn ask_provider(
    source: &dyn KeySource,
    place: (usize, usize),
    name: &str,
    annotation: &[u8],
) -> Option<Unwrapping> {
    let answer = source.unwrap(name, annotation).await?;
    Some((place, answer))
}

async fn ask_broker(source: &dyn KeySource, kid: String) -> (String, Result<Key, KeyError>) {
    let key = source.key(&kid).await;
    (kid, key)
}

/// Options of one layer from their two halves; `packet` is what the private one came in.
fn finish(
    public: &PublicOptions,
    private: &[u8],
    packet: Option<&Packet>,
) -> Result<LayerOptions, Error> {
    let private = PrivateOptions::from_json(private)?;
    let nonce = match (private.nonce, public.nonce) {
        (Some(private), Some(public)) if private != public => return Err(Error::TwoNonces),
        (private, public) => private.or(public).ok_or(Error::NoNonce)?,
    };
    if let Some(packet) = packet.filter(|packet| !packet.is_authenticated())
        && private.digest.is_empty()
    {
        return Err(Error::Unauthenticated {
            kid: packet.kid().to_owned(),
            wrap_type: packet.wrap_type(),
        });
    }
    Ok(LayerOptions {
        key: private.key,
        nonce,
        hmac: public.hmac,
        digest: private.digest,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::annotation::PROVIDER_COCO;
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

    /// A broker that answers nobody before three have asked.
    struct Together(tokio::sync::Barrier);

    #[async_trait]
    impl KeySource for Together {
        async fn key(&self, kid: &str) -> Result<Key, KeyError> {
            self.0.wait().await;
            let last = kid.bytes().last().unwrap_or_default();
            Ok(Key::new(vec![last; 32]))
        }
    }

    #[tokio::test]
    async fn several_keys_are_fetched_side_by_side() {
        let source = Together(tokio::sync::Barrier::new(3));
        let kids = ["kbs:///a/b/1", "kbs:///a/b/2", "kbs:///a/b/3"];
        let layers: Vec<_> = (0..9)
            .map(|index| {
                let kid = kids[index % 3];
                layer(kid, [kid.as_bytes()[kid.len() - 1]; 32], 1)
            })
            .collect();
        let layers: Vec<_> = layers.iter().collect();
        let opened = unwrap_layers(&layers, &source);
        let opened = tokio::time::timeout(std::time::Duration::from_secs(20), opened).await;
        assert_eq!(opened.expect("they wait for each other").unwrap().len(), 9);
    }

    #[tokio::test]
    async fn a_second_nonce_in_clear_is_refused() {
        let source = OneKey("kbs:///a/b/c", [8; 32], AtomicUsize::new(0));
        let mut annotations = layer("kbs:///a/b/c", [8; 32], 1);
        for (nonce, refused) in [([1; 16], false), ([2; 16], true)] {
            let public = PublicOptions {
                hmac: [1; 32],
                nonce: Some(Nonce(nonce)),
            };
            let public = Encryption {
                public,
                keys: Vec::new(),
            };
            annotations.extend(public.write());
            let opened = unwrap_layers(&[&annotations], &source).await;
            assert_eq!(matches!(opened, Err(Error::TwoNonces)), refused);
        }
    }

    /// A source with a key provider of its own.
    struct Provider;

    #[async_trait]
    impl KeySource for Provider {
        async fn key(&self, kid: &str) -> Result<Key, KeyError> {
            panic!("asked for {kid}, though the provider answered")
        }

        async fn unwrap(&self, name: &str, bytes: &[u8]) -> Option<Result<Unwrapped, KeyError>> {
            let private = PrivateOptions {
                key: LayerKey::from_slice(&[bytes[0]; 32])?,
                digest: String::new(),
                nonce: Some(Nonce([1; 16])),
            };
            (name == "own").then(|| Ok(private.to_json()))
        }
    }

    #[tokio::test]
    async fn a_sources_own_provider_unwraps_what_it_wrote() {
        let encryption = |name: &str| Encryption {
            public: PublicOptions::new([1; 32]),
            keys: vec![Wrapped::Provider {
                name: name.to_owned(),
                annotation: vec![5],
            }],
        };
        let own: HashMap<_, _> = encryption("own").write().into_iter().collect();
        let opened = unwrap_layers(&[&own], &Provider).await.unwrap();
        assert_eq!(opened[0].key.expose(), &[5; 32]);
        let other: HashMap<_, _> = encryption("other").write().into_iter().collect();
        let error = unwrap_layers(&[&other], &Provider).await.err().unwrap();
        assert!(
            matches!(error, Error::Packet(PacketError::Json(_))),
            "{error}"
        );
    }
}
