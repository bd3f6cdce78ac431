//! What a request says of a disk's encryption, in Kata's words: driver options of a storage.
//!
//! | option | |
//! |---|---|
//! | `encryption_key=ephemeral` | a key that is made in the guest and ends with it. Kata asks for `create_filesystem` beside it, and so do we: what was on the disk is lost |
//! | `encryption_key=kbs:///…` | the key is at the owner's broker: 64 bytes, of a disk that its owner has prepared |
//! | `data_integrity=false` | an ephemeral disk without tags, which take memory |
//! | `create_filesystem` alone | a disk that is formatted and not encrypted: in a plain guest, for a volume of the pod's own |
//!
//! A disk with a key of the broker's is never formatted here: whoever could have that done would turn the owner's
//! data into an empty volume, which a program may take for a first start.

use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use attestation_agent::ResourceUri;

use super::{Cipher, Key, PHASE};
use crate::fault::invalid;
use crate::image::Images;

const KEY: &str = "encryption_key";
/// The word for a key that is made in the guest.
const EPHEMERAL: &str = "ephemeral";
const CREATE: &str = "create_filesystem";
const INTEGRITY: &str = "data_integrity";

/// What is done with a disk before it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Treatment {
    /// Nothing.
    AsItIs,
    /// It is formatted.
    Formatted,
    /// It is decrypted.
    Encrypted(Encryption),
}

impl Treatment {
    /// That of a storage's driver options.
    ///
    /// # Errors
    ///
    /// Names the option.
    pub fn of(options: &[String]) -> Result<Self, GuestError> {
        match options {
            [] => Ok(Self::AsItIs),
            [option] if option == CREATE => Ok(Self::Formatted),
            _ => Encryption::of(options).map(Self::Encrypted),
        }
    }

    /// Whether what was on the disk is lost.
    #[must_use]
    pub fn formats(&self) -> bool {
        match self {
            Self::AsItIs => false,
            Self::Formatted => true,
            Self::Encrypted(encryption) => encryption.formats(),
        }
    }

    /// The cipher, with its key.
    ///
    /// # Errors
    ///
    /// The key does not come, or is none.
    pub async fn cipher(&self, images: &Images) -> Result<Option<Cipher>, GuestError> {
        match self {
            Self::AsItIs | Self::Formatted => Ok(None),
            Self::Encrypted(encryption) => encryption.cipher(images).await.map(Some),
        }
    }
}

/// How a disk is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// With a key that is made in the guest, and formatted.
    Ephemeral {
        /// Whether what the host changes is noticed.
        authenticated: bool,
    },
    /// With a key of the owner's broker, and as it is.
    Keyed(Arc<ResourceUri>),
}

impl Encryption {
    /// That of a storage's driver options, of which there is one.
    fn of(options: &[String]) -> Result<Self, GuestError> {
        let (mut key, mut creates, mut integrity) = (None, false, None);
        for option in options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let is_new = match name {
                KEY => key.replace(value).is_none(),
                CREATE if option == CREATE => !std::mem::replace(&mut creates, true),
                INTEGRITY => integrity.replace(truth(INTEGRITY, value)?).is_none(),
                _ => {
                    let text = format!(
                        "{:?} of a disk is not supported: use {KEY}, {CREATE}, {INTEGRITY}",
                        shown(option)
                    );
                    return Err(invalid(PHASE, text));
                }
            };
            if !is_new {
                return Err(invalid(PHASE, format!("{name} is said twice")));
            }
        }
        let key = key.ok_or_else(|| invalid(PHASE, format!("{INTEGRITY} needs {KEY}")))?;
        match (key == EPHEMERAL, creates, integrity) {
            (true, true, _) => Ok(Self::Ephemeral {
                authenticated: integrity.unwrap_or(true),
            }),
            (true, false, _) => {
                let text =
                    format!("{KEY}={EPHEMERAL} needs {CREATE}: nothing is left of what was there");
                Err(invalid(PHASE, text))
            }
            (false, false, None) => Self::keyed(key),
            (false, ..) => {
                let text = format!(
                    "{CREATE}, {INTEGRITY} are for {KEY}={EPHEMERAL}: a disk whose key is the owner's is formatted by its owner"
                );
                Err(invalid(PHASE, text))
            }
        }
    }

    /// With the key of this address.
    ///
    /// # Errors
    ///
    /// It is none of a broker.
    pub fn keyed(uri: &str) -> Result<Self, GuestError> {
        let parsed = uri.parse().map_err(|error| {
            let text = format!("key {:?}: {error}: use {EPHEMERAL} or kbs:///…", shown(uri));
            invalid(PHASE, text)
        })?;
        Ok(Self::Keyed(Arc::new(parsed)))
    }

    /// Whether the disk is formatted.
    #[must_use]
    pub fn formats(&self) -> bool {
        matches!(self, Self::Ephemeral { .. })
    }

    /// The cipher, with its key.
    ///
    /// # Errors
    ///
    /// The key does not come, or is none.
    pub async fn cipher(&self, images: &Images) -> Result<Cipher, GuestError> {
        let uri = match self {
            Self::Ephemeral {
                authenticated: true,
            } => return Ok(Cipher::Authenticated),
            Self::Ephemeral {
                authenticated: false,
            } => return Key::random().map(Cipher::Plain),
            Self::Keyed(uri) => uri,
        };
        let secret = images.secret(uri).await?;
        let key = Key::new(&secret).ok_or_else(|| {
            let text = format!(
                "{uri} is no key of a disk: it has {} bytes, and AES-256-XTS needs {} with two different halves",
                secret.len(),
                Key::BYTES
            );
            GuestError::new(ErrorCode::KeyUnwrapFailed, PHASE, text)
        })?;
        Ok(Cipher::Plain(key))
    }
}

