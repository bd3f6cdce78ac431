//! `index.json`: which image a tag leads to. It may be another tool's, so it is checked before anything is built on it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::LayoutError;
use crate::digest::Digest;
use crate::manifest::OCI_INDEX;

const TAG: &str = "org.opencontainers.image.ref.name";
const MANIFESTS: &str = "manifests";

/// The index; what we do not know of it stays as it was.
pub(super) struct Index {
    document: Map<String, Value>,
    entries: Vec<Value>,
}

impl Index {
    pub(super) fn empty() -> Self {
        let mut document = Map::new();
        document.insert("schemaVersion".to_owned(), 2.into());
        document.insert("mediaType".to_owned(), OCI_INDEX.into());
        Self {
            document,
            entries: Vec::new(),
        }
    }

    pub(super) fn read(bytes: &[u8], path: &Path) -> Result<Self, LayoutError> {
        let bad = |reason| LayoutError::Index {
            path: path.to_owned(),
            reason,
        };
        let document: Value = serde_json::from_slice(bytes).map_err(|_| bad("it is not JSON"))?;
        let Value::Object(mut document) = document else {
            return Err(bad("it is not a JSON object"));
        };
        let entries = match document.remove(MANIFESTS) {
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err(bad("its \"manifests\" are not an array")),
            None => return Err(bad("it has no \"manifests\"")),
        };
        if !entries.iter().all(Value::is_object) {
            return Err(bad("an entry of its \"manifests\" is not an object"));
        }
        Ok(Self { document, entries })
    }

    /// The entry under a tag; without one, the only entry.
    pub(super) fn find(&self, tag: Option<&str>) -> Option<&Value> {
        match tag {
            Some(_) => self.entries.iter().find(|entry| tag_of(entry) == tag),
            None if self.entries.len() == 1 => self.entries.first(),
            None => None,
        }
    }

    pub(super) fn tags(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(tag_of)
    }

    /// What its entries lead to, whatever it is.
    pub(super) fn digests(&self) -> Vec<Digest> {
        self.entries.iter().filter_map(digest_of).collect()
    }

    /// Lets a tag, or what has none, lead to a manifest; gives what it led to before.
    pub(super) fn put(
        &mut self,
        tag: Option<&str>,
        media_type: &str,
        digest: &Digest,
        size: usize,
    ) -> Vec<Digest> {
        let old = self.entries.extract_if(.., |entry| tag_of(entry) == tag);
        let old = old.filter_map(|entry| digest_of(&entry)).collect();
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": size});
        if let Some(tag) = tag {
            entry["annotations"] = json!({ TAG: tag });
        }
        self.entries.push(entry);
        old
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        let Self {
            mut document,
            entries,
        } = self;
        document.insert(MANIFESTS.to_owned(), entries.into());
        Value::from(document).to_string().into_bytes()
    }
}

fn tag_of(entry: &Value) -> Option<&str> {
    entry["annotations"][TAG].as_str()
}

fn digest_of(entry: &Value) -> Option<Digest> {
    entry["digest"].as_str()?.parse().ok()
}
