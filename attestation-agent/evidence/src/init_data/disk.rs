//! Init-data as a disk: `initdata` ‖ length as u64 LE ‖ gzip of the text, padded with zeros to 512.
//!
//! The host writes the disk, so the guest trusts nothing of it: the length is bounded before memory is
//! taken, and the text counts only once its digest is the one that the launch bound.

use std::io::{ErrorKind, Read};

use super::{COMPRESSED_BYTES, InitData, InitDataError, gzip};

/// What the disk begins with.
pub const MAGIC: [u8; 8] = *b"initdata";

/// The unit of the padding, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// Writes the disk.
///
/// # Errors
/// When the compressed text is over its cap.
pub fn encode(data: &InitData) -> Result<Vec<u8>, InitDataError> {
    let compressed = gzip::compress(data.text().as_bytes())?;
    let mut disk = Vec::with_capacity(compressed.len() + SECTOR_BYTES);
    disk.extend_from_slice(&MAGIC);
    disk.extend_from_slice(&(compressed.len() as u64).to_le_bytes());
    disk.extend_from_slice(&compressed);
    disk.resize(disk.len().next_multiple_of(SECTOR_BYTES), 0);
    Ok(disk)
}

/// Whether a disk begins as an init-data disk does.
#[must_use]
pub fn is_init_data(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Reads the disk. The caller compares the digest with what the launch bound before it uses anything.
///
/// # Errors
/// When the disk is not one of init-data, ends early, or is over a cap.
pub fn decode(mut disk: impl Read) -> Result<InitData, InitDataError> {
    let mut magic = [0; MAGIC.len()];
    disk.read_exact(&mut magic)
        .map_err(|error| read_error(&error))?;
    if magic != MAGIC {
        return Err(InitDataError::Magic);
    }
    let mut length = [0; 8];
    disk.read_exact(&mut length)
        .map_err(|error| read_error(&error))?;
    let length = u64::from_le_bytes(length);
    if length > COMPRESSED_BYTES as u64 {
        return Err(InitDataError::CompressedLong(length));
    }
    let mut compressed = Vec::new();
    let read = disk
        .take(length)
        .read_to_end(&mut compressed)
        .map_err(|error| read_error(&error))?;
    if read as u64 != length {
        return Err(InitDataError::Disk(format!(
            "it ends after {read} of {length} bytes"
        )));
    }
    InitData::parse(&gzip::decompress(&compressed)?)
}

fn read_error(error: &std::io::Error) -> InitDataError {
    InitDataError::Disk(match error.kind() {
        ErrorKind::UnexpectedEof => "it ends within its header".to_owned(),
        _ => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"a\" = \"b\"\n";

    #[test]
    fn a_disk_keeps_the_exact_text() {
        let disk = encode(&InitData::parse(TEXT).unwrap()).unwrap();
        assert_eq!(disk.len() % SECTOR_BYTES, 0);
        assert!(is_init_data(&disk));
        assert_eq!(&disk[..8], b"initdata");
        assert_eq!(decode(disk.as_slice()).unwrap().text().as_bytes(), TEXT);
    }

    #[test]
    fn a_hostile_length_takes_no_memory() {
        let mut disk = MAGIC.to_vec();
        disk.extend_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(
            decode(disk.as_slice()),
            Err(InitDataError::CompressedLong(u64::MAX))
        );
        disk.truncate(8);
        disk.extend_from_slice(&1000u64.to_le_bytes());
        disk.extend_from_slice(&[0; 512]);
        assert!(matches!(
            decode(disk.as_slice()),
            Err(InitDataError::Disk(_))
        ));
    }

    #[test]
    fn each_cut_and_each_flipped_header_byte_is_refused() {
        let disk = encode(&InitData::parse(TEXT).unwrap()).unwrap();
        let used = 16 + usize::from(disk[8]);
        for end in 0..used {
            assert!(decode(&disk[..end]).is_err(), "cut at {end}");
        }
        for at in 0..8 {
            let mut other = disk.clone();
            other[at] ^= 1;
            assert_eq!(decode(other.as_slice()), Err(InitDataError::Magic));
        }
    }

    #[test]
    fn no_flipped_bit_changes_the_text() {
        let original = InitData::parse(TEXT).unwrap();
        let disk = encode(&original).unwrap();
        for bit in 0..disk.len() * 8 {
            let mut other = disk.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            // Some bits are of gzip's header or the padding, which carry no text.
            if let Ok(data) = decode(other.as_slice()) {
                assert_eq!(data, original, "bit {bit}");
            }
        }
    }
}
