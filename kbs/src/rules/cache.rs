//! Policies that are compiled, a bounded number of them. One that does not compile is remembered as
//! such, so that it is parsed once and not for each request.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use policies::PolicyError;

/// Policies that stay compiled.
const COMPILED: usize = 64;

/// What compiling gave, shared by all that ask.
pub(super) type Compilation<T> = Result<Arc<T>, Arc<PolicyError>>;

/// Compiled policies by id, each in one version.
pub(super) struct Compiled<T>(Mutex<BTreeMap<String, (i64, Compilation<T>)>>);

impl<T> Default for Compiled<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Compiled<T> {
    /// What compiling this version gave, where it was compiled already.
    pub(super) fn known(&self, id: &str, version: i64) -> Option<Compilation<T>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, policy) = all.get(id)?;
        (*found == version).then(|| policy.clone())
    }

    /// The same, made by `compile` where it was not.
    pub(super) fn get(
        &self,
        id: &str,
        version: i64,
        compile: impl FnOnce() -> Result<T, PolicyError>,
    ) -> Compilation<T> {
        if let Some(known) = self.known(id, version) {
            return known;
        }
        let made = compile().map(Arc::new).map_err(Arc::new);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= COMPILED && !all.contains_key(id) {
            all.pop_first();
        }
        all.insert(id.to_owned(), (version, made.clone()));
        made
    }
}
