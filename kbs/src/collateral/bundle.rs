//! A bundle of documents: one signed file.
//!
//! The file is a JWS in its flattened JSON form (RFC 7515, section 7.2.2), so that other tools can check
//! it too. Its signature says who collected the documents and when; what they are worth, their vendors'
//! signatures say.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, crypto};
use serde::{Deserialize, Serialize};

use super::{disk::FILES, error::show, stored::Stored};
use crate::admin::{AdminError, private_key, public_key};

/// Bytes of a bundle.
pub(crate) const BUNDLE_BYTES: usize = 128 << 20;
const VERSION: u32 = 1;
/// Keeps a signature over something else from passing for a bundle's.
const TYPE: &str = "cloister-collateral+json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Jws {
    payload: String,
    protected: String,
    signature: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Protected {
    alg: Algorithm,
    typ: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    version: u32,
    /// When it was made and when its first document ends, in seconds since the Unix epoch.
    pub(super) made_at: i64,
    pub(super) expires: i64,
    pub(super) documents: Vec<Stored>,
}

impl Contents {
    pub(super) fn new(made_at: i64, expires: i64, documents: Vec<Stored>) -> Self {
        Self {
            version: VERSION,
            made_at,
            expires,
            documents,
        }
    }
}

/// A bundle that cannot be made or is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The cache.
    #[error("the cache: {0}")]
    Cache(#[from] io::Error),
    /// A key file.
    #[error(transparent)]
    Key(#[from] AdminError),
    /// Nobody may sign bundles.
    #[error("no key may sign bundles: name the public ones in `bundle_keys` of [collateral]")]
    NoKeys,
    /// Nothing to put into it.
    #[error("the cache has no document that holds: fill it with `kbs collateral prefetch`")]
    Empty,
    /// The signature could not be made.
    #[error("the key does not sign")]
    Sign,
    /// Too long.
    #[error("a bundle may have {BUNDLE_BYTES} bytes and {FILES} documents, and this one has more")]
    TooLarge,
    /// Another form.
    #[error("it is no bundle of `kbs collateral export`: {0}")]
    Form(String),
    /// By none of the keys, or changed.
    #[error("none of `bundle_keys` signed it as it is: it was changed, or another key signed it")]
    Signature,
    /// From the future.
    #[error("it was made at {}, and it is {}: correct the clock", show(*.made_at), show(*.now))]
    Early {
        /// What it says.
        made_at: i64,
        /// What the clock here says.
        now: i64,
    },
}

/// Signs the documents with a private key.
pub(super) fn seal(contents: &Contents, key: &Path) -> Result<Vec<u8>, BundleError> {
    let (alg, key) = private_key(key)?;
    let typ = TYPE.to_owned();
    let json = |value| serde_json::to_vec(value).map_err(|_| BundleError::Sign);
    let payload = BASE64_URL_SAFE_NO_PAD.encode(json(contents)?);
    let protected = serde_json::to_vec(&Protected { alg, typ }).map_err(|_| BundleError::Sign)?;
    let protected = BASE64_URL_SAFE_NO_PAD.encode(protected);
    let signed = format!("{protected}.{payload}");
    let signature = crypto::sign(signed.as_bytes(), &key, alg).map_err(|_| BundleError::Sign)?;
    let jws = Jws {
        payload,
        protected,
        signature,
    };
    let text = serde_json::to_vec(&jws).map_err(|_| BundleError::Sign)?;
    if text.len() > BUNDLE_BYTES || contents.documents.len() > FILES {
        return Err(BundleError::TooLarge);
    }
    Ok(text)
}

/// Reads what one of the keys signed.
pub(super) fn open(text: &[u8], keys: &[PathBuf]) -> Result<Contents, BundleError> {
    let form = |error: &dyn std::fmt::Display| BundleError::Form(error.to_string());
    if text.len() > BUNDLE_BYTES {
        return Err(BundleError::TooLarge);
    }
    if keys.is_empty() {
        return Err(BundleError::NoKeys);
    }
    let jws: Jws = serde_json::from_slice(text).map_err(|error| form(&error))?;
    let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|e| form(&e));
    let protected: Protected =
        serde_json::from_slice(&decode(&jws.protected)?).map_err(|error| form(&error))?;
    if protected.typ != TYPE {
        return Err(BundleError::Form(format!("its type is not `{TYPE}`")));
    }
    let signed = format!("{}.{}", jws.protected, jws.payload);
    let mut by_one = false;
    for key in keys {
        let (algorithm, key) = public_key(key)?;
        by_one |= algorithm == protected.alg
            && crypto::verify(&jws.signature, signed.as_bytes(), &key, algorithm)
                .is_ok_and(|good| good);
    }
    if !by_one {
        return Err(BundleError::Signature);
    }
    let contents: Contents =
        serde_json::from_slice(&decode(&jws.payload)?).map_err(|error| form(&error))?;
    if contents.version != VERSION {
        let version = contents.version;
        return Err(BundleError::Form(format!(
            "it has version {version}, and {VERSION} is read"
        )));
    }
    if contents.documents.len() > FILES {
        return Err(BundleError::TooLarge);
    }
    Ok(contents)
}
