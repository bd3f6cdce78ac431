//! Gzip with a bound on what comes out, so that a small input cannot fill the guest's memory.

use std::io::{Read, Write};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};

use super::{COMPRESSED_BYTES, InitDataError, TEXT_BYTES};

pub(super) fn compress(text: &[u8]) -> Result<Vec<u8>, InitDataError> {
    let broken = |error: std::io::Error| InitDataError::Gzip(error.to_string());
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text).map_err(broken)?;
    let compressed = encoder.finish().map_err(broken)?;
    if compressed.len() > COMPRESSED_BYTES {
        return Err(InitDataError::CompressedLong(compressed.len() as u64));
    }
    Ok(compressed)
}

pub(super) fn decompress(compressed: &[u8]) -> Result<Vec<u8>, InitDataError> {
    if compressed.len() > COMPRESSED_BYTES {
        return Err(InitDataError::CompressedLong(compressed.len() as u64));
    }
    let mut text = Vec::new();
    MultiGzDecoder::new(compressed)
        .take(TEXT_BYTES as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| InitDataError::Gzip(error.to_string()))?;
    if text.len() > TEXT_BYTES {
        return Err(InitDataError::Bomb);
    }
    Ok(text)
}
