//! What a guest sends: the quote, and its firmware's log.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::quote::{QUOTE_BYTES, Quote, QuoteError};
use crate::eventlog::LOG_BYTES;

/// A quote and a log: `{"quote", "cc_eventlog"}`, both in standard base64. The log may be null, empty
/// or absent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TdxMessage")]
pub struct TdxEvidence {
    bytes: Vec<u8>,
    quote: Quote,
    event_log: Option<Vec<u8>>,
}

impl TdxEvidence {
    /// Evidence from the bytes that the host's quote service wrote.
    ///
    /// # Errors
    /// When the bytes are no quote, see [`Quote::parse`].
    pub fn new(bytes: &[u8], event_log: Option<Vec<u8>>) -> Result<Self, QuoteError> {
        Ok(Self {
            quote: Quote::parse(bytes)?,
            bytes: bytes.to_vec(),
            event_log: event_log.filter(|log| !log.is_empty()),
        })
    }

    /// The quote's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The quote's fields.
    #[must_use]
    pub fn quote(&self) -> &Quote {
        &self.quote
    }

    /// The log's bytes, where there are some.
    #[must_use]
    pub fn event_log(&self) -> Option<&[u8]> {
        self.event_log.as_deref()
    }
}

/// The members as they are sent, of bounded length: what [`TdxEvidence`] is read from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxMessage {
    /// The quote's bytes.
    #[serde(deserialize_with = "quote")]
    pub quote: Vec<u8>,
    /// The log's bytes.
    #[serde(default, deserialize_with = "event_log")]
    pub cc_eventlog: Option<Vec<u8>>,
}

impl TryFrom<TdxMessage> for TdxEvidence {
    type Error = QuoteError;

    fn try_from(message: TdxMessage) -> Result<Self, QuoteError> {
        Self::new(&message.quote, message.cc_eventlog)
    }
}

impl Serialize for TdxEvidence {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Out {
            quote: String,
            cc_eventlog: Option<String>,
        }
        let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        Out {
            quote: encode(&self.bytes),
            cc_eventlog: self.event_log().map(encode),
        }
        .serialize(to)
    }
}

fn quote<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    decode(&String::deserialize(from)?, QUOTE_BYTES)
}

fn event_log<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
    Option::<String>::deserialize(from)?
        .map(|text| decode(&text, LOG_BYTES))
        .transpose()
}

fn decode<E: Error>(text: &str, most: usize) -> Result<Vec<u8>, E> {
    if text.len() > most.div_ceil(3) * 4 {
        return Err(E::custom(format_args!("more than {most} bytes")));
    }
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| E::custom("not base64"))
}
