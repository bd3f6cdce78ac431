//! Private options wrapped as a JWE (RFC 7516) in JSON, as `skopeo --encryption-key jwe:pub.pem` writes and reads it.
//!
//! Content encryption is A256GCM. A recipient's key is RSA (`RSA-OAEP`, which is SHA-1 in RFC 7518; `RSA-OAEP-256` is
//! read too) or an EC key on P-256, P-384 or P-521 (`ECDH-ES+A256KW`). The general serialisation is written; the
//! flattened one, which Go writes for one recipient, is read as well.

mod agreement;
mod jwk;
mod key;

pub use key::{KeyFormatError, PrivateKey, PublicKey};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::secret::{KEY_BYTES, NoEntropy, fill};

/// Cap on the JSON of a message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Cap on the recipients of a message.
pub const RECIPIENTS_MAX: usize = 32;

const ENC: &str = "A256GCM";
const RSA_OAEP: &str = "RSA-OAEP";
const RSA_OAEP_256: &str = "RSA-OAEP-256";
const ECDH_ES_A256KW: &str = "ECDH-ES+A256KW";
const IV_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// Why a message cannot be written or opened.
#[derive(Debug, thiserror::Error)]
pub enum JweError {
    /// A cap.
    #[error(
        "a JWE is longer than {MESSAGE_BYTES_MAX} bytes or has more than {RECIPIENTS_MAX} recipients"
    )]
    TooLong,
    /// Not a JWE.
    #[error("a JWE is not valid JSON of RFC 7516")]
    Json(#[source] serde_json::Error),
    /// Base64 or a length.
    #[error("{0} of a JWE is not valid")]
    Member(&'static str),
    /// A header which changes the meaning of the message.
    #[error("JWE header {0} is not supported")]
    Header(String),
    /// No recipient to write for.
    #[error("a JWE needs at least one recipient")]
    NoRecipient,
    /// None of our keys is a recipient's.
    #[error("none of the {keys} private keys at hand opens the JWE, which is for: {recipients}")]
    NoKey {
        /// How many keys were tried.
        keys: usize,
        /// The key algorithms of its recipients.
        recipients: String,
    },
    /// The key was wrapped for us, but the content is not authentic.
    #[error("the content of a JWE was altered")]
    Content,
    /// Wrapping for a recipient failed.
    #[error("the content key cannot be wrapped for a {0} recipient")]
    Wrap(&'static str),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
}

/// Encrypts `plain` for every one of `recipients`.
///
/// # Errors
/// No recipient, too many, or no random bytes.
pub fn wrap(recipients: &[PublicKey], plain: &[u8]) -> Result<Vec<u8>, JweError> {
    if recipients.is_empty() {
        return Err(JweError::NoRecipient);
    }
    if recipients.len() > RECIPIENTS_MAX {
        return Err(JweError::TooLong);
    }
    let mut content_key = Zeroizing::new([0; KEY_BYTES]);
    fill(content_key.as_mut_slice())?;
    let mut iv = [0; IV_BYTES];
    fill(&mut iv)?;
    let protected = URL_SAFE_NO_PAD.encode(format!(r#"{{"enc":"{ENC}"}}"#));
    let cipher = Aes256Gcm::new((&*content_key).into());
    let payload = Payload {
        msg: plain,
        aad: protected.as_bytes(),
    };
    let mut ciphertext = cipher
        .encrypt(&Nonce::from(iv), payload)
        .map_err(|_| JweError::Content)?;
    let tag = ciphertext.split_off(ciphertext.len() - TAG_BYTES);
    let wire = Wire {
        protected: Some(protected),
        recipients: recipients
            .iter()
            .map(|key| seal_for(key, &content_key))
            .collect::<Result<_, _>>()?,
        iv: URL_SAFE_NO_PAD.encode(iv),
        ciphertext: URL_SAFE_NO_PAD.encode(ciphertext),
        tag: URL_SAFE_NO_PAD.encode(tag),
        ..Wire::default()
    };
    serde_json::to_vec(&wire).map_err(JweError::Json)
}

/// Opens a message with the first of `keys` that is a recipient's.
///
/// # Errors
/// See [`JweError`].
pub fn unwrap(message: &[u8], keys: &[PrivateKey]) -> Result<Zeroizing<Vec<u8>>, JweError> {
    let (wire, sealed) = read(message)?;
    let mut algorithms = Vec::new();
    for recipient in wire.each_recipient()? {
        let header = sealed.header_of(&recipient)?;
        let encrypted_key = decode(&recipient.encrypted_key, "encrypted_key")?;
        for key in keys {
            if let Some(content_key) = open_key(&header, &encrypted_key, key)? {
                return sealed.open(&content_key);
            }
        }
        algorithms.push(text(&header, "alg").unwrap_or("no algorithm").to_owned());
    }
    Err(JweError::NoKey {
        keys: keys.len(),
        recipients: algorithms.join(", "),
    })
}

/// Whom a message is for, as its headers say; nothing of it is proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientHeader {
    /// `alg`.
    pub algorithm: String,
    /// `kid`, where the writer gave one.
    pub key_id: Option<String>,
}

/// Reads whom a message is for.
///
/// # Errors
/// See [`JweError`].
pub fn recipients(message: &[u8]) -> Result<Vec<RecipientHeader>, JweError> {
    let (wire, sealed) = read(message)?;
    let recipients = wire.each_recipient()?.into_iter();
    let recipients = recipients.map(|recipient| {
        let header = sealed.header_of(&recipient)?;
        Ok(RecipientHeader {
            algorithm: text(&header, "alg").unwrap_or("no algorithm").to_owned(),
            key_id: text(&header, "kid").map(str::to_owned),
        })
    });
    recipients.collect()
}

fn read(message: &[u8]) -> Result<(Wire, Sealed), JweError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(JweError::TooLong);
    }
    let wire: Wire = serde_json::from_slice(message).map_err(JweError::Json)?;
    let sealed = Sealed::read(&wire)?;
    Ok((wire, sealed))
}

#[derive(Serialize, Deserialize, Default)]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protected: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unprotected: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    recipients: Vec<Recipient>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    header: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encrypted_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    aad: Option<String>,
    iv: String,
    ciphertext: String,
    tag: String,
}

