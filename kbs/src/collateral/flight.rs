//! One piece of work for all who ask for the same thing at the same time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Work that is under way, by what it is for. It goes on when those who wait for it leave.
pub(super) struct Flights<K, V> {
    open: Mutex<HashMap<K, watch::Receiver<Option<V>>>>,
    most: usize,
}

/// Where the result of some work will be.
pub(super) struct Arrival<V>(watch::Receiver<Option<V>>);

impl<V: Clone> Arrival<V> {
    /// The result, or nothing where the work broke off.
    pub(super) async fn wait(mut self) -> Option<V> {
        let value = self.0.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(most: usize) -> Self {
        let open = Mutex::new(HashMap::new());
        Self { open, most }
    }

    /// Joins the work for `key`, or starts it. Nothing where too much is under way, unless the key is
    /// one of a few.
    pub(super) fn join<F>(
        self: &Arc<Self>,
        key: &K,
        is_one_of_few: bool,
        work: impl FnOnce() -> F,
    ) -> Option<Arrival<V>>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut open = self.lock();
        if let Some(arrival) = open.get(key) {
            return Some(Arrival(arrival.clone()));
        }
        if open.len() >= self.most && !is_one_of_few {
            return None;
        }
        let (tell, arrival) = watch::channel(None);
        open.insert(key.clone(), arrival.clone());
        let end = End {
            flights: Arc::clone(self),
            key: key.clone(),
        };
        let work = work();
        tokio::spawn(async move {
            let value = work.await;
            // Whoever comes from now on finds what the work left behind.
            drop(end);
            tell.send_replace(Some(value));
        });
        Some(Arrival(arrival))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, watch::Receiver<Option<V>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes work off the list, also where it breaks off.
struct End<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    flights: Arc<Flights<K, V>>,
    key: K,
}

impl<K, V> Drop for End<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn all_who_ask_at_once_get_the_result_of_one_work() {
        let flights = Arc::new(Flights::<u8, u32>::new(1));
        let (works, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let start = || {
            let (works, go) = (Arc::clone(&works), Arc::clone(&go));
            async move {
                go.notified().await;
                works.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let first = flights.join(&1, false, start).unwrap();
        let second = flights.join(&1, false, start).unwrap();
        assert!(flights.join(&2, false, start).is_none());
        assert!(flights.join(&3, true, || async { 0 }).is_some());
        go.notify_one();
        assert_eq!(first.wait().await, Some(1));
        assert_eq!(second.wait().await, Some(1));
        go.notify_one();
        assert_eq!(
            flights.join(&2, false, start).unwrap().wait().await,
            Some(2)
        );
    }

    #[tokio::test]
    async fn work_that_breaks_off_is_not_waited_for_and_can_be_started_anew() {
        let flights = Arc::new(Flights::<u8, u32>::new(1));
        let broken = flights.join(&1, false, || async { panic!("on purpose") });
        assert_eq!(broken.unwrap().wait().await, None);
        let again = flights.join(&1, false, || async { 7 });
        assert_eq!(again.unwrap().wait().await, Some(7));
    }
}
