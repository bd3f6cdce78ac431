//! The JSON of the key-provider protocol.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::DOCUMENT_BYTES_MAX;

/// What is asked of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Wrap private options.
    KeyWrap,
    /// Unwrap an annotation.
    KeyUnwrap,
}

/// The question.
#[expect(missing_debug_implementations, reason = "may hold a layer key")]
#[derive(Serialize, Deserialize)]
pub struct Input {
    /// Which of the two members below counts.
    pub op: Operation,
    /// For [`Operation::KeyWrap`].
    #[serde(default, rename = "keywrapparams")]
    pub wrap: KeyWrapParams,
    /// For [`Operation::KeyUnwrap`].
    #[serde(default, rename = "keyunwrapparams")]
    pub unwrap: KeyUnwrapParams,
}

/// What to wrap.
#[expect(missing_debug_implementations, reason = "holds a layer key")]
#[derive(Default, Serialize, Deserialize)]
pub struct KeyWrapParams {
    /// The user's words for the provider.
    #[serde(default)]
    pub ec: Option<EncryptConfig>,
    /// The private options.
    #[serde(default, rename = "optsdata", serialize_with = "as_base64")]
    pub options: Option<WireBytes>,
}

/// What to unwrap.
#[expect(missing_debug_implementations, reason = "its bytes have no Debug")]
#[derive(Default, Serialize, Deserialize)]
pub struct KeyUnwrapParams {
    /// The user's words for the provider.
    #[serde(default)]
    pub dc: Option<DecryptConfig>,
    /// What the provider wrote when it wrapped.
    #[serde(default, serialize_with = "as_base64")]
    pub annotation: Option<WireBytes>,
}

/// Parameters by provider.
#[expect(missing_debug_implementations, reason = "parameters may be keys")]
#[derive(Default, Serialize, Deserialize)]
pub struct EncryptConfig {
    /// Provider → its parameters; each is base64 of text.
    #[serde(default, rename = "Parameters")]
    pub parameters: Option<BTreeMap<String, Vec<String>>>,
    /// How to decrypt, where encrypting needs it.
    #[serde(default, rename = "DecryptConfig")]
    pub decrypt: Option<DecryptConfig>,
}

/// Parameters by provider.
#[expect(missing_debug_implementations, reason = "parameters may be keys")]
#[derive(Default, Serialize, Deserialize)]
pub struct DecryptConfig {
    /// Provider → its parameters; each is base64 of text.
    #[serde(default, rename = "Parameters")]
    pub parameters: Option<BTreeMap<String, Vec<String>>>,
}

/// The answer: exactly one member.
#[expect(missing_debug_implementations, reason = "may hold a layer key")]
#[derive(Default, Serialize, Deserialize)]
pub struct Output {
    /// To [`Operation::KeyWrap`].
    #[serde(
        default,
        rename = "keywrapresults",
        skip_serializing_if = "Option::is_none"
    )]
    pub wrap: Option<KeyWrapResults>,
    /// To [`Operation::KeyUnwrap`].
    #[serde(
        default,
        rename = "keyunwrapresults",
        skip_serializing_if = "Option::is_none"
    )]
    pub unwrap: Option<KeyUnwrapResults>,
}

/// The wrapped options.
#[expect(missing_debug_implementations, reason = "its bytes have no Debug")]
#[derive(Serialize, Deserialize)]
pub struct KeyWrapResults {
    /// What goes, in base64, into the layer's annotation.
    #[serde(default)]
    pub annotation: Option<WireBytes>,
}

/// The unwrapped options.
#[expect(missing_debug_implementations, reason = "holds a layer key")]
#[derive(Serialize, Deserialize)]
pub struct KeyUnwrapResults {
    /// The private options.
    #[serde(default, rename = "optsdata")]
    pub options: Option<WireBytes>,
}

/// Bytes which are an array of numbers or base64 on the wire, and wiped when dropped.
#[expect(missing_debug_implementations, reason = "may hold a layer key")]
#[derive(Clone)]
pub struct WireBytes(Zeroizing<Vec<u8>>);

impl WireBytes {
    /// Copies the bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for WireBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter())
    }
}

impl<'de> Deserialize<'de> for WireBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BytesVisitor)
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = WireBytes;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array of bytes or base64")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<WireBytes, E> {
        // The text is not quoted: it may be a key.
        STANDARD
            .decode(text)
            .map(|bytes| WireBytes(Zeroizing::new(bytes)))
            .map_err(|_| E::custom("not base64"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<WireBytes, A::Error> {
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(byte) = sequence.next_element::<u8>()? {
            if bytes.len() >= DOCUMENT_BYTES_MAX {
                return Err(A::Error::custom("too many bytes"));
            }
            bytes.push(byte);
        }
        Ok(WireBytes(bytes))
    }
}

/// Inputs carry base64, as Go's encoder writes them; a Go provider reads nothing else.
fn as_base64<S: Serializer>(bytes: &Option<WireBytes>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => serializer.serialize_str(&Zeroizing::new(STANDARD.encode(bytes.expose()))),
        None => serializer.serialize_none(),
    }
}
