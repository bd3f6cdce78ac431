//! Decompression: of the kernel inside a bzImage and of modules. zstd, gzip and lz4 are done
//! here; xz, which Debian uses for modules, by the host's tool.

use std::io::Read;
use std::process::Command;

use crate::command::{self, CommandError};
use crate::lz4;

/// The largest thing that is unpacked, in bytes: a kernel with all its tables is below 100 MiB.
pub(crate) const UNPACKED_MAX: u64 = 512 << 20;

/// Why something did not unpack.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The first bytes are of no known compression.
    #[error("unknown compression (first bytes {0})")]
    Format(String),
    /// The data is damaged.
    #[error("damaged {format} data")]
    Damaged {
        /// Which compression.
        format: &'static str,
        /// What the decoder said.
        #[source]
        source: std::io::Error,
    },
    /// There is more than [`UNPACKED_MAX`].
    #[error("unpacks to more than 512 MiB")]
    TooLarge,
    /// The host's tool failed.
    #[error(transparent)]
    Tool(#[from] CommandError),
}

/// Unpacks by the magic number; bytes that begin as an ELF file are taken as they are.
pub(crate) fn by_magic(bytes: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let unpacked = match bytes {
        [0x7f, b'E', b'L', b'F', ..] => bytes.to_vec(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::new(bytes)
                .map_err(|source| damaged("zstd", source))?
                .single_frame();
            read("zstd", decoder)?
        }
        [0x1f, 0x8b, ..] => read("gzip", flate2::read::GzDecoder::new(bytes))?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let mut xz = Command::new("xz");
            xz.args(["--decompress", "--stdout", "--single-stream"]);
            command::filter(&mut xz, bytes)?
        }
        _ if bytes.starts_with(&lz4::MAGIC) => {
            lz4::unpack(bytes, UNPACKED_MAX).map_err(|source| damaged("lz4", source))?
        }
        _ => {
            let first = &bytes[..bytes.len().min(6)];
            return Err(UnpackError::Format(hex::encode(first)));
        }
    };
    if unpacked.len() as u64 > UNPACKED_MAX {
        return Err(UnpackError::TooLarge);
    }
    Ok(unpacked)
}

fn read(format: &'static str, decoder: impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut out = Vec::new();
    decoder
        .take(UNPACKED_MAX + 1)
        .read_to_end(&mut out)
        .map_err(|source| damaged(format, source))?;
    Ok(out)
}

fn damaged(format: &'static str, source: std::io::Error) -> UnpackError {
    UnpackError::Damaged { format, source }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn each_format_is_known_by_its_magic_number() {
        let plain = [b"\x7fELF".as_slice(), &[7; 5000]].concat();
        let zstd = zstd::encode_all(plain.as_slice(), 3).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let xz = command::filter(Command::new("xz").arg("-c"), &plain).unwrap();
        let lz4 = lz4::pack(&plain).unwrap();
        for packed in [plain.clone(), zstd, gzip.finish().unwrap(), xz, lz4] {
            assert_eq!(by_magic(&packed).unwrap(), plain);
        }
    }

    #[test]
    fn unknown_and_damaged_data_are_told_apart() {
        let unknown = by_magic(b"no such format").unwrap_err().to_string();
        assert_eq!(unknown, "unknown compression (first bytes 6e6f20737563)");
        let mut zstd = zstd::encode_all([9_u8; 3000].as_slice(), 3).unwrap();
        zstd.truncate(zstd.len() - 4);
        assert!(matches!(
            by_magic(&zstd),
            Err(UnpackError::Damaged { format: "zstd", .. })
        ));
        assert!(matches!(
            by_magic(b"\xfd7zXZ\0junk"),
            Err(UnpackError::Tool(_))
        ));
    }
}