#[derive(Serialize, Deserialize, Clone)]
struct Recipient {
    #[serde(default)]
    header: Map<String, Value>,
    encrypted_key: String,
}

impl Wire {
    fn each_recipient(&self) -> Result<Vec<Recipient>, JweError> {
        if self.recipients.len() > RECIPIENTS_MAX {
            return Err(JweError::TooLong);
        }
        match &self.encrypted_key {
            Some(encrypted_key) if self.recipients.is_empty() => Ok(vec![Recipient {
                header: self.header.clone().unwrap_or_default(),
                encrypted_key: encrypted_key.clone(),
            }]),
            None if !self.recipients.is_empty() => Ok(self.recipients.clone()),
            _ => Err(JweError::Member("recipients")),
        }
    }
}

/// The parts of a message that its recipients share.
struct Sealed {
    shared: Map<String, Value>,
    aad: String,
    iv: [u8; IV_BYTES],
    body: Vec<u8>,
}

impl Sealed {
    fn read(wire: &Wire) -> Result<Self, JweError> {
        let protected = wire.protected.clone().unwrap_or_default();
        let mut shared = match decode(&protected, "protected")? {
            empty if empty.is_empty() => Map::new(),
            json => serde_json::from_slice(&json).map_err(JweError::Json)?,
        };
        merge(&mut shared, wire.unprotected.as_ref())?;
        let aad = match &wire.aad {
            Some(aad) => format!("{protected}.{aad}"),
            None => protected,
        };
        let mut body = decode(&wire.ciphertext, "ciphertext")?;
        let tag = decode(&wire.tag, "tag")?;
        if tag.len() != TAG_BYTES {
            return Err(JweError::Member("tag"));
        }
        body.extend_from_slice(&tag);
        let iv = decode(&wire.iv, "iv")?
            .try_into()
            .map_err(|_| JweError::Member("iv"))?;
        Ok(Self {
            shared,
            aad,
            iv,
            body,
        })
    }