/// `true` or `false`.
///
/// # Errors
///
/// It is neither.
pub fn truth(name: &str, value: &str) -> Result<bool, GuestError> {
    value.parse().map_err(|_| {
        let text = format!("{name} {:?}: use true or false", shown(value));
        invalid(PHASE, text)
    })
}

/// As much of the host's words as an error repeats.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(options: &[&str]) -> Result<Treatment, String> {
        let options: Vec<_> = options.iter().map(|one| (*one).to_owned()).collect();
        Treatment::of(&options).map_err(|error| error.message)
    }

    #[test]
    fn a_disk_of_the_guests_own_is_formatted_and_one_of_the_owners_is_not() {
        let ephemeral = |authenticated| {
            let encryption = Encryption::Ephemeral { authenticated };
            Ok(Treatment::Encrypted(encryption))
        };
        assert_eq!(asked(&[]), Ok(Treatment::AsItIs));
        assert_eq!(asked(&["create_filesystem"]), Ok(Treatment::Formatted));
        let kata = ["encryption_key=ephemeral", "create_filesystem"];
        assert_eq!(asked(&kata), ephemeral(true));
        let without = ["create_filesystem", "data_integrity=false", kata[0]];
        assert_eq!(asked(&without), ephemeral(false));
        let keyed = asked(&["encryption_key=kbs:///default/disk/key"]);
        let keyed = keyed.unwrap();
        assert!(!keyed.formats());
        let Treatment::Encrypted(Encryption::Keyed(uri)) = keyed else {
            panic!("{keyed:?}")
        };
        assert_eq!(uri.to_string(), "kbs:///default/disk/key");
    }

    #[test]
    fn what_would_not_be_done_is_refused_by_name() {
        for (options, told) in [
            (&["encryption_key=ephemeral"][..], "needs create_filesystem"),
            (
                &["create_filesystem", "data_integrity=false"],
                "needs encryption_key",
            ),
            (
                &["create_filesystem=1", "encryption_key=ephemeral"],
                "\"create_filesystem=1\"",
            ),
            (
                &["encryption_key=kbs:///a/b/c", "create_filesystem"],
                "formatted by its owner",
            ),
            (
                &["encryption_key=kbs:///a/b/c", "data_integrity=true"],
                "formatted by its owner",
            ),
            (&["encryption_key=/etc/key"], "use ephemeral or kbs"),
            (
                &["encryption_key=ephemeral", "encryption_key=ephemeral"],
                "said twice",
            ),
            (&["data_integrity=maybe"], "true or false"),
            (&["confidential=true"], "\"confidential=true\""),
        ] {
            let error = asked(options).unwrap_err();
            assert!(error.contains(told), "{options:?}: {error}");
        }
    }
}
