//! PAX extended headers (POSIX.1-2001): `<length> <key>=<value>\n`, as far as a layer uses them.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::sparse::PaxSparse;
use super::{Limits, UnpackError};

/// Extended attributes, as GNU tar, Go and bsdtar write them.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// The same once more as bsdtar writes them: a name with percent signs, and a value in base64.
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";
/// Base64 as libarchive has it, which writes no padding.
const INDIFFERENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Access lists as text, by names of users that no image has.
const ACCESS_LIST: &[u8] = b"SCHILY.acl.";
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
    /// Whether it has an access list that would be lost.
    pub(super) access_list: bool,
    /// Attributes in the other writing, which say the same as the first or stand alone.
    others: Vec<(Vec<u8>, Vec<u8>)>,
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
        extended.merge_xattrs()?;
        Ok(extended)
    }

    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), UnpackError> {
        match key {
            xattr if xattr.starts_with(XATTR) => {
                let pair = self.xattr(xattr[XATTR.len()..].to_vec(), value.to_vec(), limits)?;
                self.xattrs.push(pair);
            }
            other if other.starts_with(LIBARCHIVE) => {
                let name = unescaped(&other[LIBARCHIVE.len()..]).ok_or_else(malformed)?;
                let value = INDIFFERENT.decode(value).map_err(|_| malformed())?;
                let pair = self.xattr(name, value, limits)?;
                self.others.push(pair);
            }
            list if list.starts_with(ACCESS_LIST) => self.access_list |= !value.is_empty(),
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

    /// Checks an attribute and counts it.
    fn xattr(
        &mut self,
        name: Vec<u8>,
        value: Vec<u8>,
        limits: &Limits,
    ) -> Result<(Vec<u8>, Vec<u8>), UnpackError> {
        self.xattr_bytes += name.len() + value.len();
        if self.xattr_bytes > limits.xattr_bytes {
            return Err(UnpackError::limit("xattr_bytes", limits.xattr_bytes as u64));
        }
        if name.is_empty() || name.contains(&0) {
            return Err(malformed());
        }
        Ok((name, value))
    }

    /// An attribute that is written in both ways must be the same in both.
    fn merge_xattrs(&mut self) -> Result<(), UnpackError> {
        for other in std::mem::take(&mut self.others) {
            match self.xattrs.iter().find(|(name, _)| *name == other.0) {
                None => self.xattrs.push(other),
                Some((_, value)) if *value == other.1 => {}
                Some(_) => {
                    let twice = "an extended attribute has two values";
                    return Err(UnpackError::Archive(twice.to_owned()));
                }
            }
        }
        Ok(())
    }
}

/// A name with `%XX` in it.
fn unescaped(name: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            plain.push(*first);
            continue;
        }
        let (digits, behind) = behind.split_at_checked(2)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        plain.extend(hex::decode(digits).ok()?);
        rest = behind;
    }
    Some(plain)
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
    fn attributes_in_libarchives_writing_are_read() {
        let (plain, other) = (
            "25 SCHILY.xattr.user.x=1\n",
            "33 LIBARCHIVE.xattr.user%2ey=AQI\n",
        );
        let both = read(format!("{plain}{other}").as_bytes()).unwrap();
        let expected = [
            (b"user.x".to_vec(), b"1".to_vec()),
            (b"user.y".to_vec(), vec![1, 2]),
        ];
        assert_eq!(both.xattrs, expected);
        let same = read(format!("{plain}30 LIBARCHIVE.xattr.user.x=MQ\n").as_bytes()).unwrap();
        assert_eq!(same.xattrs, expected[..1]);
        for bad in [
            format!("{plain}30 LIBARCHIVE.xattr.user.x=Mg\n"),
            "30 LIBARCHIVE.xattr.user%2=MQ\n".to_owned(),
            "30 LIBARCHIVE.xattr.user.x=M!\n".to_owned(),
        ] {
            let error = read(bad.as_bytes()).unwrap_err();
            assert!(matches!(error, UnpackError::Archive(_)), "{bad}: {error}");
        }
    }

    #[test]
    fn an_access_list_as_text_is_seen() {
        assert!(
            read(b"35 SCHILY.acl.access=user::rw-,x:y\n")
                .unwrap()
                .access_list
        );
        assert!(!read(b"22 SCHILY.acl.access=\n").unwrap().access_list);
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
