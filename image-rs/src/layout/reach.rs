//! What a layout's manifests lead to: every blob that must stay for them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Layout;
use crate::digest::Digest;
use crate::manifest::MANIFEST_BYTES_MAX;

/// Cap on the documents that are looked through.
const DOCUMENTS_MAX: usize = 4096;

/// All that is named by what these lead to, and they themselves; `None` when it cannot be told. What is not there names
/// nothing: a layout often has one image of an index only.
pub(super) fn from(mut documents: Vec<Digest>, layout: &Layout) -> Option<BTreeSet<Digest>> {
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
    while let Some(digest) = documents.pop() {
        found.insert(digest.clone());
        if !seen.insert(digest.clone()) {
            continue;
        }
        if seen.len() > DOCUMENTS_MAX {
            return None;
        }
        let Some(part) = layout.source.open(&super::blob_name(&digest)).ok()? else {
            continue;
        };
        let path = layout.source.path_of(&super::blob_name(&digest));
        let bytes = part.read_all(&path, MANIFEST_BYTES_MAX).ok()?;
        let document: Value = serde_json::from_slice(&bytes).ok()?;
        let list = |name: &str| document[name].as_array().into_iter().flatten();
        let named = list("layers")
            .chain(list("blobs"))
            .chain([&document["config"]]);
        found.extend(named.filter_map(digest_of));
        let deeper = list("manifests").chain([&document["subject"]]);
        documents.extend(deeper.filter_map(digest_of));
    }
    Some(found)
}

fn digest_of(descriptor: &Value) -> Option<Digest> {
    descriptor["digest"].as_str()?.parse().ok()
}
