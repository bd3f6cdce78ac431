//! The keys of an encrypted image from a real broker: one attestation and one question for each key, however many
//! layers the image has.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use agent::image::keys::BrokerKeys;
use anyhow::Result;
use async_trait::async_trait;
use attestation_agent::{Broker, BrokerConfig, attester::SampleAttester};
use evidence::init_data::{Algorithm, InitData};
use ocicrypt::annotation::{Encryption, PROVIDER_COCO, Wrapped};
use ocicrypt::cipher::Nonce;
use ocicrypt::options::{PrivateOptions, PublicOptions};
use ocicrypt::packet::{Format, Packet};
use ocicrypt::{Key, KeyError, KeySource, LayerKey, unwrap_layers};
use support::{State, broker::Broker as Kbs};
use transport::TcpDial;

const LAYERS: u8 = 24;

/// The guest's source of keys, with what it is asked.
struct Counted(BrokerKeys, Mutex<Vec<String>>);

#[async_trait]
impl KeySource for Counted {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        self.1.lock().unwrap().push(kid.to_owned());
        self.0.key(kid).await
    }
}

fn layer(kid: &str, kek: u8, seed: u8) -> HashMap<String, String> {
    let private = PrivateOptions {
        key: LayerKey::from_slice(&[seed; 32]).unwrap(),
        digest: String::new(),
        nonce: Some(Nonce([seed; 16])),
    };
    let kek = Key::new(vec![kek; 32]);
    let packet = Packet::seal(Format::V2, kid, &kek, &private.to_json()).unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn an_image_takes_one_attestation_and_one_question_for_each_key() -> Result<()> {
    let state = State::new()?;
    let kbs = Kbs::start(&state)?;
    for kek in 1..=3_u8 {
        let file = state.file(&format!("kek-{kek}"), [kek; 32])?;
        kbs.put(&format!("default/image-key/{kek}"), &file)?;
    }
    let init_data = InitData::build(Algorithm::Sha384, BTreeMap::new())?;
    kbs.release_only_to(&init_data.digest().hex())?;
    let config = BrokerConfig::new(kbs.url(), Some(kbs.root_pem().to_owned()));
    let attester = Arc::new(SampleAttester::new(Some(init_data.digest())));
    let broker = Broker::new(&config, Arc::new(TcpDial), attester, Some(&init_data))?;
    let broker = Arc::new(broker);

    let layers: Vec<_> = (0..LAYERS)
        .map(|index| {
            let kek = index % 3 + 1;
            layer(&format!("kbs:///default/image-key/{kek}"), kek, index + 1)
        })
        .collect();
    let source = Counted(BrokerKeys::new(Some(broker.clone())), Mutex::default());
    let layers: Vec<_> = layers.iter().collect();
    let opened = unwrap_layers(&layers, &source).await?;
    let seeds: Vec<_> = opened.iter().map(|layer| layer.key.expose()[0]).collect();
    assert_eq!(seeds, (1..=LAYERS).collect::<Vec<_>>());
    assert_eq!(broker.attestation().unwrap().number, 1);
    let mut asked = source.1.lock().unwrap().clone();
    asked.sort();
    let expected = [1, 2, 3].map(|kek| format!("kbs:///default/image-key/{kek}"));
    assert_eq!(asked, expected);
    Ok(())
}
