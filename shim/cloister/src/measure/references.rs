//! Reference values of one document: each name once, with the values of all launches.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use policies::corim::Draft;
use serde_json::{Map, Value};

/// The features of a TD, which are no digest.
const XFAM: &str = "xfam";

/// What a broker is told to expect.
#[derive(Debug, Default)]
pub(super) struct References {
    digests: BTreeMap<&'static str, BTreeSet<[u8; 48]>>,
    xfam: BTreeSet<[u8; 8]>,
}

impl References {
    /// Adds a digest that is good under this name.
    pub(super) fn digest(&mut self, name: &'static str, digest: [u8; 48]) {
        self.digests.entry(name).or_default().insert(digest);
    }

    /// Adds features that are good.
    pub(super) fn xfam(&mut self, xfam: [u8; 8]) {
        self.xfam.insert(xfam);
    }

    /// As the JSON map that a broker takes.
    pub(super) fn json(&self) -> Value {
        let mut values: Map<String, Value> = self
            .digests
            .iter()
            .map(|(name, digests)| {
                (
                    (*name).to_owned(),
                    digests.iter().map(hex::encode).collect(),
                )
            })
            .collect();
        if !self.xfam.is_empty() {
            let xfam = self.xfam.iter().map(hex::encode).collect();
            values.insert(XFAM.to_owned(), xfam);
        }
        Value::Object(values)
    }

    /// As a CoRIM, in which bytes that are no digest are one value.
    pub(super) fn draft(&self, id: &str) -> anyhow::Result<Draft> {
        ensure!(
            self.xfam.len() <= 1,
            "the launches have different xfam, of which a CoRIM has one: use --format json"
        );
        let digests = self.digests.iter();
        let draft = digests.fold(Draft::new(id), |draft, (name, digests)| {
            draft.digests(name, digests)
        });
        Ok(self
            .xfam
            .iter()
            .fold(draft, |draft, xfam| draft.raw(XFAM, xfam)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_several_launches_are_there_once_each_and_one_corim_has_one_xfam() {
        let mut all = References::default();
        for byte in [2, 1, 2] {
            all.digest("rtmr_0", [byte; 48]);
        }
        all.xfam([1; 8]);
        let digest = |byte| hex::encode([byte; 48]);
        let values = json!({ "rtmr_0": [digest(1), digest(2)], "xfam": ["01".repeat(8)] });
        assert_eq!(all.json(), values);
        assert!(all.draft("id").is_ok());
        all.xfam([2; 8]);
        let said = all.draft("id").unwrap_err().to_string();
        assert!(said.contains("--format json"), "{said}");
    }
}
