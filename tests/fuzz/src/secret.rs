//! What carries keys: layer encryption's annotations and packets, JWE, the broker's messages.

use std::collections::HashMap;
use std::sync::OnceLock;

use kbs_protocol::{
    AttestRequest, AuthRequest, AuthResponse, ErrorInformation, Jwe, KeyKind, ResourcePath,
    ResourceUri, TeeKeyPair, TokenResponse,
};
use ocicrypt::Key;
use ocicrypt::annotation::Encryption;
use ocicrypt::keyprovider;
use ocicrypt::options::{PrivateOptions, PublicOptions};
use ocicrypt::packet::Packet;
use serde::de::DeserializeOwned;
use verifier::{Bindings, REPORT_DATA_BYTES, sample::verify as verify_sample};

use crate::{Target, text, texts};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "ocicrypt_packet",
        run: packet,
        seeds: packets,
    },
    Target {
        name: "ocicrypt_options",
        run: options,
        seeds: option_texts,
    },
    Target {
        name: "ocicrypt_annotations",
        run: annotations,
        seeds: annotation_maps,
    },
    Target {
        name: "ocicrypt_jwe",
        run: jwe,
        seeds: jwes,
    },
    Target {
        name: "ocicrypt_pem",
        run: pem,
        seeds: pems,
    },
    Target {
        name: "keyprovider_input",
        run: provider_input,
        seeds: provider_inputs,
    },
    Target {
        name: "keyprovider_config",
        run: provider_config,
        seeds: provider_configs,
    },
    Target {
        name: "kbs_messages",
        run: messages,
        seeds: message_texts,
    },
    Target {
        name: "kbs_jwe",
        run: sealed,
        seeds: sealed_texts,
    },
    Target {
        name: "kbs_resource",
        run: resource,
        seeds: resources,
    },
    Target {
        name: "verifier_sample",
        run: sample,
        seeds: samples,
    },
];

fn packet(data: &[u8]) {
    if let Ok(packet) = Packet::from_json(data) {
        let _ = packet.open(&Key::new(vec![7; 32]));
    }
}

fn options(data: &[u8]) {
    let _ = PublicOptions::from_json(data);
    let _ = PrivateOptions::from_json(data);
}

fn annotations(data: &[u8]) {
    if let Ok(map) = serde_json::from_slice::<HashMap<String, String>>(data)
        && let Ok(encryption) = Encryption::read(&map)
    {
        let written: HashMap<_, _> = encryption.write().into_iter().collect();
        assert!(Encryption::read(&written).is_ok());
    }
}

fn jwe(data: &[u8]) {
    let _ = ocicrypt::jwe::unwrap(data, &[]);
    let _ = ocicrypt::jwe::recipients(data);
}

fn pem(data: &[u8]) {
    let _ = ocicrypt::jwe::PublicKey::from_bytes(data);
    let _ = ocicrypt::jwe::PrivateKey::from_bytes(data);
}

fn provider_input(data: &[u8]) {
    let _ = serde_json::from_slice::<keyprovider::Input>(data);
    let _ = serde_json::from_slice::<keyprovider::Output>(data);
}

fn provider_config(data: &[u8]) {
    if let Ok(providers) = keyprovider::Providers::from_json(data) {
        let _ = providers.get("p");
    }
}

fn messages(data: &[u8]) {
    same_again::<AuthRequest>(data, |request| {
        let _ = request.negotiate();
    });
    same_again::<AuthResponse>(data, |response| {
        let _ = response.check_hash();
    });
    same_again::<AttestRequest>(data, |request| {
        let _ = request.runtime_data.tee_pubkey.check();
    });
    same_again::<TokenResponse>(data, |_| ());
    same_again::<ErrorInformation>(data, |_| ());
}

fn same_again<T: DeserializeOwned + serde::Serialize>(data: &[u8], look: fn(&T)) {
    let Ok(message) = serde_json::from_slice::<T>(data) else {
        return;
    };
    look(&message);
    let written = serde_json::to_vec(&message).unwrap_or_default();
    assert!(
        serde_json::from_slice::<T>(&written).is_ok(),
        "does not read what it wrote"
    );
}

fn sealed(data: &[u8]) {
    static KEY: OnceLock<Option<TeeKeyPair>> = OnceLock::new();
    let key = KEY.get_or_init(|| TeeKeyPair::generate(KeyKind::P256).ok());
    if let (Some(key), Ok(jwe)) = (key, serde_json::from_slice::<Jwe>(data)) {
        assert!(key.open(&jwe).is_err(), "a made-up JWE opened");
    }
}

fn resource(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(path) = text.parse::<ResourcePath>() {
        assert_eq!(path.to_string().parse(), Ok(path));
    }
    if let Ok(uri) = text.parse::<ResourceUri>() {
        assert_eq!(uri.to_string().parse(), Ok(uri));
    }
}

fn sample(data: &[u8]) {
    let bindings = Bindings {
        report_data: [7; REPORT_DATA_BYTES],
        init_data: None,
    };
    let mut json = serde_json::Deserializer::from_slice(data);
    let _ = verify_sample(&mut json, &bindings);
}

