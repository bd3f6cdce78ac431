//! Documents of a development root: handed over, never fetched from a vendor.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use evidence::snp::Product;
use serde::{Deserialize, Deserializer, de::Error};
use verifier::{
    Failure,
    snp::{self, Crl},
    tdx::{self, TdxFailure},
};

use super::{CollateralError, proof::Digest, shelf::Shelf};

/// Bytes of the file.
pub const DEVELOPMENT_BYTES: usize = 16 << 20;
/// Documents of one kind in it.
const DOCUMENTS: usize = 64;
/// Lists of products, by root.
const LISTS: usize = 16;

/// What a development root signed: `{"crls": [base64 of DER, ..], "tdx": [parts, ..]}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Development {
    /// Lists of revoked certificates for [`evidence::Tee::SimSnp`].
    #[serde(default, deserialize_with = "lists")]
    pub crls: Vec<Vec<u8>>,
    /// Collateral for [`evidence::Tee::SimTdx`], a set for each platform.
    #[serde(default)]
    pub tdx: Vec<tdx::Parts>,
}

impl Development {
    /// Reads it from JSON.
    ///
    /// # Errors
    /// When it is too long, or has another form.
    pub fn parse(text: &[u8]) -> Result<Self, CollateralError> {
        let refuse = |cause: String| CollateralError::Config(format!("development: {cause}"));
        if text.len() > DEVELOPMENT_BYTES {
            return Err(refuse(format!("more than {DEVELOPMENT_BYTES} bytes")));
        }
        let parsed: Self = serde_json::from_slice(text).map_err(|e| refuse(e.to_string()))?;
        if parsed.crls.len().max(parsed.tdx.len()) > DOCUMENTS {
            return Err(refuse(format!(
                "more than {DOCUMENTS} documents of one kind"
            )));
        }
        Ok(parsed)
    }
}

fn lists<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let lists = texts.iter().map(|text| BASE64_STANDARD.decode(text));
    lists.collect::<Result<_, _>>().map_err(D::Error::custom)
}

/// Handed documents, and what was verified of them.
pub(super) struct Handed {
    documents: Development,
    crls: Shelf<(Digest, Product), Arc<[Crl]>>,
    tdx: Shelf<Digest, Arc<[Arc<tdx::Collateral>]>>,
}

impl Handed {
    pub(super) fn new(documents: Development) -> Self {
        Self {
            documents,
            crls: Shelf::new(LISTS),
            tdx: Shelf::new(LISTS),
        }
    }

    /// What the root signed for platforms of a kind; nothing where none of it is for them.
    pub(super) fn tdx(
        &self,
        roots: &tdx::Roots,
        needs: &tdx::Needs,
    ) -> Option<Result<Arc<tdx::Collateral>, CollateralError>> {
        let all = match self.prepared(roots) {
            Ok(all) => all,
            Err(failure) => return Some(Err(Failure::from(failure).into())),
        };
        let found = all.iter().find(|set| set.needs() == *needs);
        found.map(|set| Ok(Arc::clone(set)))
    }

    fn prepared(&self, roots: &tdx::Roots) -> Result<Arc<[Arc<tdx::Collateral>]>, TdxFailure> {
        if let Some(all) = self.tdx.get(roots.digest()) {
            return Ok(all);
        }
        let sets = self.documents.tdx.iter().cloned();
        let sets = sets.map(|parts| tdx::Collateral::prepare(roots, parts).map(Arc::new));
        let all: Arc<[_]> = sets.collect::<Result<_, _>>()?;
        self.tdx.insert(*roots.digest(), Arc::clone(&all));
        Ok(all)
    }

    /// The lists that the root signed for a product; nothing where none were handed over.
    pub(super) fn crls(
        &self,
        roots: &snp::Roots,
        product: Product,
    ) -> Option<Result<Arc<[Crl]>, CollateralError>> {
        if self.documents.crls.is_empty() {
            return None;
        }
        let key = (*roots.digest(), product);
        if let Some(crls) = self.crls.get(&key) {
            return Some(Ok(crls));
        }
        let lists = self.documents.crls.iter();
        let crls: Result<Vec<_>, _> = lists
            .map(|list| Crl::prepare(roots, product, list))
            .collect();
        Some(match crls {
            Ok(crls) => {
                let crls: Arc<[Crl]> = crls.into();
                self.crls.insert(key, Arc::clone(&crls));
                Ok(crls)
            }
            Err(failure) => Err(failure.into()),
        })
    }
}
