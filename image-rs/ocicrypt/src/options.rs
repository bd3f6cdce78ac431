//! What the annotations say of one encrypted layer: the public options and, wrapped, the private ones.
//!
//! Public: `{"cipher","hmac","cipheroptions"}`. Private: `{"symkey","digest","cipheroptions":{"nonce"}}`.
//! Bytes are base64 with padding. Spec: ocicrypt `docs/keyprovider.md` and `blockcipher/blockcipher.go`.
//!
//! The key's text goes straight from the JSON into the key, and back into a buffer that wipes itself; none of it
//! passes through a `String` of its own.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::cipher::{CIPHER, HMAC_BYTES, NONCE_BYTES, Nonce};
use crate::secret::{KEY_BYTES, LayerKey, to_json};

/// Cap on the JSON of either kind of options, in bytes: real ones have about 250.
pub const OPTIONS_BYTES_MAX: usize = 16 * 1024;

/// Why options cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Longer than [`OPTIONS_BYTES_MAX`].
    #[error("the options of an encrypted layer have {0} bytes, more than {OPTIONS_BYTES_MAX}")]
    TooLong(usize),
    /// Public options that are not the JSON of the specification.
    #[error("the public options of an encrypted layer are not those of the specification: {0}")]
    Public(serde_json::Error),
    /// Private options that are not. They hold a key, so that nothing of them is quoted.
    #[error(
        "the private options of an encrypted layer are not those of the specification: \
         symkey of {KEY_BYTES} bytes in base64, digest, and cipheroptions with nothing but a nonce"
    )]
    Private,
    /// Base64 or the length of a member.
    #[error("{0} of an encrypted layer is not {1} bytes in base64")]
    Member(&'static str, usize),
    /// A cipher which is not the specification's.
    #[error("cipher {0:?} is not supported; encrypt the layer with {CIPHER}")]
    Cipher(String),
}

/// The options which travel in clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicOptions {
    /// HMAC-SHA256 of the ciphertext.
    pub hmac: [u8; HMAC_BYTES],
    /// A nonce that stands here rather than in the private options, where older writers put it.
    pub nonce: Option<Nonce>,
}

impl PublicOptions {
    /// Options with the HMAC that [`crate::cipher::Sealer::finish`] gave.
    #[must_use]
    pub fn new(hmac: [u8; HMAC_BYTES]) -> Self {
        Self { hmac, nonce: None }
    }

    /// Reads the JSON.
    ///
    /// # Errors
    /// See [`OptionsError`].
    pub fn from_json(json: &[u8]) -> Result<Self, OptionsError> {
        capped(json)?;
        let wire: PublicWire = serde_json::from_slice(json).map_err(OptionsError::Public)?;
        if wire.cipher != CIPHER {
            return Err(OptionsError::Cipher(wire.cipher));
        }
        Ok(Self {
            hmac: fixed(&wire.hmac, "the HMAC")?,
            nonce: nonce_of(wire.cipheroptions.as_ref())?,
        })
    }

    /// Writes the JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let wire = PublicWire {
            cipher: CIPHER.to_owned(),
            hmac: STANDARD.encode(self.hmac),
            cipheroptions: Some(CipherOptions::new(self.nonce.as_ref())),
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }
}

/// The options which travel wrapped.
#[expect(missing_debug_implementations, reason = "holds the layer key")]
#[derive(Clone)]
pub struct PrivateOptions {
    /// The layer key.
    pub key: LayerKey,
    /// The digest of the layer before encryption, `sha256:<hex>`; may be empty.
    pub digest: String,
    /// The start of the counter.
    pub nonce: Option<Nonce>,
}

impl PrivateOptions {
    /// Reads the JSON.
    ///
    /// # Errors
    /// See [`OptionsError`]; no error quotes any of the text.
    pub fn from_json(json: &[u8]) -> Result<Self, OptionsError> {
        capped(json)?;
        let wire: PrivateWire = serde_json::from_slice(json).map_err(|_| OptionsError::Private)?;
        Ok(Self {
            key: wire.symkey.0,
            digest: wire.digest,
            nonce: nonce_of(wire.cipheroptions.as_ref())?,
        })
    }

