//! Policies that are compiled, a bounded number of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Policies that stay compiled.
const COMPILED: usize = 64;

/// Compiled policies by id and version.
pub(super) struct Compiled<T>(Mutex<BTreeMap<String, (i64, Arc<T>)>>);

impl<T> Default for Compiled<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Compiled<T> {
    pub(super) fn get(&self, id: &str, version: i64) -> Option<Arc<T>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, policy) = all.get(id)?;
        (*found == version).then(|| Arc::clone(policy))
    }

    pub(super) fn put(&self, id: &str, version: i64, policy: Arc<T>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= COMPILED && !all.contains_key(id) {
            all.pop_first();
        }
        all.insert(id.to_owned(), (version, policy));
    }
}
