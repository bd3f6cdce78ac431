//! Byte fields in JSON: a list of numbers, as serde writes arrays, or base64 where we send a whole.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserializer, Serializer,
    de::{Error, SeqAccess, Visitor},
    ser::SerializeSeq,
};

/// An array of exactly `N` bytes as a list of numbers.
pub(super) mod array {
    use super::{Deserializer, Error, Serializer};

    pub(in crate::snp) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        super::numbers(bytes, to)
    }

    pub(in crate::snp) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        from: D,
    ) -> Result<[u8; N], D::Error> {
        let bytes = from.deserialize_seq(super::Bounded { most: N })?;
        let found = bytes.len();
        bytes
            .try_into()
            .map_err(|_| D::Error::custom(format_args!("{found} bytes where {N} are needed")))
    }
}

/// Bytes of any number up to the cap as a list of numbers, or as standard base64.
pub(super) mod list {
    use super::{Deserializer, Serializer};

    pub(in crate::snp) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        super::numbers(bytes, to)
    }

    pub(in crate::snp) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<u8>, D::Error> {
        from.deserialize_any(super::Bounded {
            most: crate::snp::CERTIFICATE_BYTES,
        })
    }
}

fn numbers<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    let mut list = to.serialize_seq(Some(bytes.len()))?;
    for byte in bytes {
        list.serialize_element(byte)?;
    }
    list.end()
}

/// Standard base64 of at most this many bytes.
pub(super) fn base64<E: Error>(text: &str, most: usize) -> Result<Vec<u8>, E> {
    if text.len() > most.div_ceil(3) * 4 {
        return Err(E::custom(format_args!("more than {most} bytes")));
    }
    BASE64_STANDARD
        .decode(text)
        .map_err(|_| E::custom("not base64"))
}

/// What a certificate has at most, but for rare ones.
const USUAL_BYTES: usize = 2048;

struct Bounded {
    most: usize,
}

impl<'de> Visitor<'de> for Bounded {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} bytes", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u8>, A::Error> {
        // JSON does not say how many come.
        let mut bytes = Vec::with_capacity(self.most.min(USUAL_BYTES));
        while let Some(byte) = list.next_element()? {
            if bytes.len() == self.most {
                return Err(A::Error::custom(format_args!(
                    "more than {} bytes",
                    self.most
                )));
            }
            bytes.push(byte);
        }
        Ok(bytes)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        base64(text, self.most)
    }
}
