//! A bounded map: what was not used for longest makes room.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Entries in the order of their last use. The lock is held for a look and never across a wait.
pub(super) struct Shelf<K, V> {
    entries: Mutex<Entries<K, V>>,
    room: usize,
}

struct Entries<K, V> {
    map: HashMap<K, (V, u64)>,
    uses: u64,
}

impl<K: Eq + Hash + Clone, V: Clone> Shelf<K, V> {
    pub(super) fn new(room: usize) -> Self {
        let entries = Mutex::new(Entries {
            map: HashMap::new(),
            uses: 0,
        });
        Self { entries, room }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut entries = self.lock();
        entries.uses += 1;
        let uses = entries.uses;
        let (value, used) = entries.map.get_mut(key)?;
        *used = uses;
        Some(value.clone())
    }

    pub(super) fn insert(&self, key: K, value: V) {
        let mut entries = self.lock();
        entries.uses += 1;
        let uses = entries.uses;
        entries.map.insert(key, (value, uses));
        if entries.map.len() > self.room {
            let oldest = entries.map.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                entries.map.remove(&oldest);
            }
        }
    }

    pub(super) fn remove(&self, key: &K) {
        self.lock().map.remove(key);
    }

    pub(super) fn clear(&self) {
        self.lock().map.clear();
    }

    /// All entries, in no order; this is no use of them.
    pub(super) fn all(&self) -> Vec<(K, V)> {
        let entries = self.lock();
        let pair = |(key, (value, _)): (&K, &(V, u64))| (key.clone(), value.clone());
        entries.map.iter().map(pair).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries<K, V>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_that_was_not_used_for_longest_makes_room() {
        let shelf = Shelf::new(2);
        shelf.insert("a", 1);
        shelf.insert("b", 2);
        assert_eq!(shelf.get(&"a"), Some(1));
        shelf.insert("c", 3);
        assert_eq!(shelf.get(&"b"), None);
        assert_eq!(shelf.all().len(), 2);
        shelf.remove(&"a");
        assert_eq!(shelf.get(&"a"), None);
    }
}