    /// Writes the JSON; the text is wiped when dropped.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let symkey = Zeroizing::new(STANDARD.encode(self.key.expose()));
        to_json(&PrivateText {
            symkey: &symkey,
            digest: &self.digest,
            cipheroptions: CipherOptions::new(self.nonce.as_ref()),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicWire {
    cipher: String,
    hmac: String,
    // A Go writer leaves `null` for an empty map.
    #[serde(default)]
    cipheroptions: Option<CipherOptions>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrivateWire {
    symkey: WireKey,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    cipheroptions: Option<CipherOptions>,
}

#[derive(Serialize)]
struct PrivateText<'a> {
    symkey: &'a str,
    digest: &'a str,
    cipheroptions: CipherOptions,
}

/// The one cipher has one option.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CipherOptions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

impl CipherOptions {
    fn new(nonce: Option<&Nonce>) -> Self {
        Self {
            nonce: nonce.map(|nonce| STANDARD.encode(nonce.0)),
        }
    }
}

/// A key, read from its text where that stands.
struct WireKey(LayerKey);

impl<'de> Deserialize<'de> for WireKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = WireKey;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key in base64")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<WireKey, E> {
        // The decoder asks for room in whole groups of three bytes.
        let mut bytes = Zeroizing::new([0; KEY_BYTES + 4]);
        let decoded = STANDARD.decode_slice(text, bytes.as_mut_slice());
        let key = decoded
            .ok()
            .and_then(|length| LayerKey::from_slice(&bytes[..length]));
        key.map(WireKey).ok_or_else(|| E::custom("not a key"))
    }
}

fn capped(json: &[u8]) -> Result<(), OptionsError> {
    match json.len() {
        0..=OPTIONS_BYTES_MAX => Ok(()),
        length => Err(OptionsError::TooLong(length)),
    }
}

fn fixed<const N: usize>(base64: &str, name: &'static str) -> Result<[u8; N], OptionsError> {
    let bytes = STANDARD.decode(base64).unwrap_or_default();
    bytes.try_into().map_err(|_| OptionsError::Member(name, N))
}

fn nonce_of(options: Option<&CipherOptions>) -> Result<Option<Nonce>, OptionsError> {
    let nonce = options.and_then(|options| options.nonce.as_deref());
    nonce
        .map(|text| fixed::<NONCE_BYTES>(text, "the nonce").map(Nonce))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_way_there_and_back() {
        let public = PublicOptions::new([7; 32]);
        assert_eq!(PublicOptions::from_json(&public.to_json()).unwrap(), public);
        let private = PrivateOptions {
            key: LayerKey::from_slice(&[9; 32]).unwrap(),
            digest: "sha256:ab".to_owned(),
            nonce: Some(Nonce([3; 16])),
        };
        let again = PrivateOptions::from_json(&private.to_json()).unwrap();
        assert_eq!(again.key.expose(), private.key.expose());
        assert_eq!((again.digest, again.nonce), (private.digest, private.nonce));
    }

    #[test]
    fn a_go_writers_null_map_is_an_empty_one() {
        let json = format!(
            r#"{{"cipher":"{CIPHER}","hmac":"{}","cipheroptions":null}}"#,
            STANDARD.encode([1; 32])
        );
        assert_eq!(
            PublicOptions::from_json(json.as_bytes()).unwrap().nonce,
            None
        );
    }

    #[test]
    fn another_cipher_is_refused_by_name() {
        let json = format!(
            r#"{{"cipher":"AEGIS","hmac":"{}","cipheroptions":{{}}}}"#,
            STANDARD.encode([1; 32])
        );
        let error = PublicOptions::from_json(json.as_bytes()).unwrap_err();
        assert!(
            error.to_string().contains("\"AEGIS\" is not supported"),
            "{error}"
        );
    }

    #[test]
    fn a_short_key_is_refused() {
        for length in [0, 3, 31, 33, 36, 64] {
            let key = STANDARD.encode(vec![7; length]);
            let json = format!(r#"{{"symkey":"{key}","digest":"","cipheroptions":{{}}}}"#);
            let error = PrivateOptions::from_json(json.as_bytes()).err().unwrap();
            assert!(matches!(error, OptionsError::Private), "{length}: {error}");
        }
    }

    #[test]
    fn a_member_that_we_do_not_know_is_refused() {
        let key = STANDARD.encode([7; 32]);
        for json in [
            format!(r#"{{"symkey":"{key}","digesu":"sha256:00","cipheroptions":{{}}}}"#),
            format!(r#"{{"symkey":"{key}","digest":"","cipheroptions":{{"tweak":"AAAA"}}}}"#),
            format!(r#"{{"symkey":"{key}","symkey":"{key}","digest":""}}"#),
        ] {
            let error = PrivateOptions::from_json(json.as_bytes()).err().unwrap();
            assert!(!error.to_string().contains(&key), "the key is quoted");
        }
        let json =
            format!(r#"{{"cipher":"{CIPHER}","hmac":"{key}","cipheroptions":{{"tweak":"AAAA"}}}}"#);
        let error = PublicOptions::from_json(json.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("tweak"), "{error}");
    }
}
