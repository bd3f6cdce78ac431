//! What the annotations say of one encrypted layer: the public options and, wrapped, the private ones.
//!
//! Public: `{"cipher","hmac","cipheroptions"}`. Private: `{"symkey","digest","cipheroptions":{"nonce"}}`.
//! Bytes are base64 with padding. Spec: ocicrypt `docs/keyprovider.md` and `blockcipher/blockcipher.go`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::cipher::{CIPHER, HMAC_BYTES, Nonce};
use crate::secret::LayerKey;

/// Cap on the JSON of either kind of options, in bytes: real ones have about 250.
pub const OPTIONS_BYTES_MAX: usize = 16 * 1024;
/// The name of the nonce among the cipher options.
const NONCE: &str = "nonce";

/// Why options cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// Longer than [`OPTIONS_BYTES_MAX`].
    #[error("the options of an encrypted layer have {0} bytes, more than {OPTIONS_BYTES_MAX}")]
    TooLong(usize),
    /// Not the JSON of the specification. The text of private options is not quoted, because it holds a key.
    #[error("the {0} options of an encrypted layer are not valid JSON")]
    Json(&'static str),
    /// Base64 or the length of a member.
    #[error("{0} of an encrypted layer is not {1} bytes in base64")]
    Member(&'static str, usize),
    /// A cipher which is not the specification's.
    #[error("cipher {0:?} is not supported; encrypt the layer with {CIPHER}")]
    Cipher(String),
    /// No nonce.
    #[error("an encrypted layer has no nonce")]
    NoNonce,
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
        let wire: PublicWire =
            serde_json::from_slice(json).map_err(|_| OptionsError::Json("public"))?;
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
            cipheroptions: Some(cipher_options(self.nonce.as_ref())),
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
        let wire: PrivateWire =
            serde_json::from_slice(json).map_err(|_| OptionsError::Json("private"))?;
        let bad = OptionsError::Member("the key", crate::secret::KEY_BYTES);
        let key = Zeroizing::new(STANDARD.decode(&wire.symkey).unwrap_or_default());
        Ok(Self {
            key: LayerKey::from_slice(&key).ok_or(bad)?,
            digest: wire.digest.clone(),
            nonce: nonce_of(wire.cipheroptions.as_ref())?,
        })
    }

    /// Writes the JSON; the text is wiped when dropped.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let wire = PrivateWire {
            symkey: STANDARD.encode(self.key.expose()),
            digest: self.digest.clone(),
            cipheroptions: Some(cipher_options(self.nonce.as_ref())),
        };
        Zeroizing::new(serde_json::to_vec(&wire).unwrap_or_default())
    }
}

#[derive(Serialize, Deserialize)]
struct PublicWire {
    cipher: String,
    hmac: String,
    // A Go writer leaves `null` for an empty map.
    cipheroptions: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct PrivateWire {
    symkey: String,
    #[serde(default)]
    #[zeroize(skip)]
    digest: String,
    #[zeroize(skip)]
    cipheroptions: Option<BTreeMap<String, String>>,
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

fn nonce_of(options: Option<&BTreeMap<String, String>>) -> Result<Option<Nonce>, OptionsError> {
    let nonce = options.and_then(|options| options.get(NONCE));
    nonce
        .map(|text| fixed(text, "the nonce").map(Nonce))
        .transpose()
}

fn cipher_options(nonce: Option<&Nonce>) -> BTreeMap<String, String> {
    nonce
        .map(|nonce| (NONCE.to_owned(), STANDARD.encode(nonce.0)))
        .into_iter()
        .collect()
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
        let json = br#"{"symkey":"AAAA","digest":"","cipheroptions":{}}"#;
        assert!(matches!(
            PrivateOptions::from_json(json),
            Err(OptionsError::Member("the key", 32))
        ));
    }
}
