//! Init-data as a pod's annotation: base64 of gzip of the text.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{COMPRESSED_BYTES, InitData, InitDataError, gzip};

/// The annotation that carries it; Kata's name.
pub const KEY: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// Characters of an annotation whose content is at its cap.
const TEXT_CHARS: usize = COMPRESSED_BYTES / 3 * 4 + 8;

/// Reads an annotation's value. Blanks around it, which come from YAML blocks, are passed over.
///
/// # Errors
/// When it is not base64 of gzip of init-data, or over a cap.
pub fn decode(value: &str) -> Result<InitData, InitDataError> {
    let value = value.trim();
    if value.len() > TEXT_CHARS {
        return Err(InitDataError::CompressedLong(value.len() as u64 / 4 * 3));
    }
    let compressed = BASE64_STANDARD
        .decode(value)
        .map_err(|_| InitDataError::Base64)?;
    InitData::parse(&gzip::decompress(&compressed)?)
}

/// Writes an annotation's value.
///
/// # Errors
/// When the compressed text is over its cap.
pub fn encode(data: &InitData) -> Result<String, InitDataError> {
    Ok(BASE64_STANDARD.encode(gzip::compress(data.text().as_bytes())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init_data::TEXT_BYTES;

    const TEXT: &[u8] = b"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n";

    #[test]
    fn an_annotation_keeps_the_exact_text() {
        let data = InitData::parse(TEXT).unwrap();
        let value = encode(&data).unwrap();
        assert_eq!(
            decode(&format!(" {value}\n")).unwrap().text().as_bytes(),
            TEXT
        );
    }

    #[test]
    fn hostile_annotations_are_refused() {
        assert_eq!(decode("***"), Err(InitDataError::Base64));
        assert!(matches!(decode("AAAA"), Err(InitDataError::Gzip(_))));
        assert!(matches!(
            decode(&"A".repeat(TEXT_CHARS + 1)),
            Err(InitDataError::CompressedLong(_))
        ));
        let bomb = gzip::compress(&vec![b'\n'; TEXT_BYTES + 1]).unwrap();
        assert_eq!(
            decode(&BASE64_STANDARD.encode(bomb)),
            Err(InitDataError::Bomb)
        );
    }
}
