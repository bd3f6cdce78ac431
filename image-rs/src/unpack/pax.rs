//! PAX extended headers (POSIX.1-2001): `<length> <key>=<value>\n`, as far as a layer uses them.

use super::sparse::PaxSparse;
use super::{Limits, UnpackError};

/// Extended attributes, as GNU tar, Go and bsdtar write them.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// What GNU tar says of sparse files.
const SPARSE: &[u8] = b"GNU.sparse.";

/// What the extended header of one entry says.
#[derive(Debug, Default, Clone)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Box<PaxSparse>>,
    xattr_bytes: usize,
}

impl Extended {
    pub(super) fn read(mut bytes: &[u8], limits: &Limits) -> Result<Self, UnpackError> {
        let mut extended = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or_else(malformed)?;
            extended.set(key, value, limits)?;
            bytes = rest;
        }
        Ok(extended)
    }

    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), UnpackError> {
        match key {
            xattr if xattr.starts_with(XATTR) => {
                return self.xattr(&xattr[XATTR.len()..], value, limits);
            }
            sparse if sparse.starts_with(SPARSE) => {
                let sparse = self.sparse.get_or_insert_default();
                return sparse.set(&key[SPARSE.len()..], value);
            }
            // An empty value takes back what was said before (POSIX), which here is the header's own.
            _ if value.is_empty() => {}
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value, "extended size")?),
            b"uid" => self.uid = Some(number(value, "extended uid")?),
            b"gid" => self.gid = Some(number(value, "extended gid")?),
            b"mtime" => {
                self.mtime = Some(time(value).ok_or(UnpackError::Number("extended mtime"))?);
            }
            // Times of access, names of users, comments: nothing that a root file system needs.
            _ => {}
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8], limits: &Limits) -> Result<(), UnpackError> {
        self.xattr_bytes += name.len() + value.len();
        if self.xattr_bytes > limits.xattr_bytes {
            return Err(UnpackError::limit("xattr_bytes", limits.xattr_bytes as u64));
        }
        if name.is_empty() || name.contains(&0) {
            return Err(malformed());
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let body = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

/// A decimal number, and nothing but digits.
pub(super) fn number<T: std::str::FromStr>(
    value: &[u8],
    field: &'static str,
) -> Result<T, UnpackError> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok())
        .ok_or(UnpackError::Number(field))
}

/// Seconds with an optional fraction; a time before 1970 is negative as a whole.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = if seconds == "-" || seconds.is_empty() {
        0
    } else {
        seconds.parse().ok()?
    };
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    match (text.starts_with('-'), nanos) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((whole, nanos)),
    }
}

fn malformed() -> UnpackError {
    UnpackError::Archive("a malformed extended header".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Extended, UnpackError> {
        Extended::read(bytes, &Limits::default())
    }

    #[test]
    fn records_are_read_by_their_length() {
        let extended =
            read(b"12 path=a=b\n20 mtime=1.000000001\n25 SCHILY.xattr.user.x=1\n").unwrap_err();
        // The second record's length is wrong by one on purpose: nothing is guessed.
        assert!(matches!(extended, UnpackError::Archive(_)));
        let extended =
            read(b"12 path=a=b\n21 mtime=1.000000001\n25 SCHILY.xattr.user.x=1\n").unwrap();
        assert_eq!(extended.path.as_deref(), Some(b"a=b".as_slice()));
        assert_eq!(extended.mtime, Some((1, 1)));
        assert_eq!(extended.xattrs, [(b"user.x".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn an_empty_value_leaves_the_headers_own() {
        let extended = read(b"8 path=\n8 size=\n").unwrap();
        assert_eq!((extended.path, extended.size), (None, None));
    }

    #[test]
    fn numbers_are_digits_only() {
        for text in [b"11 size=-1\n".as_slice(), b"11 size=+1\n", b"11 size=0x\n"] {
            assert!(matches!(
                read(text),
                Err(UnpackError::Number("extended size"))
            ));
        }
    }

    #[test]
    fn times_before_1970_keep_their_order() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-1"), Some((-1, 0)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"x"), None);
    }
}
