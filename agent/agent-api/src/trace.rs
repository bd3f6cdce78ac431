//! W3C's trace context, as it crosses from host to guest in ttRPC's metadata: which trace a request is of, and
//! which span of it asks. <https://www.w3.org/TR/trace-context/>
//!
//! It is a number that the host chose, and says nothing more. Neither side believes anything of it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The key of the metadata, and of the HTTP header.
pub const TRACEPARENT: &str = "traceparent";
/// Bytes of a version that has more fields than these.
const MAX_TEXT: usize = 256;

/// The id of a span: not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpanId([u8; 8]);

/// A span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace: [u8; 16],
    span: SpanId,
    sampled: bool,
}

/// The text is no such number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no trace context of W3C")]
pub struct TraceError;

impl SpanId {
    /// Of bytes that are not all zero.
    #[must_use]
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }
}

impl TraceParent {
    /// A span of a trace, whose id is not zero.
    #[must_use]
    pub fn new(trace: [u8; 16], span: SpanId, sampled: bool) -> Option<Self> {
        let parent = Self {
            trace,
            span,
            sampled,
        };
        (trace != [0; 16]).then_some(parent)
    }

    /// What a request's metadata say; nothing where that does not read.
    #[must_use]
    pub fn of_metadata(metadata: &HashMap<String, Vec<String>>) -> Option<Self> {
        metadata.get(TRACEPARENT)?.first()?.parse().ok()
    }

    /// As metadata of a request.
    #[must_use]
    pub fn to_metadata(self) -> HashMap<String, Vec<String>> {
        HashMap::from([(TRACEPARENT.to_owned(), vec![self.to_string()])])
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn with_span(self, span: SpanId) -> Self {
        Self { span, ..self }
    }

    /// The trace's id in hexadecimal.
    #[must_use]
    pub fn trace_id(self) -> String {
        hex(&self.trace)
    }

    /// The span's id.
    #[must_use]
    pub fn span(self) -> SpanId {
        self.span
    }

    /// Whether somebody wants to see this trace.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.sampled
    }
}

impl FromStr for TraceParent {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        if text.len() > MAX_TEXT {
            return Err(TraceError);
        }
        let mut fields = text.split('-');
        let mut field = || fields.next().ok_or(TraceError);
        let [version] = bytes::<1>(field()?)?;
        let trace = bytes::<16>(field()?)?;
        let span = bytes::<8>(field()?)?;
        let [flags] = bytes::<1>(field()?)?;
        // A later version may have more fields behind these.
        if version == 0xff || (version == 0 && fields.next().is_some()) {
            return Err(TraceError);
        }
        let span = SpanId::new(span).ok_or(TraceError)?;
        Self::new(trace, span, flags & 1 == 1).ok_or(TraceError)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", hex(&self.trace), self.span)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl From<SpanId> for String {
    fn from(id: SpanId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for SpanId {
    type Error = TraceError;

    fn try_from(text: String) -> Result<Self, TraceError> {
        Self::new(bytes(&text)?).ok_or(TraceError)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// So many bytes of lower-case hexadecimal.
fn bytes<const N: usize>(text: &str) -> Result<[u8; N], TraceError> {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != 2 * N || !text.bytes().all(digits) {
        return Err(TraceError);
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let pair = text.get(2 * index..2 * index + 2).ok_or(TraceError)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| TraceError)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_context_comes_back_from_metadata() {
        let text = format!("00-{TRACE}-{SPAN}-01");
        let parent: TraceParent = text.parse().unwrap();
        assert_eq!(parent.to_string(), text);
        assert_eq!(
            (parent.trace_id().as_str(), parent.is_sampled()),
            (TRACE, true)
        );
        assert_eq!(
            TraceParent::of_metadata(&parent.to_metadata()),
            Some(parent)
        );
        let other = SpanId::new([1; 8]).unwrap();
        assert_eq!(
            parent.with_span(other).to_string(),
            format!("00-{TRACE}-0101010101010101-01")
        );
        assert!(
            !format!("00-{TRACE}-{SPAN}-02")
                .parse::<TraceParent>()
                .unwrap()
                .is_sampled()
        );
        assert!(
            format!("01-{TRACE}-{SPAN}-01-more")
                .parse::<TraceParent>()
                .is_ok()
        );
    }

    #[test]
    fn anything_else_is_no_context() {
        let zeros = "0".repeat(32);
        for text in [
            String::new(),
            "00".into(),
            "00----".into(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-é"),
            format!("01-{TRACE}-{SPAN}-01-{}", "x".repeat(500)),
        ] {
            assert!(text.parse::<TraceParent>().is_err(), "{text}");
        }
        assert_eq!(TraceParent::of_metadata(&HashMap::new()), None);
        assert!(serde_json::from_str::<SpanId>("\"00f067aa0ba902b7\"").is_ok());
        assert!(serde_json::from_str::<SpanId>("\"0000000000000000\"").is_err());
    }
}
