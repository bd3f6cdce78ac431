//! CoRIMs that are signed here with each algorithm, and one whose bytes were laid by hand.

use std::{
    fs,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use ciborium::{Value, cbor};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair,
    },
};
use serde_json::json;

use super::*;

/// Signed by hand with the key of RFC 8032, section 7.1, test 1; valid from second 150 (manifest) to
/// second 300 (signature).
const BY_HAND: &str = "d284582fa3012703746170706c69636174696f6e2f72696d2b63626f720854a200a1006441\
    434d4501a200c1186401c119012ca0585fd901f5a30061630181d901fa5846a201a10062696404a1008182a100a2\
    016441434d4502614d81a20062667701a1028182015820abababababababababababababababababababababababab\
    abababababababab04a200c1189601c1190190584022eeaeccd4000e0774f21a333b93e91f0879e0e9c4ff25cfd106\
    3abd1b3246c91774410eb7809eba6c363f164a1042a1d0d8ae09f48fe4752da4ad68966a280a";
const ITS_KEY: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

fn by_hand() -> Vec<u8> {
    hex::decode(BY_HAND).unwrap()
}

fn signers(pems: &[String]) -> Signers {
    let dir = tempfile::tempdir().unwrap();
    let paths = pems.iter().enumerate().map(|(number, pem)| {
        let path = dir.path().join(number.to_string());
        fs::write(&path, pem).unwrap();
        path
    });
    let config = config::Reference {
        signers: paths.collect(),
        accept_unsigned_corim: false,
    };
    Signers::read(&config).unwrap()
}

