//! Keys on the owner's disk: key-encryption keys of 32 raw bytes, and the private keys of JWE recipients.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail};
use async_trait::async_trait;
use ocicrypt::jwe::{PrivateKey, PublicKey};
use ocicrypt::{KEY_BYTES, Key, KeyError, KeySource};
use zeroize::Zeroizing;

/// Cap on a key file, in bytes; a PEM key is the largest kind.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A broker's name of a key: `kbs:///repository/type/tag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyId(String);

impl KeyId {
    /// The part behind `kbs:///`.
    pub(super) fn path(&self) -> &str {
        self.0.trim_start_matches("kbs:///")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let word = |word: &str| {
            let inside = word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
            inside && !word.is_empty() && !word.starts_with('.')
        };
        let path = text.strip_prefix("kbs:///").unwrap_or_default();
        if path.split('/').count() == 3 && path.split('/').all(word) {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "a key id is kbs:///repository/type/tag, of letters, digits, '.', '_' and '-'"
                    .to_owned(),
            )
        }
    }
}

/// Reads a key-encryption key.
pub(super) fn read_kek(path: &Path) -> anyhow::Result<Key> {
    let bytes = read(path)?;
    if bytes.len() != KEY_BYTES {
        bail!(
            "{} has {} bytes, but a key-encryption key has {KEY_BYTES} raw ones",
            path.display(),
            bytes.len()
        );
    }
    Ok(Key::new(bytes.to_vec()))
}

/// Reads a key-encryption key, or makes one where there is no file; tells whether it was made.
pub(super) fn read_or_make_kek(path: &Path) -> anyhow::Result<(Key, bool)> {
    let key = Key::generate()?;
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(mut file) => {
            let written = file.write_all(key.expose()).and_then(|()| file.sync_all());
            written.with_context(|| format!("write {}", path.display()))?;
            Ok((key, true))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok((read_kek(path)?, false)),
        Err(error) => Err(error).with_context(|| format!("make {}", path.display())),
    }
}

/// Reads a recipient's public key.
pub(super) fn read_public(path: &Path) -> anyhow::Result<PublicKey> {
    PublicKey::from_pem(&read(path)?).with_context(|| path.display().to_string())
}

/// A file's text without the line end, for a token.
pub(super) fn read_token(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes)
        .ok()
        .map(str::trim)
        .filter(|text| !text.is_empty());
    let text = text.with_context(|| format!("{} holds no token", path.display()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// A key's PEM.
pub(super) fn read_text(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes);
    let text = text.with_context(|| format!("{} is no text", path.display()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{} has more than {FILE_BYTES_MAX} bytes", path.display());
    }
    Ok(bytes)
}

/// Keys that were given as files: one is tried for every id, because its file does not say which it is.
pub(super) struct FileKeys {
    kek: Option<Key>,
    private: Vec<PrivateKey>,
}

impl FileKeys {
    /// Reads 32 raw bytes as a key-encryption key, and anything else as PEM.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = read(path)?;
        if bytes.len() == KEY_BYTES {
            return Ok(Self {
                kek: Some(Key::new(bytes.to_vec())),
                private: Vec::new(),
            });
        }
        let key = PrivateKey::from_pem(&bytes).with_context(|| {
            format!(
                "{} is neither a key-encryption key of {KEY_BYTES} raw bytes nor a private key",
                path.display()
            )
        })?;
        Ok(Self {
            kek: None,
            private: vec![key],
        })
    }
}

#[async_trait]
impl KeySource for FileKeys {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        self.kek.clone().ok_or_else(|| KeyError::NotFound {
            kid: kid.to_owned(),
        })
    }

    fn private_keys(&self) -> &[PrivateKey] {
        &self.private
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        let (first, made) = read_or_make_kek(&path).unwrap();
        assert!(made);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let (second, made) = read_or_make_kek(&path).unwrap();
        assert!(!made);
        assert_eq!(first.expose(), second.expose());
        std::fs::write(&path, b"short").unwrap();
        assert!(
            read_or_make_kek(&path)
                .err()
                .unwrap()
                .to_string()
                .contains("has 5 bytes")
        );
    }

    #[test]
    fn a_key_id_has_three_parts() {
        assert_eq!("kbs:///a/b/c".parse::<KeyId>().unwrap().path(), "a/b/c");
        for bad in [
            "a/b/c",
            "kbs:///a/b",
            "kbs:///a/b/c/d",
            "kbs:///a/../c",
            "kbs://h/a/b/c",
            "kbs:///a/b/",
        ] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad}");
        }
    }
}
