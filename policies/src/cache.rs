//! Compiled policies of many scopes, within a bound.
//!
//! A store may hold a thousand policies, of which few are asked at a time, and a compiled one costs
//! many times its text. The least recently used goes first. A policy that does not compile is
//! remembered too, so that a broken one costs its parsing once for each version and not for each request.

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use crate::engine::PolicyError;

/// What compiling gave, shared by all that ask.
pub type Compilation<T> = Result<Arc<T>, Arc<PolicyError>>;

/// At most so many compiled policies, by id and version.
pub struct Compiled<T> {
    capacity: NonZeroUsize,
    slots: Mutex<Slots<T>>,
}

struct Slots<T> {
    by_key: HashMap<Key, Slot<T>>,
    /// Counts uses; the smallest number is the least recent one.
    now: u64,
}

type Key = (String, i64);

struct Slot<T> {
    used: u64,
    cell: Arc<OnceLock<Compilation<T>>>,
}

impl<T> fmt::Debug for Compiled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled")
            .field("capacity", &self.capacity)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl<T> Compiled<T> {
    /// Room for so many policies.
    #[must_use]
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self {
            capacity,
            slots: Mutex::new(Slots {
                by_key: HashMap::new(),
                now: 0,
            }),
        }
    }

    /// What compiling the policy `id` in its `version` gave, where that is here already: for a caller
    /// who would have to fetch the text first.
    #[must_use]
    pub fn known(&self, id: &str, version: i64) -> Option<Compilation<T>> {
        let mut slots = self.lock();
        slots.now += 1;
        let now = slots.now;
        let slot = slots.by_key.get_mut(&(id.to_owned(), version))?;
        slot.used = now;
        slot.cell.get().cloned()
    }

    /// The policy `id` in its `version`, which `compile` makes where it is not here yet. Who asks for the
    /// same meanwhile waits for that one compilation; who asks for another does not.
    ///
    /// # Errors
    /// What `compile` said, now or when it was asked for this version before.
    pub fn get(
        &self,
        id: &str,
        version: i64,
        compile: impl FnOnce() -> Result<T, PolicyError>,
    ) -> Compilation<T> {
        let cell = self.cell(id, version);
        cell.get_or_init(|| compile().map(Arc::new).map_err(Arc::new))
            .clone()
    }

    /// How many are here, those that did not compile included.
    fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    fn cell(&self, id: &str, version: i64) -> Arc<OnceLock<Compilation<T>>> {
        let mut slots = self.lock();
        slots.now += 1;
        let now = slots.now;
        let key = (id.to_owned(), version);
        if let Some(slot) = slots.by_key.get_mut(&key) {
            slot.used = now;
            return Arc::clone(&slot.cell);
        }
        if slots.by_key.len() >= self.capacity.get() {
            let oldest = slots.by_key.iter().min_by_key(|(_, slot)| slot.used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                slots.by_key.remove(&oldest);
            }
        }
        let cell = Arc::new(OnceLock::new());
        let slot = Slot {
            used: now,
            cell: Arc::clone(&cell),
        };
        slots.by_key.insert(key, slot);
        cell
    }

    /// A panic in another thread leaves the map whole: nothing is compiled under the lock.
    fn lock(&self) -> std::sync::MutexGuard<'_, Slots<T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    fn cache(capacity: usize) -> Compiled<usize> {
        Compiled::new(NonZeroUsize::new(capacity).unwrap())
    }

    /// Gets, and says whether it was compiled for this.
    fn compiled(cache: &Compiled<usize>, id: &str, version: i64) -> bool {
        let mut fresh = false;
        let value = cache.get(id, version, || {
            fresh = true;
            Ok(7)
        });
        assert_eq!(*value.unwrap(), 7);
        fresh
    }

    #[test]
    fn a_version_is_compiled_once_and_another_for_itself() {
        let cache = cache(4);
        assert!(cache.known("a", 1).is_none());
        assert!(compiled(&cache, "a", 1));
        assert!(!compiled(&cache, "a", 1));
        assert!(cache.known("a", 1).is_some() && cache.known("a", 2).is_none());
        assert!(compiled(&cache, "a", 2));
        assert!(!compiled(&cache, "a", 1));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_holds() {
        let cache = cache(3);
        for id in ["a", "b", "c", "a", "d"] {
            compiled(&cache, id, 1);
        }
        assert_eq!(cache.len(), 3);
        for id in ["a", "c", "d"] {
            assert!(!compiled(&cache, id, 1), "{id}");
        }
        assert!(compiled(&cache, "b", 1));
        for version in 0..100 {
            compiled(&cache, "x", version);
            assert!(cache.len() <= 3);
        }
    }

    #[test]
    fn a_broken_version_is_parsed_once_and_a_new_one_may_be_whole() {
        let cache = cache(2);
        let tries = AtomicUsize::new(0);
        for _ in 0..3 {
            let error = cache.get("a", 1, || {
                tries.fetch_add(1, Ordering::Relaxed);
                Err(PolicyError::Nested)
            });
            assert!(matches!(*error.unwrap_err(), PolicyError::Nested));
        }
        assert_eq!(tries.into_inner(), 1);
        assert!(compiled(&cache, "a", 2));
    }

    #[test]
    fn many_threads_compile_one_version_once() {
        let cache = cache(2);
        let tries = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let value = cache.get("a", 1, || {
                        tries.fetch_add(1, Ordering::Relaxed);
                        Ok(1)
                    });
                    assert_eq!(*value.unwrap(), 1);
                });
            }
        });
        assert_eq!(tries.into_inner(), 1);
    }
}
