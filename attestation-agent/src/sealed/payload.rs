//! What a sealed secret says: where the secret is, or the secret under a wrapped key.

use aes::Aes256;
use aes_gcm::aead::KeyInit;
use aes_gcm::{Aes256Gcm, aead::Aead};
use aes_kw::KwAes256;
use base64::{Engine, prelude::BASE64_STANDARD};
use ctr::cipher::KeyIvInit;
use ctr::{Ctr128BE, cipher::StreamCipher};
use kbs_protocol::{ResourceUri, Secret, limit::RESOURCE_BYTES};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{SealedError, Terms, shown};

pub(super) const VERSION: &str = "0.1.0";
pub(super) const KBS: &str = "kbs";
pub(super) const GCM: &str = "A256GCM";
const CTR: &str = "A256CTR";
pub(super) const KEY_BYTES: usize = 32;
/// RFC 3394 section 2.2.1: a block more than the key.
pub(super) const WRAPPED_BYTES: usize = KEY_BYTES + 8;
pub(super) const GCM_IV_BYTES: usize = 12;
const CTR_IV_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// A payload that was checked.
#[derive(Debug)]
pub struct Payload {
    /// The secret, or the way to it.
    pub content: Content,
    /// The owner's conditions.
    pub terms: Terms,
}

/// The two kinds.
#[derive(Debug)]
pub enum Content {
    /// The secret is a resource of the broker.
    Vault(ResourceUri),
    /// The secret is here.
    Envelope(Envelope),
}

/// A secret under a key that a key of the broker wraps.
pub struct Envelope {
    /// The broker's key.
    kek: ResourceUri,
    wrapped: [u8; WRAPPED_BYTES],
    cipher: Cipher,
    data: Vec<u8>,
}

enum Cipher {
    Gcm([u8; GCM_IV_BYTES]),
    Ctr([u8; CTR_IV_BYTES]),
}

impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Envelope");
        debug.field("kek", &self.kek).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Head {
    version: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vault {
    #[expect(dead_code, reason = "read by `Head`")]
    version: Value,
    #[expect(dead_code, reason = "read by `Head`")]
    r#type: Value,
    name: String,
    provider: String,
    #[serde(default)]
    provider_settings: Map<String, Value>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    #[expect(dead_code, reason = "read by `Head`")]
    version: Value,
    #[expect(dead_code, reason = "read by `Head`")]
    r#type: Value,
    provider: String,
    key_id: String,
    encrypted_key: String,
    encrypted_data: String,
    wrap_type: String,
    iv: String,
    #[serde(default)]
    provider_settings: Map<String, Value>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

impl Payload {
    /// Reads a payload. What is not authenticated by a signature must be so by its cipher.
    pub(super) fn from_json(json: &[u8], is_verified: bool) -> Result<Self, SealedError> {
        let head: Head = read(json)?;
        if head.version != VERSION {
            return Err(unsupported("version", &head.version, "`0.1.0`"));
        }
        match head.kind.as_str() {
            "vault" => Self::vault(&read(json)?),
            "envelope" => Self::envelope(&read(json)?, is_verified),
            other => Err(unsupported("type", other, "`vault` or `envelope`")),
        }
    }

    fn vault(vault: &Vault) -> Result<Self, SealedError> {
        check_provider(&vault.provider, &vault.provider_settings)?;
        Ok(Self {
            content: Content::Vault(uri("name", &vault.name)?),
            terms: Terms::of_annotations(&vault.annotations)?,
        })
    }

    fn envelope(wrapped: &Wrapped, is_verified: bool) -> Result<Self, SealedError> {
        check_provider(&wrapped.provider, &wrapped.provider_settings)?;
        let iv = decode("iv", &wrapped.iv)?;
        let bad_iv = |_| part("iv has another length than `wrap_type` wants");
        let cipher = match wrapped.wrap_type.as_str() {
            GCM => Cipher::Gcm(iv.try_into().map_err(bad_iv)?),
            CTR if is_verified => Cipher::Ctr(iv.try_into().map_err(bad_iv)?),
            CTR => {
                let fix = "`A256GCM` where signatures are not verified";
                return Err(unsupported("wrap_type", CTR, fix));
            }
            other => return Err(unsupported("wrap_type", other, "`A256GCM`")),
        };
        let key = decode("encrypted_key", &wrapped.encrypted_key)?;
        let key: Result<[u8; WRAPPED_BYTES], _> = key.try_into();
        let data = decode("encrypted_data", &wrapped.encrypted_data)?;
        if data.len() > RESOURCE_BYTES + TAG_BYTES {
            return Err(SealedError::TooLarge);
        }
        Ok(Self {
            content: Content::Envelope(Envelope {
                kek: uri("key_id", &wrapped.key_id)?,
                wrapped: key.map_err(|_| part("encrypted_key has not 40 bytes (RFC 3394)"))?,
                cipher,
                data,
            }),
            terms: Terms::of_annotations(&wrapped.annotations)?,
        })
    }
}

impl Envelope {
    /// The broker's key that opens it.
    #[must_use]
    pub fn kek(&self) -> &ResourceUri {
        &self.kek
    }

    /// Opens it.
    ///
    /// # Errors
    /// The key is another one, or the data were altered.
    pub fn open(&self, kek: &Secret) -> Result<Secret, SealedError> {
        let kek: &[u8; KEY_BYTES] = kek
            .expose()
            .try_into()
            .map_err(|_| part("the broker's key has not 32 bytes"))?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        KwAes256::new(kek.into())
            .unwrap_key(&self.wrapped, &mut *key)
            .map_err(|_| SealedError::Open("wrapped key"))?;
        match &self.cipher {
            Cipher::Gcm(iv) => Aes256Gcm::new((&*key).into())
                .decrypt(iv.into(), self.data.as_slice())
                .map(Secret::from)
                .map_err(|_| SealedError::Open("content")),
            Cipher::Ctr(iv) => {
                let mut plain = self.data.clone();
                Ctr128BE::<Aes256>::new((&*key).into(), iv.into()).apply_keystream(&mut plain);
                Ok(Secret::from(plain))
            }
        }
    }
}

fn check_provider(provider: &str, settings: &Map<String, Value>) -> Result<(), SealedError> {
    if provider != KBS {
        return Err(unsupported("provider", provider, "`kbs`"));
    }
    match settings.keys().next() {
        None => Ok(()),
        Some(key) => Err(unsupported("provider_settings", key, "none")),
    }
}

fn uri(member: &'static str, text: &str) -> Result<ResourceUri, SealedError> {
    text.parse()
        .map_err(|_| unsupported(member, text, "`kbs:///<repository>/<type>/<tag>`"))
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, SealedError> {
    let cause =
        "it is not the JSON of a `vault` or an `envelope`, or has members that are not known";
    serde_json::from_slice(json).map_err(|_| part(cause))
}

fn decode(member: &'static str, text: &str) -> Result<Vec<u8>, SealedError> {
    BASE64_STANDARD.decode(text).map_err(|_| SealedError::Part {
        part: member,
        cause: "it is not base64",
    })
}

fn part(cause: &'static str) -> SealedError {
    SealedError::Part {
        part: "payload",
        cause,
    }
}

fn unsupported(member: &'static str, found: &str, fix: &'static str) -> SealedError {
    SealedError::Unsupported {
        member,
        found: shown(found),
        fix,
    }
}