const PACKET_V1: &str = r#"{"kid":"kbs:///default/test-key/1","wrapped_data":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIj","iv":"3PQMqtjbR4hxCr83","wrap_type":"A256GCM"}"#;
const PACKET_V2: &str = r#"{"version":"0.1.0","provider":"kbs","kid":"kbs:///a/b/c","wrapped_data":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIj","iv":"3PQMqtjbR4hxCr83","wrap_type":"A256GCM","provider_settings":{},"annotations":{}}"#;

fn packets() -> Vec<Vec<u8>> {
    texts(&[PACKET_V1, PACKET_V2])
}

fn option_texts() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","cipheroptions":{}}"#,
        r#"{"symkey":"1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs=","digest":"sha256:00","cipheroptions":{"nonce":"r10F9oaCu+nWFXfod3l83g=="}}"#,
    ])
}

fn annotation_maps() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"org.opencontainers.image.enc.pubopts":"eyJjaXBoZXIiOiJBRVNfMjU2X0NUUl9ITUFDX1NIQTI1NiIsImhtYWMiOiJBQUVDQXdRRkJnY0lDUW9MREEwT0R4QVJFaE1VRlJZWEdCa2FHeHdkSGg4PSIsImNpcGhlcm9wdGlvbnMiOnt9fQ==","org.opencontainers.image.enc.keys.provider.attestation-agent":"e30=,e30=","org.opencontainers.image.enc.keys.jwe":"e30="}"#,
    ])
}

fn jwes() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"protected":"eyJlbmMiOiJBMjU2R0NNIn0","recipients":[{"header":{"alg":"RSA-OAEP"},"encrypted_key":"AAAA"}],"iv":"AAAAAAAAAAAAAAAA","ciphertext":"AAAA","tag":"AAAAAAAAAAAAAAAAAAAAAA"}"#,
    ])
}

fn pems() -> Vec<Vec<u8>> {
    texts(&[
        "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEo59IT4UJgK0Xwi8iGcwLpTWY5Bke\nBwTtFJ7UKjYCX91K1YI3QC/qQ156PQD9teGndR6R05kgu2nX35GwT0EkWQ==\n-----END PUBLIC KEY-----\n",
        r#"{"kty":"EC","crv":"P-256","x":"o59IT4UJgK0Xwi8iGcwLpTWY5BkeBwTtFJ7UKjYCX90","y":"K1YI3QC_qQ156PQD9teGndR6R05kgu2nX35GwT0EkWU","d":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}"#,
        r#"{"kty":"RSA","n":"sXch","e":"AQAB","d":"AA","p":"AA","q":"AA","dp":"AA","dq":"AA","qi":"AA"}"#,
    ])
}

fn provider_configs() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"key-providers":{"p":{"cmd":{"path":"/p","args":["a"]}},"q":{"grpc":"127.0.0.1:1"},"r":{"ttrpc":"unix:///s"}}}"#,
    ])
}

fn provider_inputs() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"p":["YQ=="]},"DecryptConfig":{"Parameters":{}}},"optsdata":"e30="},"keyunwrapparams":{}}"#,
        r#"{"op":"keyunwrap","keywrapparams":{},"keyunwrapparams":{"dc":{"Parameters":{}},"annotation":[1,2,3]}}"#,
        r#"{"keywrapresults":{"annotation":[123,125]}}"#,
    ])
}

fn message_texts() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha384"]}}"#,
        r#"{"nonce":"Tk5O","extra-params":{"selected-hash-algorithm":"sha384"}}"#,
        r#"{"init-data":{"format":"toml","body":"x"},"runtime-data":{"nonce":"Tk5O","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"o59IT4UJgK0Xwi8iGcwLpTWY5BkeBwTtFJ7UKjYCX90","y":"K1YI3QC_qQ156PQD9teGndR6R05kgu2nX35GwT0EkWU"}},"tee-evidence":{"primary_evidence":{"report_data":"cBa6","svn":"1"},"additional_evidence":""}}"#,
        r#"{"token":"a.b.c"}"#,
    ])
}

fn sealed_texts() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"protected":"eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJvNTlJVDRVSmdLMFh3aThpR2N3THBUV1k1QmtlQndUdEZKN1VLallDWDkwIiwieSI6IksxWUkzUUNfcVExNTZQUUQ5dGVHbmRSNlIwNWtndTJuWDM1R3dUMEVrV1UifX0","encrypted_key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","iv":"AAAAAAAAAAAAAAAA","ciphertext":"AAAA","tag":"AAAAAAAAAAAAAAAAAAAAAA"}"#,
    ])
}

fn resources() -> Vec<Vec<u8>> {
    texts(&[
        "default/key/one",
        "kbs:///default/key/one",
        "kbs://host:1/a/b/c",
    ])
}

fn samples() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"report_data":"cBa6Bc4EwtzMb6kl4irOdlfGkqc7LHfrj1O8vM3AWtYZQ6XjmmELNsshx2uTbAMD","svn":"1"}"#,
        r#"{"init_data":"AAAA","report_data":"AAAA","svn":"1"}"#,
    ])
}