    fn header_of(&self, recipient: &Recipient) -> Result<Map<String, Value>, JweError> {
        let mut header = self.shared.clone();
        merge(&mut header, Some(&recipient.header))?;
        // `zip` and `crit` change what the content means; we know neither.
        if let Some(name) = ["zip", "crit"]
            .into_iter()
            .find(|name| header.contains_key(*name))
        {
            return Err(JweError::Header(name.to_owned()));
        }
        match text(&header, "enc") {
            Some(ENC) => Ok(header),
            other => Err(JweError::Header(format!(
                "enc={}",
                other.unwrap_or_default()
            ))),
        }
    }

    fn open(&self, content_key: &[u8; KEY_BYTES]) -> Result<Zeroizing<Vec<u8>>, JweError> {
        let payload = Payload {
            msg: &self.body,
            aad: self.aad.as_bytes(),
        };
        let cipher = Aes256Gcm::new(content_key.into());
        cipher
            .decrypt(&Nonce::from(self.iv), payload)
            .map(Zeroizing::new)
            .map_err(|_| JweError::Content)
    }
}

/// RFC 7516, section 7.2.1: the header parameter names of one recipient must be disjoint.
fn merge(into: &mut Map<String, Value>, from: Option<&Map<String, Value>>) -> Result<(), JweError> {
    for (name, value) in from.into_iter().flatten() {
        if into.insert(name.clone(), value.clone()).is_some() {
            return Err(JweError::Header(format!("{name}, which stands twice,")));
        }
    }
    Ok(())
}

fn seal_for(key: &PublicKey, content_key: &[u8; KEY_BYTES]) -> Result<Recipient, JweError> {
    let mut header = Map::new();
    let encrypted = match key {
        PublicKey::Rsa(key) => {
            header.insert("alg".to_owned(), RSA_OAEP.into());
            key.oaep_encrypt_with_rng::<sha1::Sha1, _>(&mut rand::rngs::SysRng, content_key)
                .map_err(|_| JweError::Wrap(RSA_OAEP))?
        }
        PublicKey::P256(key) => agreement::seal(key, content_key, &mut header)?,
        PublicKey::P384(key) => agreement::seal(key, content_key, &mut header)?,
        PublicKey::P521(key) => agreement::seal(key, content_key, &mut header)?,
    };
    Ok(Recipient {
        header,
        encrypted_key: URL_SAFE_NO_PAD.encode(encrypted),
    })
}

/// `None` when the recipient is another than `key`.
fn open_key(
    header: &Map<String, Value>,
    encrypted: &[u8],
    key: &PrivateKey,
) -> Result<Option<Zeroizing<[u8; KEY_BYTES]>>, JweError> {
    let rng = &mut rand::rngs::SysRng;
    let bytes = match (text(header, "alg"), key) {
        (Some(RSA_OAEP), PrivateKey::Rsa(key)) => key
            .oaep_decrypt_with_rng::<sha1::Sha1, _>(rng, encrypted)
            .ok(),
        (Some(RSA_OAEP_256), PrivateKey::Rsa(key)) => key
            .oaep_decrypt_with_rng::<sha2::Sha256, _>(rng, encrypted)
            .ok(),
        (Some(ECDH_ES_A256KW), PrivateKey::P256(key)) => {
            return agreement::open(key, encrypted, header);
        }
        (Some(ECDH_ES_A256KW), PrivateKey::P384(key)) => {
            return agreement::open(key, encrypted, header);
        }
        (Some(ECDH_ES_A256KW), PrivateKey::P521(key)) => {
            return agreement::open(key, encrypted, header);
        }
        _ => None,
    };
    let Some(bytes) = bytes.map(Zeroizing::new) else {
        return Ok(None);
    };
    let mut content_key = Zeroizing::new([0; KEY_BYTES]);
    if bytes.len() != KEY_BYTES {
        return Err(JweError::Member("encrypted_key"));
    }
    content_key.copy_from_slice(&bytes);
    Ok(Some(content_key))
}

fn text<'a>(header: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    header.get(name).and_then(Value::as_str)
}