/// A key that signs.
enum Key {
    Ec(Algorithm, EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Key {
    fn new(algorithm: Algorithm) -> Self {
        let random = SystemRandom::new();
        let kind = match algorithm {
            Algorithm::Es256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            Algorithm::Es384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
            Algorithm::EdDsa => {
                let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                return Self::Ed(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap());
            }
        };
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref(), &random).unwrap();
        Self::Ec(algorithm, pair)
    }

    fn spki(&self) -> Vec<u8> {
        let (algorithm, public) = match self {
            Self::Ec(algorithm, pair) => (*algorithm, pair.public_key().as_ref()),
            Self::Ed(pair) => (Algorithm::EdDsa, pair.public_key().as_ref()),
        };
        let kind = KINDS.iter().find(|kind| kind.0 == algorithm).unwrap();
        [kind.1, public].concat()
    }

    fn pem(&self) -> String {
        let text = BASE64_STANDARD.encode(self.spki());
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    }

    fn sign(&self, key_id: Option<Vec<u8>>) -> Vec<u8> {
        let number = match self {
            Self::Ec(Algorithm::Es256, _) => -7,
            Self::Ec(..) => -35,
            Self::Ed(_) => -8,
        };
        let protected = bytes(&cbor!({1 => number, 3 => "application/rim+cbor"}).unwrap());
        let unprotected = match key_id {
            Some(id) => cbor!({4 => Value::Bytes(id)}).unwrap(),
            None => cbor!({}).unwrap(),
        };
        let payload = bytes(&manifest());
        let message = bytes(&Value::Array(vec![
            "Signature1".into(),
            Value::Bytes(protected.clone()),
            Value::Bytes(Vec::new()),
            Value::Bytes(payload.clone()),
        ]));
        let signature = match self {
            Self::Ec(_, pair) => {
                let made = pair.sign(&SystemRandom::new(), &message).unwrap();
                made.as_ref().to_vec()
            }
            Self::Ed(pair) => pair.sign(&message).as_ref().to_vec(),
        };
        let parts = vec![
            Value::Bytes(protected),
            unprotected,
            Value::Bytes(payload),
            Value::Bytes(signature),
        ];
        bytes(&Value::Tag(18, Box::new(Value::Array(parts))))
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn manifest() -> Value {
    let digest = Value::Array(vec![1.into(), Value::Bytes(vec![0xcd; 32])]);
    let comid = cbor!({
        1 => {0 => "id"},
        4 => {0 => [[{0 => {1 => "ACME"}}, [{0 => "fw", 1 => {2 => [digest]}}]]]}
    });
    let comid = Value::Tag(506, Box::new(Value::Bytes(bytes(&comid.unwrap()))));
    Value::Tag(501, Box::new(cbor!({0 => "c", 1 => [comid]}).unwrap()))
}

#[test]
fn the_one_laid_by_hand_is_its_signers_word_for_its_time() {
    let signers = signers(&[ITS_KEY.to_owned()]);
    let values = signers
        .reference_values(&by_hand(), "admin", false)
        .unwrap();
    assert_eq!(values[0].name, "ACME/M/fw/digests");
    let at = |seconds| values[0].at(UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(150), Some(json!(["ab".repeat(32)])));
    assert_eq!((at(149), at(300)), (None, None));
    let spki = BASE64_STANDARD.decode(ITS_KEY.lines().nth(1).unwrap());
    let id = hex::encode(Sha256::digest(spki.unwrap()));
    assert_eq!(values[0].versions[0].provenance, Provenance::Signer(id));
}

#[test]
fn no_altered_byte_is_taken() {
    let signers = signers(&[ITS_KEY.to_owned()]);
    let good = by_hand();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            let taken = signers.reference_values(&bad, "admin", true);
            assert!(taken.is_err(), "byte {at}, bit {bit}");
        }
        assert!(
            signers
                .reference_values(&good[..at], "admin", true)
                .is_err()
        );
    }
    let longer = [&good[..], &[0]].concat();
    let taken = signers.reference_values(&longer, "admin", true);
    assert_eq!(taken, Err(SignatureError::Corim(CorimError::Cbor)));
}

#[test]
fn each_algorithm_is_taken_under_its_own_key_alone() {
    let all = [Algorithm::Es256, Algorithm::Es384, Algorithm::EdDsa];
    let keys = all.map(Key::new);
    let known = signers(&keys.each_ref().map(Key::pem));
    for (algorithm, key) in all.into_iter().zip(&keys) {
        let id: [u8; 32] = Sha256::digest(key.spki()).into();
        for named in [None, Some(id.to_vec()), Some(b"the vendor's own".to_vec())] {
            let values = known.reference_values(&key.sign(named), "admin", false);
            let provenance = values.unwrap()[0].versions[0].provenance.clone();
            assert_eq!(provenance, Provenance::Signer(hex::encode(id)));
        }
        let stranger = Key::new(algorithm);
        let taken = |key_id| known.reference_values(&stranger.sign(key_id), "admin", true);
        assert_eq!(taken(None), Err(SignatureError::Wrong));
        // It says that it is of a key that did not make it.
        assert_eq!(taken(Some(id.to_vec())), Err(SignatureError::Wrong));
        let unknown = SignatureError::Unknown {
            algorithm,
            key_id: "09".to_owned(),
        };
        assert_eq!(taken(Some(vec![9])), Err(unknown));
        let nobody = signers(&[]).reference_values(&key.sign(None), "admin", true);
        assert!(matches!(nobody, Err(SignatureError::Unknown { .. })));
    }
}

#[test]
fn an_unsigned_one_needs_somebody_who_takes_it() {
    let mut signers = signers(&[]);
    let unsigned = bytes(&manifest());
    let taken = signers.reference_values(&unsigned, "admin", false);
    assert_eq!(taken, Err(SignatureError::Unsigned));
    let taken = signers.reference_values(&unsigned, "admin", true).unwrap();
    let provenance = Provenance::Unsigned("admin".to_owned());
    assert_eq!(taken[0].versions[0].provenance, provenance);
    signers.accept_unsigned = true;
    assert!(signers.reference_values(&unsigned, "admin", false).is_ok());
}

#[test]
fn a_file_without_a_public_key_of_a_known_kind_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("signer.pem");
    let rsa = "MCwwDQYJKoZIhvcNAQEBBQADGwAwGAIRAKu0YwZpZ1HyDhQCWxI2wQECAwEAAQ==";
    for text in [
        String::new(),
        "text".to_owned(),
        format!("-----BEGIN PUBLIC KEY-----\n{rsa}\n-----END PUBLIC KEY-----\n"),
        ITS_KEY.replace("PUBLIC KEY", "CERTIFICATE"),
        ITS_KEY.replace("URo=", "UQ=="),
    ] {
        fs::write(&path, text).unwrap();
        let config = config::Reference {
            signers: vec![path.clone()],
            accept_unsigned_corim: false,
        };
        let error = Signers::read(&config).err().unwrap().to_string();
        assert!(error.contains("signer.pem"), "{error}");
    }
}
