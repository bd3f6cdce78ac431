//! The master keys, which wrap the data keys of resources and nothing else.
//!
//! A key has an id made from it, which each wrapped key names, so several may be in use at once: the
//! newest wraps, and all of them unwrap. That is what makes rotation possible while brokers run.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::{
    file::{self, Held},
    seal::{KeyFileError, SealError, Sealer},
};

/// Keys in one file; more are a file that is no key file.
const KEYS: usize = 64;
const ID_BYTES: usize = 8;
const ID_CONTEXT: &[u8] = b"kbs master key id\0";

/// A data key as it is stored.
pub(crate) struct Wrapped {
    /// The master key's id.
    pub(crate) master: String,
    pub(crate) bytes: Vec<u8>,
}

/// Who holds the master keys: a file or the environment here, a module of hardware elsewhere.
pub(crate) trait MasterKeys: Send + Sync {
    /// The id of the key that wraps now.
    fn newest(&self) -> String;
    /// The ids that can be unwrapped, the newest last.
    fn known(&self) -> Vec<String>;
    /// Whether this one is among them.
    fn knows(&self, id: &str) -> bool;
    /// Wraps a data key for one place, which is `context`.
    fn wrap(&self, context: &str, key: &[u8]) -> Result<Wrapped, SealError>;
    /// Unwraps what `wrap` gave for the same place.
    fn unwrap(&self, context: &str, wrapped: &Wrapped) -> Result<Zeroizing<Vec<u8>>, SealError>;
    /// Opens what was sealed before data keys were: directly, under a key without an id.
    fn open_direct(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError>;
    /// Looks for keys that were added.
    fn reload(&self) -> Result<(), KeyFileError>;
}

/// Where the text of a ring is: one key a line, in 64 hex digits each, the newest last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    /// A variable; a comma or a space parts keys as well.
    Environment(String),
    /// Nowhere: the keys end with this process.
    Nowhere,
}

type Keys = Vec<(String, Sealer)>;

/// Master keys in this process's memory.
pub(crate) struct KeyRing {
    source: Source,
    keys: RwLock<Arc<Keys>>,
}

impl KeyRing {
    pub(crate) fn read(source: Source) -> Result<Self, KeyFileError> {
        let keys = RwLock::new(Arc::new(parse(&source)?));
        Ok(Self { source, keys })
    }

    /// One key that nobody else has.
    pub(crate) fn ephemeral() -> Self {
        let keys = vec![("0".to_owned(), Sealer::ephemeral())];
        Self {
            source: Source::Nowhere,
            keys: RwLock::new(Arc::new(keys)),
        }
    }

    /// What a key in it sealed.
    pub(crate) fn open(
        &self,
        context: &str,
        sealed: &Wrapped,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let keys = self.keys();
        let (_, sealer) = keys
            .iter()
            .find(|(id, _)| *id == sealed.master)
            .ok_or(SealError)?;
        sealer.open(context, &sealed.bytes)
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MasterKeys for KeyRing {
    fn newest(&self) -> String {
        self.keys()
            .last()
            .map(|(id, _)| id.clone())
            .unwrap_or_default()
    }

    fn known(&self) -> Vec<String> {
        self.keys().iter().map(|(id, _)| id.clone()).collect()
    }

    fn wrap(&self, context: &str, key: &[u8]) -> Result<Wrapped, SealError> {
        let keys = self.keys();
        let (id, sealer) = keys.last().ok_or(SealError)?;
        Ok(Wrapped {
            master: id.clone(),
            bytes: sealer.seal(context, key)?,
        })
    }

    fn unwrap(&self, context: &str, wrapped: &Wrapped) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.open(context, wrapped)
    }

    fn knows(&self, id: &str) -> bool {
        self.keys().iter().any(|(known, _)| known == id)
    }

    fn open_direct(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let keys = self.keys();
        let mut opened = keys.iter().map(|(_, sealer)| sealer.open(context, sealed));
        opened.find(Result::is_ok).unwrap_or(Err(SealError))
    }

    fn reload(&self) -> Result<(), KeyFileError> {
        if self.source == Source::Nowhere {
            return Ok(());
        }
        let keys = parse(&self.source)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }
}

/// Adds a key to a file, which wraps from then on, and gives its id. The file is replaced whole, so
/// that no broker reads half of it, and no key is lost to another who adds one.
pub(crate) fn rotate(path: &Path) -> Result<String, KeyFileError> {
    let file = Held::of(path).map_err(KeyFileError::Read)?;
    let text = file.text(file::SMALL).map_err(KeyFileError::Read)?;
    if keys_of(&text)?.len() >= KEYS {
        return Err(KeyFileError::Form);
    }
    let key = Sealer::new_key();
    let whole = Zeroizing::new(format!("{}\n{}", text.trim_end(), *key));
    file.replace(whole.as_bytes())
        .map_err(KeyFileError::Write)?;
    let ids = keys_of(&key)?;
    Ok(ids.into_iter().map(|(id, _)| id).collect())
}

fn parse(source: &Source) -> Result<Keys, KeyFileError> {
    let text = match source {
        Source::File(path) => {
            file::read_regular_text(path, file::SMALL).map_err(KeyFileError::Read)?
        }
        Source::Environment(name) => {
            Zeroizing::new(env::var(name).map_err(|_| KeyFileError::Environment)?)
        }
        Source::Nowhere => return Err(KeyFileError::Form),
    };
    keys_of(&text)
}

fn keys_of(text: &str) -> Result<Keys, KeyFileError> {
    let words = text.split(|c: char| c.is_ascii_whitespace() || c == ',');
    let keys = words
        .filter(|word| !word.is_empty())
        .map(|word| {
            let mut hash = Sha256::new_with_prefix(ID_CONTEXT);
            hash.update(word.to_ascii_lowercase());
            let id = hex::encode(&hash.finalize()[..ID_BYTES]);
            Ok((id, Sealer::from_hex(word)?))
        })
        .collect::<Result<Keys, KeyFileError>>()?;
    if keys.is_empty() || keys.len() > KEYS {
        return Err(KeyFileError::Form);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_newest_key_wraps_and_the_others_still_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        fs::write(&path, Sealer::new_key().as_bytes()).unwrap();
        let running = KeyRing::read(Source::File(path.clone())).ok().unwrap();
        let old = running.wrap("here", b"data key").ok().unwrap();
        let id = rotate(&path).unwrap();
        assert_ne!(id, old.master);
        let restarted = KeyRing::read(Source::File(path)).ok().unwrap();
        assert_eq!(restarted.newest(), id);
        assert_eq!(restarted.known().len(), 2);
        let new = restarted.wrap("here", b"data key").ok().unwrap();
        assert_eq!(new.master, id);
        // The one that runs knows the new key when it has looked for it.
        assert!(!running.knows(&id) && running.unwrap("here", &new).is_err());
        running.reload().unwrap();
        assert!(running.knows(&id));
        for wrapped in [&old, &new] {
            assert_eq!(
                &**running.unwrap("here", wrapped).ok().unwrap(),
                b"data key"
            );
            assert!(running.unwrap("there", wrapped).is_err());
        }
        assert_eq!(running.newest(), id);
    }

    #[test]
    fn a_file_that_holds_something_else_is_refused() {
        for text in [
            "",
            "\n",
            "abc",
            &"0".repeat(63),
            &format!("{}\nx", "0".repeat(64)),
        ] {
            assert!(keys_of(text).is_err(), "{text:?}");
        }
        assert_eq!(
            keys_of(&format!("{0},{0}", "0".repeat(64)))
                .unwrap_or_default()
                .len(),
            2
        );
    }
}
