//! A message of protobuf field by field, for messages of which a few fields count here and whose generated code
//! would be larger than what reads them. <https://protobuf.dev/programming-guides/encoding/>

use protobuf::CodedInputStream;
use protobuf::rt::WireType;
use thiserror::Error;

/// Why a message cannot be read.
#[derive(Debug, Error)]
pub enum FieldError {
    /// It is none.
    #[error(transparent)]
    Malformed(#[from] protobuf::Error),
    /// A field, by its number, is of another type.
    #[error("field {0} is malformed")]
    Field(u32),
}

/// A field of a message.
pub(crate) struct Field {
    /// Its number.
    pub(crate) number: u32,
    value: Value,
}

enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Field {
    pub(crate) fn malformed(&self) -> FieldError {
        FieldError::Field(self.number)
    }

    pub(crate) fn number(&self) -> Result<u64, FieldError> {
        match self.value {
            Value::Number(number) => Ok(number),
            Value::Bytes(_) => Err(self.malformed()),
        }
    }

    pub(crate) fn message(&self) -> Result<&[u8], FieldError> {
        match &self.value {
            Value::Bytes(bytes) => Ok(bytes),
            Value::Number(_) => Err(self.malformed()),
        }
    }

    pub(crate) fn text(&self) -> Result<String, FieldError> {
        let bytes = self.message()?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.malformed())
    }
}

/// Hands on each field of a message that is a number or has a length. What ttRPC let in is at most 4 MiB, and so
/// is each of its parts.
pub(crate) fn each(
    message: &[u8],
    mut take: impl FnMut(&Field) -> Result<(), FieldError>,
) -> Result<(), FieldError> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof()? {
        let number = tag >> 3;
        let value = match WireType::new(tag & 7) {
            Some(WireType::Varint) => Value::Number(stream.read_uint64()?),
            Some(WireType::LengthDelimited) => Value::Bytes(stream.read_bytes()?),
            Some(other) => {
                stream.skip_field(other)?;
                continue;
            }
            None => return Err(FieldError::Field(number)),
        };
        take(&Field { number, value })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &[u8]) -> Result<Vec<(u32, String)>, FieldError> {
        let mut all = Vec::new();
        each(message, |field| {
            let text = match field.number() {
                Ok(number) => number.to_string(),
                Err(_) => field.text()?,
            };
            all.push((field.number, text));
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn numbers_and_texts_are_handed_on_and_other_types_passed_over() {
        let message = b"\x08\x96\x01\x12\x02hi\x1d\x01\x02\x03\x04\x12\x00";
        let told = read(message).unwrap();
        let expected = [(1, "150"), (2, "hi"), (2, "")];
        assert!(told.iter().map(|(n, t)| (*n, t.as_str())).eq(expected));
    }

    #[test]
    fn what_is_torn_or_of_another_type_is_an_error() {
        for torn in [
            &b"\x08"[..],
            b"\x12\x05hi",
            b"\x0f",
            b"\x12\x01\xff",
            b"\x12\xff\xff\xff\xff\x0f",
        ] {
            assert!(read(torn).is_err(), "{torn:?}");
        }
    }
}
