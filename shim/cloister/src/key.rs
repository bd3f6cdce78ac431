//! Keys on the owner's disk: key-encryption keys of 32 raw bytes, and the private keys of JWE recipients.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use async_trait::async_trait;
use ocicrypt::jwe::{PrivateKey, PublicKey};
use ocicrypt::keyprovider::{DecryptConfig, Endpoint};
use ocicrypt::{KEY_BYTES, Key, KeyError, KeySource, Unwrapped, read_secret};
use zeroize::Zeroizing;

use super::recipient::{ProviderArgs, ProviderName};

/// Cap on a key file, in bytes; a PEM key is the largest kind.
const FILE_BYTES_MAX: usize = 64 * 1024;

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
            kept_if(written, path)?;
            Ok((key, true))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok((read_kek(path)?, false)),
        Err(error) => Err(error).with_context(|| format!("make {}", path.display())),
    }
}

/// A file that was not written whole goes: the next run would take it for a key.
fn kept_if(written: std::io::Result<()>, path: &Path) -> anyhow::Result<()> {
    written.or_else(|error| {
        let _ = std::fs::remove_file(path);
        Err(error).with_context(|| format!("write {}", path.display()))
    })
}

/// Reads a recipient's public key.
pub(super) fn read_public(path: &Path) -> anyhow::Result<PublicKey> {
    PublicKey::from_bytes(&read(path)?).with_context(|| path.display().to_string())
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

/// Reads a small file that may hold a secret.
pub(super) fn read(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let bytes = read_secret(file, FILE_BYTES_MAX);
    let bytes = bytes.with_context(|| format!("read {}", path.display()))?;
    bytes.with_context(|| format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()))
}

/// A key file on the command line: `FILE`, or `kbs:///repository/type/tag=FILE` where there are several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyFile {
    kid: Option<KeyId>,
    path: PathBuf,
}

impl FromStr for KeyFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((kid, path)) if kid.starts_with("kbs:") => Ok(Self {
                kid: Some(kid.parse()?),
                path: path.into(),
            }),
            _ => Ok(Self {
                kid: None,
                path: text.into(),
            }),
        }
    }
}

/// What was given to decrypt with. A key whose file does not say which it is, is tried for every id.
pub(super) struct OwnersKeys {
    named: BTreeMap<String, Key>,
    any: Option<Key>,
    private: Vec<PrivateKey>,
    providers: Vec<(ProviderName, Endpoint)>,
}

impl OwnersKeys {
    /// Reads 32 raw bytes as a key-encryption key, and anything else as a private key.
    pub(super) fn read(
        files: &[KeyFile],
        names: &[ProviderName],
        args: &ProviderArgs,
    ) -> anyhow::Result<Self> {
        if files.is_empty() && names.is_empty() {
            bail!("nothing to decrypt with: give --key-file or --provider");
        }
        let mut keys = Self {
            named: BTreeMap::new(),
            any: None,
            private: Vec::new(),
            providers: Vec::new(),
        };
        for file in files {
            keys.add(file)?;
        }
        for name in names {
            let endpoint = args.endpoint(&name.name)?;
            keys.providers.push((name.clone(), endpoint));
        }
        Ok(keys)
    }

    fn add(&mut self, file: &KeyFile) -> anyhow::Result<()> {
        let bytes = read(&file.path)?;
        let path = file.path.display();
        if bytes.len() == KEY_BYTES {
            let key = Key::new(bytes.to_vec());
            let known = match &file.kid {
                Some(kid) => self.named.insert(kid.to_string(), key),
                None => self.any.replace(key),
            };
            if known.is_some() {
                bail!(
                    "several keys and no word which is which: write kbs:///repository/type/tag={path}"
                );
            }
            return Ok(());
        }
        let key = PrivateKey::from_bytes(&bytes).with_context(|| {
            format!(
                "{path} is neither a key-encryption key of {KEY_BYTES} raw bytes nor a private key"
            )
        })?;
        self.private.push(key);
        Ok(())
    }
}

#[async_trait]
impl KeySource for OwnersKeys {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        let key = self.named.get(kid).or(self.any.as_ref());
        key.cloned().ok_or_else(|| KeyError::NotGiven {
            kid: kid.to_owned(),
        })
    }

    async fn unwrap(&self, name: &str, annotation: &[u8]) -> Option<Result<Unwrapped, KeyError>> {
        let mut providers = self.providers.iter();
        let (provider, endpoint) = providers.find(|(provider, _)| provider.name == name)?;
        let config = DecryptConfig::words(name, &provider.words);
        let answer = endpoint.unwrap(annotation, config).await;
        Some(
            answer
                .map(|options| Zeroizing::new(options.expose().to_vec()))
                .map_err(|error| KeyError::Provider {
                    name: name.to_owned(),
                    reason: format!("{:#}", anyhow::Error::from(error)),
                }),
        )
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
    fn a_file_that_was_not_written_whole_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kek");
        std::fs::write(&path, b"").unwrap();
        let full = std::io::Error::from(ErrorKind::StorageFull);
        let error = kept_if(Err(full), &path).unwrap_err();
        assert!(error.to_string().contains("kek"), "{error:#}");
        assert!(!path.exists());
        read_or_make_kek(&path).unwrap();
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

    #[test]
    fn several_keys_need_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        for name in ["one", "two"] {
            std::fs::write(path(name), [7; 32]).unwrap();
        }
        let args = ProviderArgs::default();
        let read = |files: &[String]| {
            let files: Vec<KeyFile> = files.iter().map(|file| file.parse().unwrap()).collect();
            OwnersKeys::read(&files, &[], &args)
        };
        assert!(read(&[path("one")]).is_ok());
        assert!(read(&[path("one"), format!("kbs:///a/b/c={}", path("two"))]).is_ok());
        let error = read(&[path("one"), path("two")]).err().unwrap().to_string();
        assert!(error.contains("kbs:///repository/type/tag="), "{error}");
        let error = read(&[]).err().unwrap().to_string();
        assert!(error.contains("--key-file or --provider"), "{error}");
    }
}
