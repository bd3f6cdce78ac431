//! Whatever is altered in the annotations of an encrypted layer, the layer does not open: no panic, and no mutation
//! that is accepted.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocicrypt::annotation::{Encryption, PROVIDER_COCO, PUBLIC_OPTIONS, Wrapped};
use ocicrypt::cipher::{Nonce, Opener, Sealer};
use ocicrypt::jwe::{self, PrivateKey, PublicKey};
use ocicrypt::options::{PrivateOptions, PublicOptions};
use ocicrypt::packet::{Format, Packet};
use ocicrypt::{Key, KeyError, KeySource, LayerKey, unwrap_layers};
use sha2::{Digest, Sha256};

const KID: &str = "kbs:///default/image-key/1";
const PLAIN: &[u8] = b"the plain bytes of a layer, of which there are more than two blocks";

/// A broker with one key, and a recipient's private key.
struct Keys(Key, Vec<PrivateKey>);

#[async_trait]
impl KeySource for Keys {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        let found = (kid == KID).then(|| self.0.clone());
        found.ok_or_else(|| KeyError::NotFound {
            kid: kid.to_owned(),
        })
    }

    fn private_keys(&self) -> &[PrivateKey] {
        &self.1
    }
}

/// A sealed layer and what its descriptor says of it.
struct Layer {
    sealed: Vec<u8>,
    annotations: HashMap<String, String>,
    keys: Keys,
}

enum Way {
    Packet(Format),
    Jwe(&'static str, &'static str),
}

fn layer(way: &Way) -> Layer {
    let (key, nonce) = (LayerKey::generate().unwrap(), Nonce::generate().unwrap());
    let mut sealed = PLAIN.to_vec();
    let mut sealer = Sealer::new(&key, &nonce);
    sealer.update(&mut sealed).unwrap();
    let private = PrivateOptions {
        key,
        digest: format!("sha256:{}", hex::encode(Sha256::digest(PLAIN))),
        nonce: Some(nonce),
    };
    let private = private.to_json();
    let mut keys = Keys(Key::generate().unwrap(), Vec::new());
    let wrapped = match way {
        Way::Packet(format) => Wrapped::Provider {
            name: PROVIDER_COCO.to_owned(),
            annotation: (Packet::seal(*format, KID, &keys.0, &private).unwrap()).to_json(),
        },
        Way::Jwe(secret, public) => {
            keys.1
                .push(PrivateKey::from_pem(secret.as_bytes()).unwrap());
            let public = PublicKey::from_pem(public.as_bytes()).unwrap();
            Wrapped::Jwe(jwe::wrap(&[public], &private).unwrap())
        }
    };
    let encryption = Encryption {
        public: PublicOptions::new(sealer.finish()),
        keys: vec![wrapped],
    };
    Layer {
        sealed,
        annotations: encryption.write().into_iter().collect(),
        keys,
    }
}

impl Layer {
    /// As a pull opens a layer: keys, HMAC, the digest that was wrapped with the key.
    async fn opens(&self, annotations: &HashMap<String, String>) -> bool {
        let Ok(mut options) = unwrap_layers(&[annotations], &self.keys).await else {
            return false;
        };
        let options = options.remove(0);
        let mut bytes = self.sealed.clone();
        let mut opener = Opener::new(&options.key, &options.nonce);
        opener.update(&mut bytes).unwrap();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        opener.finish(&options.hmac).is_ok() && digest == options.digest
    }

    /// Every annotation, its text inside base64 with one bit altered at each `step`-th byte.
    async fn assert_shut(&self, step: usize) {
        assert!(self.opens(&self.annotations).await, "as it was written");
        for (name, value) in &self.annotations {
            let inside = STANDARD.decode(value).unwrap();
            let step = if name == PUBLIC_OPTIONS { 1 } else { step };
            for at in (0..inside.len()).step_by(step) {
                for bit in 0..8 {
                    let mut bad = inside.clone();
                    bad[at] ^= 1 << bit;
                    self.assert_refused(name, STANDARD.encode(&bad), &bad).await;
                }
            }
            for length in (0..inside.len()).step_by(step) {
                let bad = &inside[..length];
                self.assert_refused(name, STANDARD.encode(bad), bad).await;
            }
            for at in (0..value.len()).step_by(step) {
                let mut bad = value.clone().into_bytes();
                bad[at] ^= 1;
                let bad = String::from_utf8(bad).unwrap();
                self.assert_refused(name, bad.clone(), bad.as_bytes()).await;
            }
        }
    }

    async fn assert_refused(&self, name: &str, value: String, shown: &[u8]) {
        let mut annotations = self.annotations.clone();
        annotations.insert(name.to_owned(), value);
        let opened = self.opens(&annotations).await;
        assert!(!opened, "{name} as {}", shown.escape_ascii());
    }
}

#[tokio::test]
async fn no_altered_packet_opens_a_layer() {
    for format in [Format::V1, Format::V2] {
        layer(&Way::Packet(format)).assert_shut(1).await;
    }
}

#[tokio::test]
async fn no_altered_jwe_opens_a_layer() {
    let ec = Way::Jwe(
        include_str!("vectors/p256.pem"),
        include_str!("vectors/p256.pub.pem"),
    );
    layer(&ec).assert_shut(3).await;
    // One operation of the private key for each, so that fewer must do.
    let rsa = Way::Jwe(
        include_str!("vectors/rsa.pem"),
        include_str!("vectors/rsa.pub.pem"),
    );
    layer(&rsa).assert_shut(29).await;
}

#[tokio::test]
async fn a_packet_of_one_layer_does_not_open_another() {
    let (one, other) = (
        layer(&Way::Packet(Format::V2)),
        layer(&Way::Packet(Format::V2)),
    );
    for (name, value) in &other.annotations {
        let mut annotations = one.annotations.clone();
        annotations.insert(name.clone(), value.clone());
        assert!(!one.opens(&annotations).await, "{name}");
    }
}
