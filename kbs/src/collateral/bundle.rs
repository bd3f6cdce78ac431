//! All that is cached in one signed file, for brokers that may ask nobody.
//!
//! The file is a JWS in its flattened JSON form (RFC 7515, section 7.2.2), so that other tools can check
//! it too. Its signature says who collected the documents and when; what they are worth, their vendors'
//! signatures say, which are checked as if each had just been fetched.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, crypto};
use serde::{Deserialize, Serialize};

use super::{
    Collateral,
    disk::FILES,
    document::Document,
    error::show,
    keeper::Keeper,
    proof::Want,
    renew::local,
    stored::{Held, Stored},
    whole,
};
use crate::admin::{AdminError, private_key, public_key};

/// Bytes of a bundle.
pub(crate) const BUNDLE_BYTES: usize = 128 << 20;
/// A clock that made a bundle may be this far ahead.
const AHEAD_SECONDS: i64 = 300;
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
struct Contents {
    version: u32,
    /// When it was made and when its first document ends, in seconds since the Unix epoch.
    made_at: i64,
    expires: i64,
    documents: Vec<Stored>,
}

/// What became of a bundle's making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The documents in it.
    pub documents: Vec<Document>,
    /// When the first of them ends, in seconds since the Unix epoch.
    pub expires: i64,
    /// What is in the cache and not in the bundle, and why.
    pub left_out: Vec<(Document, String)>,
}

/// What became of the documents of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// When it was made, in seconds since the Unix epoch.
    pub made_at: i64,
    /// Now in the cache.
    pub taken: Vec<Document>,
    /// Was in the cache already.
    pub known: Vec<Document>,
    /// Not taken, and why.
    pub refused: Vec<(Document, String)>,
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

impl Collateral {
    /// Packs and signs all documents of the cache that hold and verify.
    ///
    /// # Errors
    /// When there are none, or the key cannot be used.
    pub async fn export(
        &self,
        key: &Path,
        now: SystemTime,
    ) -> Result<(Vec<u8>, Summary), BundleError> {
        let now = whole(now);
        let (mut left_out, mut good) = (Vec::new(), BTreeMap::new());
        for entry in self.keeper.list().await? {
            match entry.held {
                Ok(held) if held.is_current(now) => drop(good.insert(entry.document, held)),
                Ok(held) => left_out.push((entry.document, ended(&held))),
                Err(cause) => left_out.push((entry.document, cause)),
            }
        }
        let verified = verified(&self.keeper, &good);
        let (mut documents, mut expires) = (Vec::new(), i64::MAX);
        for (document, held) in good {
            if verified.contains(&document) {
                expires = expires.min(held.until);
                documents.push(held.stored);
            } else {
                left_out.push((document, "it does not verify".to_owned()));
            }
        }
        if documents.is_empty() {
            return Err(BundleError::Empty);
        }
        let summary = Summary {
            documents: documents.iter().map(|s| s.document.clone()).collect(),
            expires,
            left_out,
        };
        let contents = Contents {
            version: VERSION,
            made_at: now,
            expires,
            documents,
        };
        Ok((seal(&contents, key)?, summary))
    }

    /// Takes documents from a bundle that one of the keys signed. Each is verified as if it had just
    /// been fetched, and none replaces a newer one.
    ///
    /// # Errors
    /// When none of the keys signed it, or its form is another one: then nothing of it is taken.
    pub async fn import(
        &self,
        text: &[u8],
        keys: &[PathBuf],
        now: SystemTime,
    ) -> Result<Imported, BundleError> {
        let now = whole(now);
        let contents = open(text, keys)?;
        if contents.made_at > now.saturating_add(AHEAD_SECONDS) {
            let made_at = contents.made_at;
            return Err(BundleError::Early { made_at, now });
        }
        let mut taking = Taking::new(contents, now)?;
        let on_disk = self.keeper.list().await?;
        let names = on_disk.into_iter().map(|entry| entry.document);
        let names: BTreeSet<_> = names.chain(taking.offered.keys().cloned()).collect();
        for want in Want::all_of(&Vec::from_iter(names)) {
            taking.weigh(&self.keeper, &want).await;
        }
        taking.write(&self.keeper).await
    }
}

