//! One block of 512 bytes as a header: its checksum and its numbers.
//!
//! The `tar` crate knows where the fields are. Numbers are read here, because a size that is negative or too long for
//! 64 bits must be an error, and not some other number.

use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader, Header};

use super::UnpackError;
use super::sparse::Segment;

/// The unit of an archive.
pub(super) const BLOCK: usize = 512;

/// A header whose sum is right.
pub(super) fn read(block: &[u8; BLOCK]) -> Result<&Header, UnpackError> {
    let header = Header::from_byte_slice(block);
    // The sum counts its own eight bytes as spaces; old writers summed signed bytes.
    let (mut sum, mut signed) = (8 * 32_i64, 8 * 32_i64);
    for (at, byte) in block.iter().enumerate() {
        if !(148..156).contains(&at) {
            sum += i64::from(*byte);
            signed += i64::from(byte.cast_signed());
        }
    }
    let found = number(&header.as_old().cksum, "checksum").map_err(|_| UnpackError::Checksum)?;
    if found == sum || found == signed {
        Ok(header)
    } else {
        Err(UnpackError::Checksum)
    }
}

/// Octal text, or big-endian with the first bit set. A field that is left blank is zero, as every reader has it.
pub(super) fn number(field: &[u8], name: &'static str) -> Result<i64, UnpackError> {
    let bad = || UnpackError::Number(name);
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        // Two's complement in 7 + 8n bits: the second bit of the field is the sign.
        let start = i128::from(first & 0x7f) - if first & 0x40 == 0 { 0 } else { 0x80 };
        let wide = rest.iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)?.checked_add(i128::from(*byte))
        });
        return wide
            .and_then(|wide| i64::try_from(wide).ok())
            .ok_or_else(bad);
    }
    let start = field.iter().position(|byte| !matches!(byte, 0 | b' '));
    let digits = &field[start.unwrap_or(field.len())..];
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' '));
    let (digits, behind) = digits.split_at(end.unwrap_or(digits.len()));
    // What stands behind the first NUL is nobody's; before it, only spaces may.
    let behind = behind.split(|byte| *byte == 0).next().unwrap_or_default();
    if behind.iter().any(|byte| *byte != b' ') {
        return Err(bad());
    }
    digits.iter().try_fold(0_i64, |sum, byte| match byte {
        b'0'..=b'7' => sum
            .checked_mul(8)
            .map(|sum| sum + i64::from(byte - b'0'))
            .ok_or_else(bad),
        _ => Err(bad()),
    })
}

/// A number that cannot be negative.
pub(super) fn unsigned(field: &[u8], name: &'static str) -> Result<u64, UnpackError> {
    u64::try_from(number(field, name)?).map_err(|_| UnpackError::Number(name))
}

/// A number of 32 bits.
pub(super) fn narrow(field: &[u8], name: &'static str) -> Result<u32, UnpackError> {
    u32::try_from(number(field, name)?).map_err(|_| UnpackError::Number(name))
}

/// Major and minor number of a device.
pub(super) fn device(header: &Header) -> Result<(u32, u32), UnpackError> {
    // GNU and ustar keep these two fields in the same place.
    let fields = header
        .as_ustar()
        .map(|ustar| (ustar.dev_major, ustar.dev_minor));
    let (major, minor) = fields
        .or_else(|| header.as_gnu().map(|gnu| (gnu.dev_major, gnu.dev_minor)))
        .unwrap_or_default();
    let name = "device number";
    Ok((narrow(&major, name)?, narrow(&minor, name)?))
}

/// The segments in the tail of an old GNU header, and whether a block with more follows.
pub(super) fn sparse(header: &GnuHeader) -> Result<(Vec<Segment>, bool), UnpackError> {
    Ok((segments(&header.sparse)?, header.isextended[0] != 0))
}

/// The segments in a block behind such a header, and whether another one follows.
pub(super) fn more_sparse(block: &[u8; BLOCK]) -> Result<(Vec<Segment>, bool), UnpackError> {
    let mut header = GnuExtSparseHeader::new();
    header.as_mut_bytes().copy_from_slice(block);
    Ok((segments(&header.sparse)?, header.isextended[0] != 0))
}

fn segments(descriptions: &[GnuSparseHeader]) -> Result<Vec<Segment>, UnpackError> {
    let name = "sparse map";
    let used = descriptions
        .iter()
        .take_while(|description| description.numbytes[0] != 0);
    used.map(|description| {
        Ok(Segment {
            offset: unsigned(&description.offset, name)?,
            length: unsigned(&description.numbytes, name)?,
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_number(field: &[u8]) -> Option<i64> {
        number(field, "size").ok()
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, expected) in [
            (b"0000644\0".as_slice(), 0o644),
            (b"  644 \0 ", 0o644),
            (b"77777777777 ", 0o77_777_777_777),
            (b"644\0garbage", 0o644),
            (b"\0\0\0\0", 0),
            (b"    ", 0),
            (b"\x80\0\0\x02\0\0\0\0", 2 << 32),
            (b"\x80\0\0\0\0\0\0\0\0\0\0\x07", 7),
            (&[0xff; 12], -1),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", -256),
        ] {
            assert_eq!(read_number(field), Some(expected), "{field:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for field in [
            b"-1\0".as_slice(),
            b"0x10\0",
            b"12 3\0",
            b"888\0",
            b"\x80\x01\0\0\0\0\0\0\0\0\0\0",
            b"777777777777777777777777",
        ] {
            assert_eq!(read_number(field), None, "{field:?}");
        }
        assert!(unsigned(&[0xff; 12], "size").is_err());
        assert!(narrow(b"\x80\0\0\x01\0\0\0\0", "uid").is_err());
    }
}
