//! `cloister keyprovider` as skopeo and others run it: wrap, then unwrap, through the protocol's client.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocicrypt::LayerKey;
use ocicrypt::keyprovider::{Command, DecryptConfig, EncryptConfig};
use ocicrypt::options::PrivateOptions;
use ocicrypt::packet::Packet;

fn provider(args: &[&str]) -> Command {
    let args = std::iter::once("keyprovider")
        .chain(args.iter().copied())
        .map(str::to_owned)
        .collect();
    Command {
        path: env!("CARGO_BIN_EXE_cloister").into(),
        args,
    }
}

fn options() -> Vec<u8> {
    let key = LayerKey::from_slice(&[3; 32]).unwrap();
    PrivateOptions {
        key,
        digest: "sha256:00".to_owned(),
        nonce: None,
    }
    .to_json()
    .to_vec()
}

fn words(text: &str) -> EncryptConfig {
    let parameters =
        BTreeMap::from([("attestation-agent".to_owned(), vec![STANDARD.encode(text)])]);
    EncryptConfig {
        parameters: Some(parameters),
        decrypt: None,
    }
}

#[test]
fn what_the_provider_wraps_it_unwraps() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kek");
    std::fs::write(&file, [5; 32]).unwrap();
    let file = file.to_str().unwrap();
    let started = provider(&["--key-id", "kbs:///a/b/c", "--key-file", file]);
    let by_words = provider(&[]);
    let annotations = [
        started.wrap(&options(), EncryptConfig::default()).unwrap(),
        by_words
            .wrap(
                &options(),
                words(&format!("keyid=kbs:///a/b/c::keypath={file}")),
            )
            .unwrap(),
    ];
    for annotation in annotations {
        assert_eq!(
            Packet::from_json(&annotation).unwrap().kid(),
            "kbs:///a/b/c"
        );
        assert_eq!(
            started
                .unwrap(&annotation, DecryptConfig::default())
                .unwrap()
                .expose(),
            options()
        );
    }
}

#[test]
fn a_question_without_a_key_is_refused_with_the_fix() {
    let error = provider(&[])
        .wrap(&options(), words("keyid=kbs:///a/b/c"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("--key-file"), "{error}");
}
