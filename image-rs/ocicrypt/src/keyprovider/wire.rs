//! The JSON of the key-provider protocol, and the one message of protobuf that carries it over an RPC.
//!
//! A document may hold a layer key, and a user's words may hold a private one: both are wiped when dropped.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::DOCUMENT_BYTES_MAX;
use crate::secret::{SecretBuffer, to_json};

/// The tag of the message's only field: number 1, of the kind that has a length.
const FIELD: u8 = 0x0a;
/// Bytes of the longest number that a length may be.
const VARINT_BYTES: usize = 5;

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

impl Input {
    /// Asks to wrap private options.
    #[must_use]
    pub fn wrap(options: &[u8], config: EncryptConfig) -> Self {
        Self {
            op: Operation::KeyWrap,
            wrap: KeyWrapParams {
                ec: Some(config),
                options: Some(WireBytes::new(options)),
            },
            unwrap: KeyUnwrapParams::default(),
        }
    }

    /// Asks to unwrap an annotation.
    #[must_use]
    pub fn unwrap(annotation: &[u8], config: DecryptConfig) -> Self {
        Self {
            op: Operation::KeyUnwrap,
            wrap: KeyWrapParams::default(),
            unwrap: KeyUnwrapParams {
                dc: Some(config),
                annotation: Some(WireBytes::new(annotation)),
            },
        }
    }

    /// The document.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        to_json(self)
    }
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
    #[serde(default, rename = "Parameters", serialize_with = "as_map")]
    pub parameters: Option<Parameters>,
    /// How to decrypt, where encrypting needs it.
    #[serde(default, rename = "DecryptConfig")]
    pub decrypt: Option<DecryptConfig>,
}

/// Parameters by provider.
#[expect(missing_debug_implementations, reason = "parameters may be keys")]
#[derive(Default, Serialize, Deserialize)]
pub struct DecryptConfig {
    /// Provider → its parameters; each is base64 of text.
    #[serde(default, rename = "Parameters", serialize_with = "as_map")]
    pub parameters: Option<Parameters>,
}

impl EncryptConfig {
    /// One user's words for one provider.
    #[must_use]
    pub fn words(provider: &str, words: &str) -> Self {
        Self {
            parameters: Some(parameters(provider, words)),
            decrypt: Some(DecryptConfig::default()),
        }
    }
}

impl DecryptConfig {
    /// One user's words for one provider.
    #[must_use]
    pub fn words(provider: &str, words: &str) -> Self {
        Self {
            parameters: Some(parameters(provider, words)),
        }
    }
}

/// Provider → what the user said to it.
pub type Parameters = BTreeMap<String, Vec<Words>>;

/// What a user said to a provider, in base64; it may be a private key.
#[expect(missing_debug_implementations, reason = "may hold a key")]
#[derive(Clone)]
pub struct Words(Zeroizing<String>);

impl Words {
    /// What was said; `None` when it is not base64 of text.
    #[must_use]
    pub fn text(&self) -> Option<Zeroizing<String>> {
        let mut bytes = Zeroizing::new(vec![0; self.0.len()]);
        let length = STANDARD.decode_slice(self.0.as_bytes(), &mut bytes).ok()?;
        let text = std::str::from_utf8(&bytes[..length]).ok()?;
        Some(Zeroizing::new(text.to_owned()))
    }
}

impl Serialize for Words {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

fn parameters(provider: &str, words: &str) -> Parameters {
    let words = Words(Zeroizing::new(STANDARD.encode(words)));
    BTreeMap::from([(provider.to_owned(), vec![words])])
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

impl Output {
    /// The document.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        to_json(self)
    }
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
        let mut bytes = SecretBuffer::new();
        while let Some(byte) = sequence.next_element::<u8>()? {
            if bytes.len() >= DOCUMENT_BYTES_MAX {
                return Err(A::Error::custom("too many bytes"));
            }
            bytes.extend(&[byte]);
        }
        Ok(WireBytes(bytes.into_inner()))
    }
}

/// Go's readers take `null` for an empty map, others do not.
fn as_map<S: Serializer>(
    parameters: &Option<Parameters>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match parameters {
        Some(parameters) => parameters.serialize(serializer),
        None => Parameters::new().serialize(serializer),
    }
}

/// Inputs carry base64, as Go's encoder writes them; a Go provider reads nothing else.
fn as_base64<S: Serializer>(bytes: &Option<WireBytes>, serializer: S) -> Result<S::Ok, S::Error> {
    match bytes {
        Some(bytes) => serializer.serialize_str(&Zeroizing::new(STANDARD.encode(bytes.expose()))),
        None => serializer.serialize_none(),
    }
}

/// `KeyProviderKeyWrapProtocolInput` and `…Output` of the service's protobuf: both have one field of bytes.
pub(super) fn to_message(document: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut message = Zeroizing::new(Vec::with_capacity(document.len() + 1 + VARINT_BYTES));
    message.push(FIELD);
    let mut length = document.len();
    while length > 0x7f {
        message.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    message.push(u8::try_from(length).unwrap_or_default());
    message.extend_from_slice(document);
    message
}

/// The document of such a message; `None` when it is none, has another field, or does not end where it says.
pub(super) fn of_message(message: &[u8]) -> Option<&[u8]> {
    let (&FIELD, mut rest) = message.split_first()? else {
        return None;
    };
    let mut length = 0_usize;
    for place in 0..VARINT_BYTES {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return (rest.len() == length).then_some(rest);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_survives_its_message() {
        for length in [0, 1, 127, 128, 300, 16_383, 16_384, 1_000_000] {
            let document = vec![7; length];
            let message = to_message(&document);
            assert_eq!(of_message(&message), Some(document.as_slice()));
            assert_eq!(of_message(&message[..message.len() - 1]), None);
        }
        for bad in [
            &b""[..],
            b"\x0a",
            b"\x12\x01a",
            b"\x0a\x80\x80\x80\x80\x80\x01",
            b"\x0a\x01ab",
        ] {
            assert_eq!(of_message(bad), None);
        }
    }

    /// CoCo's provider refuses `null` for a map.
    #[test]
    fn no_map_is_written_as_null() {
        let wrap = Input::wrap(b"{}", EncryptConfig::words("p", "x"));
        let unwrap = Input::unwrap(b"{}", DecryptConfig::default());
        for input in [wrap, unwrap] {
            let json = String::from_utf8(input.to_json().to_vec()).unwrap();
            assert!(!json.contains("\"Parameters\":null"), "{json}");
        }
    }

    #[test]
    fn words_are_read_as_they_were_said() {
        let config = EncryptConfig::words("p", "keypath=/k::keyid=kbs:///a/b/c");
        let json = to_json(&config);
        let again: EncryptConfig = serde_json::from_slice(&json).unwrap();
        let words = &again.parameters.unwrap()["p"][0];
        assert_eq!(
            words.text().unwrap().as_str(),
            "keypath=/k::keyid=kbs:///a/b/c"
        );
        let bad: Words = serde_json::from_str("\"%\"").unwrap();
        assert!(bad.text().is_none());
    }
}
