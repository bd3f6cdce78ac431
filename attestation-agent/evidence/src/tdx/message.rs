//! What a guest sends: the quote, and its firmware's log.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::quote::{QUOTE_BYTES, Quote, QuoteError};
use crate::eventlog::LOG_BYTES;

/// A quote and a log: `{"quote", "cc_eventlog"}`, both in standard base64. The log may be null, empty
/// or absent.
#[derive(Debug, Clone, PartialEq, Eq)]
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    quote: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
}

impl Serialize for TdxEvidence {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Wire {
            quote: BASE64_STANDARD.encode(&self.bytes),
            cc_eventlog: self
                .event_log
                .as_ref()
                .map(|log| BASE64_STANDARD.encode(log)),
        }
        .serialize(to)
    }
}

impl<'de> Deserialize<'de> for TdxEvidence {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(from)?;
        let quote = decode("quote", &wire.quote, QUOTE_BYTES)?;
        let event_log = wire
            .cc_eventlog
            .map(|log| decode("cc_eventlog", &log, LOG_BYTES))
            .transpose()?;
        Self::new(&quote, event_log).map_err(D::Error::custom)
    }
}

fn decode<E: Error>(member: &str, text: &str, most: usize) -> Result<Vec<u8>, E> {
    if text.len() > most.div_ceil(3) * 4 {
        return Err(E::custom(format_args!(
            "`{member}` has more than {most} bytes"
        )));
    }
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| E::custom(format_args!("`{member}` is not base64")))
}
