//! PAX extended headers (POSIX.1-2001): `<length> <key>=<value>\n`, as far as a layer uses them.

use super::UnpackError;

/// Extended attributes, as GNU tar, Go and bsdtar write them.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Cap on the extended attributes of one entry.
const XATTRS_MAX: usize = 256;

/// What the extended header of one entry says.
#[derive(Debug, Default, Clone)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extended {
    pub(super) fn read(mut bytes: &[u8]) -> Result<Self, UnpackError> {
        let mut extended = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) =
                record(bytes).ok_or_else(|| bad("a malformed extended header"))?;
            extended.set(key, value)?;
            bytes = rest;
        }
        Ok(extended)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let number = || {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|text| text.parse().ok())
                .ok_or_else(|| bad("a bad number in an extended header"))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => {
                self.mtime =
                    Some(time(value).ok_or_else(|| bad("a bad time in an extended header"))?)
            }
            sparse if sparse.starts_with(b"GNU.sparse.") => {
                return Err(UnpackError::Kind {
                    entry: "extended header".to_owned(),
                    kind: "sparse file".to_owned(),
                });
            }
            xattr if xattr.starts_with(XATTR) => {
                if self.xattrs.len() >= XATTRS_MAX {
                    return Err(UnpackError::limit(
                        "extended attributes of one entry",
                        XATTRS_MAX as u64,
                    ));
                }
                self.xattrs
                    .push((xattr[XATTR.len()..].to_vec(), value.to_vec()));
            }
            // Times of access, names of users, comments: nothing that a root file system needs.
            _ => {}
        }
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

fn bad(what: &str) -> UnpackError {
    UnpackError::Archive(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_length() {
        let extended =
            Extended::read(b"12 path=a=b\n20 mtime=1.000000001\n25 SCHILY.xattr.user.x=1\n")
                .unwrap_err();
        // The second record's length is wrong by one on purpose: nothing is guessed.
        assert!(matches!(extended, UnpackError::Archive(_)));
        let extended =
            Extended::read(b"12 path=a=b\n21 mtime=1.000000001\n25 SCHILY.xattr.user.x=1\n")
                .unwrap();
        assert_eq!(extended.path.as_deref(), Some(b"a=b".as_slice()));
        assert_eq!(extended.mtime, Some((1, 1)));
        assert_eq!(extended.xattrs, [(b"user.x".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn times_before_1970_keep_their_order() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-1"), Some((-1, 0)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"x"), None);
    }
}