/// Those of the documents that verify, each with the others that it needs.
fn verified(keeper: &Keeper, documents: &BTreeMap<Document, Held>) -> BTreeSet<Document> {
    let mut verified = BTreeSet::new();
    for want in Want::all_of(&documents.keys().cloned().collect::<Vec<_>>()) {
        let parts = want.documents().iter().map(|d| documents.get(d).cloned());
        let (Some(trust), Some(parts)) = (
            keeper.trust(want.first().kind()),
            parts.collect::<Option<Vec<_>>>(),
        ) else {
            continue;
        };
        if trust.prepare(&want, parts).is_ok() {
            verified.extend(want.documents().iter().cloned());
        }
    }
    verified
}

/// Documents of a bundle on their way into the cache.
struct Taking {
    made_at: i64,
    offered: BTreeMap<Document, Held>,
    good: BTreeSet<Document>,
    known: BTreeSet<Document>,
    refused: BTreeMap<Document, String>,
}

impl Taking {
    fn new(contents: Contents, now: i64) -> Result<Self, BundleError> {
        let mut taking = Self {
            made_at: contents.made_at,
            offered: BTreeMap::new(),
            good: BTreeSet::new(),
            known: BTreeSet::new(),
            refused: BTreeMap::new(),
        };
        for stored in contents.documents {
            let document = stored.document.clone();
            if taking.offered.contains_key(&document) || taking.refused.contains_key(&document) {
                return Err(BundleError::Form(format!("{document} is in it twice")));
            }
            match Held::of(stored) {
                Ok(held) if held.is_current(now) => drop(taking.offered.insert(document, held)),
                Ok(held) => drop(taking.refused.insert(document, ended(&held))),
                Err(cause) => drop(taking.refused.insert(document, cause)),
            }
        }
        Ok(taking)
    }

    /// Verifies what the bundle has for a want, together with what the cache has.
    async fn weigh(&mut self, keeper: &Arc<Keeper>, want: &Want) {
        let offers = |document: &Document| self.offered.contains_key(document);
        if !want.documents().iter().any(offers) {
            return;
        }
        let Some(trust) = keeper.trust(want.first().kind()) else {
            let cause = format!("there are no roots for `{}`", want.first().kind());
            return self.refuse(want, &cause);
        };
        let mut parts = keeper.copies(want).await;
        let here = local(&trust, want, None, &mut parts);
        for (at, document) in want.documents().iter().enumerate() {
            let Some(offered) = self.offered.get(document) else {
                continue;
            };
            let known = here.as_ref().and_then(|kept| kept.parts.get(at));
            match known {
                Some(known) if offered.from < known.from => {
                    let cause = format!(
                        "it is of {}, and the one in the cache of {}",
                        show(offered.from),
                        show(known.from)
                    );
                    self.refused.insert(document.clone(), cause);
                }
                Some(known) if known.stored.body == offered.stored.body => {
                    self.known.insert(document.clone());
                }
                _ => parts[at] = Some(offered.clone()),
            }
        }
        let parts: Option<Vec<_>> = parts.into_iter().collect();
        let Some(parts) = parts else {
            return self.refuse(want, "what it is verified with is missing");
        };
        match trust.prepare(want, parts) {
            Ok(_) => {
                let fresh = want.documents().iter();
                let fresh = fresh.filter(|d| !self.refused.contains_key(*d));
                self.good.extend(fresh.cloned());
            }
            Err(cause) => self.refuse(want, &cause),
        }
    }

    fn refuse(&mut self, want: &Want, cause: &str) {
        for document in want.documents() {
            let reason = || cause.to_owned();
            if self.offered.contains_key(document) {
                self.refused.entry(document.clone()).or_insert_with(reason);
            }
        }
    }

    async fn write(mut self, keeper: &Keeper) -> Result<Imported, BundleError> {
        let mut taken = Vec::new();
        for (document, held) in self.offered {
            if self.good.contains(&document) {
                self.refused.remove(&document);
                if !self.known.contains(&document) {
                    keeper.write(held).await?;
                    taken.push(document);
                }
            } else {
                self.refused
                    .entry(document)
                    .or_insert_with(|| "what it is verified with is missing".to_owned());
            }
        }
        Ok(Imported {
            made_at: self.made_at,
            taken,
            known: self.known.into_iter().collect(),
            refused: self.refused.into_iter().collect(),
        })
    }
}

fn ended(held: &Held) -> String {
    format!(
        "it holds from {} until {}",
        show(held.from),
        show(held.until)
    )
}

fn seal(contents: &Contents, key: &Path) -> Result<Vec<u8>, BundleError> {
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

fn open(text: &[u8], keys: &[PathBuf]) -> Result<Contents, BundleError> {
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