fn decode(text: &str, name: &'static str) -> Result<Vec<u8>, JweError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| JweError::Member(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use key::tests::{EC_P256, EC_P384, EC_P521, RSA};

    fn pair(private: &str, public: &str) -> (PrivateKey, PublicKey) {
        (
            PrivateKey::from_pem(private.as_bytes()).unwrap(),
            PublicKey::from_pem(public.as_bytes()).unwrap(),
        )
    }

    #[test]
    fn every_kind_of_recipient_opens_what_was_wrapped_for_it() {
        for (private, public) in [RSA, EC_P256, EC_P384, EC_P521] {
            let (private, public) = pair(private, public);
            let message = wrap(&[public], b"private options").unwrap();
            assert_eq!(
                unwrap(&message, &[private]).unwrap().as_slice(),
                b"private options"
            );
        }
    }

    /// Go writes RSA-OAEP; who configures another writer may get this.
    #[test]
    fn rsa_oaep_256_is_read() {
        let (private, public) = pair(RSA.0, RSA.1);
        let PublicKey::Rsa(rsa) = &public else {
            panic!("an RSA key")
        };
        let rsa = rsa.clone();
        let content_key = [5; KEY_BYTES];
        let protected = URL_SAFE_NO_PAD.encode(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#);
        let payload = Payload {
            msg: b"x",
            aad: protected.as_bytes(),
        };
        let cipher = Aes256Gcm::new((&content_key).into());
        let mut body = cipher
            .encrypt(&Nonce::from([0; IV_BYTES]), payload)
            .unwrap();
        let tag = body.split_off(1);
        let rng = &mut rand::rngs::SysRng;
        let encrypted = rsa
            .oaep_encrypt_with_rng::<sha2::Sha256, _>(rng, &content_key)
            .unwrap();
        let message = serde_json::json!({
            "protected": protected,
            "encrypted_key": URL_SAFE_NO_PAD.encode(encrypted),
            "iv": URL_SAFE_NO_PAD.encode([0; IV_BYTES]),
            "ciphertext": URL_SAFE_NO_PAD.encode(body),
            "tag": URL_SAFE_NO_PAD.encode(tag),
        });
        let message = message.to_string();
        assert_eq!(
            unwrap(message.as_bytes(), &[private]).unwrap().as_slice(),
            b"x"
        );
        let recipients = recipients(message.as_bytes()).unwrap();
        assert_eq!(recipients[0].algorithm, RSA_OAEP_256);
    }

    #[test]
    fn each_of_several_recipients_opens_it() {
        let (rsa, rsa_public) = pair(RSA.0, RSA.1);
        let (ec, ec_public) = pair(EC_P256.0, EC_P256.1);
        let (other, _) = pair(EC_P384.0, EC_P384.1);
        let message = wrap(&[rsa_public, ec_public], b"x").unwrap();
        for key in [rsa, ec] {
            assert_eq!(unwrap(&message, &[key]).unwrap().as_slice(), b"x");
        }
        let error = unwrap(&message, &[other]).unwrap_err().to_string();
        assert!(error.contains("RSA-OAEP, ECDH-ES+A256KW"), "{error}");
    }

    #[test]
    fn every_altered_member_is_refused() {
        let (private, public) = pair(EC_P256.0, EC_P256.1);
        let keys = [private];
        let message: Value =
            serde_json::from_slice(&wrap(&[public], b"private options").unwrap()).unwrap();
        for name in ["protected", "iv", "ciphertext", "tag"] {
            let mut bad = message.clone();
            let old = bad[name].as_str().unwrap();
            let first = if old.starts_with('A') { "B" } else { "A" };
            bad[name] = format!("{first}{}", &old[1..]).into();
            assert!(
                unwrap(&serde_json::to_vec(&bad).unwrap(), &keys).is_err(),
                "altered {name}"
            );
        }
        let mut zipped = message;
        zipped["unprotected"] = serde_json::json!({"zip": "DEF"});
        let error = unwrap(&serde_json::to_vec(&zipped).unwrap(), &keys)
            .unwrap_err()
            .to_string();
        assert!(error.contains("zip"), "{error}");
    }
}
