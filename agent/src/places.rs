//! What is shared under a name (a mount point, a disk's address), each with a lock of its own: who waits for a
//! slow disk keeps nobody waiting who wants another.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One place, empty or taken. Its lock may be held while the kernel works.
pub type Place<V> = Arc<tokio::sync::Mutex<Option<V>>>;

/// Places by name.
#[derive(Debug)]
pub struct Places<K, V> {
    table: Mutex<HashMap<K, Place<V>>>,
    max: usize,
}

impl<K: Eq + Hash + Clone, V> Places<K, V> {
    /// None yet, and so many at most.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            table: Mutex::default(),
            max,
        }
    }

    /// The place of a name, made where it is missing; none beyond the cap. Who asks calls [`Self::sweep`] when it
    /// is done with the place.
    pub fn place(&self, name: &K) -> Option<Place<V>> {
        let mut table = self.table();
        if let Some(place) = table.get(name) {
            return Some(Arc::clone(place));
        }
        if table.len() >= self.max {
            return None;
        }
        let place = Place::default();
        table.insert(name.clone(), Arc::clone(&place));
        Some(place)
    }

    /// The place of a name, if there is one.
    pub fn find(&self, name: &K) -> Option<Place<V>> {
        self.table().get(name).cloned()
    }

    /// Forgets a place that is empty and that nobody waits for.
    pub fn sweep(&self, name: &K) {
        let mut table = self.table();
        // Clones are made under the table's lock alone, so nobody else has one of a place that only the table has.
        let is_spare = table.get(name).is_some_and(|place| {
            Arc::strong_count(place) == 1 && place.try_lock().is_ok_and(|found| found.is_none())
        });
        if is_spare {
            table.remove(name);
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<K, Place<V>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_for_as_long_as_it_is_taken_or_waited_for() {
        let places = Places::<_, u8>::new(1);
        let place = places.place(&"a").unwrap();
        assert!(places.place(&"b").is_none(), "full");
        places.sweep(&"a");
        assert!(places.find(&"a").is_some(), "somebody has it");
        *place.blocking_lock() = Some(1);
        drop(place);
        places.sweep(&"a");
        let place = places.find(&"a").unwrap();
        *place.blocking_lock() = None;
        drop(place);
        places.sweep(&"a");
        assert!(places.find(&"a").is_none());
        assert!(places.place(&"b").is_some());
    }
}
