//! The containers of a sandbox. The table is locked only to look something up or put it in: no lock
//! is held while the guest works, so the creation of one container holds up no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use tokio::sync::watch;

use crate::container::Container;
use crate::lock::lock;

/// Containers of one sandbox at a time.
const MAX_CONTAINERS: usize = 1024;

/// The containers of one sandbox.
#[derive(Debug, Default)]
pub struct Containers {
    table: Mutex<BTreeMap<String, Arc<Container>>>,
    usage: watch::Sender<Usage>,
}

/// Whether somebody uses the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Usage {
    /// Nobody has had a container in it.
    #[default]
    New,
    /// There are containers.
    Used,
    /// There were.
    Empty,
    /// It lives on without containers, until it is closed.
    Held,
    /// There will be no more.
    Closed,
}

/// How long a sandbox without containers waits for one.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the first.
    pub first: Duration,
    /// For the next, when the last is gone.
    pub next: Duration,
}

impl Containers {
    /// Adds one.
    ///
    /// # Errors
    /// The id is taken, or there are too many.
    pub fn insert(&self, container: Container) -> Result<Arc<Container>, GuestError> {
        let mut table = lock(&self.table);
        if *self.usage.borrow() == Usage::Closed {
            let text = "the sandbox is ending: ask for a new one";
            return Err(GuestError::new(
                ErrorCode::FailedPrecondition,
                "create",
                text,
            ));
        }
        if table.contains_key(&container.id) {
            let text = format!("container {} exists", container.id);
            return Err(GuestError::new(ErrorCode::AlreadyExists, "create", text));
        }
        if table.len() >= MAX_CONTAINERS {
            let text = format!("the sandbox has {MAX_CONTAINERS} containers already");
            return Err(GuestError::new(
                ErrorCode::ResourceExhausted,
                "create",
                text,
            ));
        }
        let container = Arc::new(container);
        table.insert(container.id.clone(), Arc::clone(&container));
        self.move_on(&[Usage::New, Usage::Empty], Usage::Used);
        Ok(container)
    }

    /// The container of this id.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, GuestError> {
        lock(&self.table).get(id).cloned().ok_or_else(|| {
            GuestError::new(
                ErrorCode::NotFound,
                "task",
                format!("there is no container {id}"),
            )
        })
    }

    /// Forgets one.
    pub fn remove(&self, id: &str) {
        let mut table = lock(&self.table);
        if table.remove(id).is_some() && table.is_empty() {
            self.move_on(&[Usage::Used], Usage::Empty);
        }
    }

    /// Lives on without containers, until it is closed.
    pub fn hold(&self) {
        self.move_on(&[Usage::New, Usage::Used, Usage::Empty], Usage::Held);
    }

    /// Takes no more, whatever is there.
    pub fn close(&self) {
        let _table = lock(&self.table);
        self.usage.send_replace(Usage::Closed);
    }

    fn move_on(&self, from: &[Usage], to: Usage) {
        self.usage
            .send_if_modified(|usage| from.contains(usage) && std::mem::replace(usage, to) != to);
    }

    /// Takes no more, if there is none and none may come: returns whether that is so.
    pub fn close_if_empty(&self) -> bool {
        let table = lock(&self.table);
        let closes = table.is_empty() && *self.usage.borrow() != Usage::Held;
        if closes {
            self.usage.send_replace(Usage::Closed);
        }
        closes
    }

    /// Waits until it is closed, and closes it when it has been without containers for too long.
    pub async fn closed(&self, patience: Patience) {
        let mut usage = self.usage.subscribe();
        loop {
            let seen = *usage.borrow_and_update();
            let wait = match seen {
                Usage::Closed => return,
                Usage::Used | Usage::Held => None,
                Usage::New => Some(patience.first),
                Usage::Empty => Some(patience.next),
            };
            let overdue = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is in this value, so there always is one.
                _ = usage.changed() => {}
                () = overdue => {
                    self.close_if_empty();
                }
            }
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.table).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::container;

    #[test]
    fn ids_are_taken_once_and_free_again() {
        let containers = Containers::default();
        containers.insert(container()).unwrap();
        assert_eq!(
            containers.insert(container()).unwrap_err().code,
            ErrorCode::AlreadyExists
        );
        containers.remove("c");
        assert!(containers.all().is_empty());
        assert_eq!(containers.get("c").unwrap_err().code, ErrorCode::NotFound);
    }

    const PATIENCE: Patience = Patience {
        first: Duration::from_secs(8),
        next: Duration::from_secs(3),
    };

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_closes_after_a_while_without_containers_and_never_with_one() {
        let containers = Containers::default();
        let began = tokio::time::Instant::now();
        let busy = async {
            tokio::time::sleep(PATIENCE.first / 2).await;
            containers.insert(container()).unwrap();
            tokio::time::sleep(PATIENCE.first * 9).await;
            containers.remove("c");
            // A container that comes in time, such as the next try of a pod.
            tokio::time::sleep(PATIENCE.next / 2).await;
            containers.insert(container()).unwrap();
            tokio::time::sleep(PATIENCE.next * 9).await;
            containers.remove("c");
            began.elapsed()
        };
        let ((), emptied) = tokio::join!(containers.closed(PATIENCE), busy);
        assert_eq!(began.elapsed(), emptied + PATIENCE.next);
        assert_eq!(
            containers.insert(container()).unwrap_err().code,
            ErrorCode::FailedPrecondition
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_nobody_used_closes_too() {
        let began = tokio::time::Instant::now();
        Containers::default().closed(PATIENCE).await;
        assert_eq!(began.elapsed(), PATIENCE.first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_is_closed_at_once_only_when_it_is_empty() {
        let containers = Containers::default();
        containers.insert(container()).unwrap();
        assert!(!containers.close_if_empty());
        containers.remove("c");
        assert!(containers.close_if_empty());
        let began = tokio::time::Instant::now();
        containers.closed(PATIENCE).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_is_held_ends_when_it_is_closed_and_not_before() {
        let containers = Containers::default();
        containers.hold();
        let busy = async {
            tokio::time::sleep(PATIENCE.first * 9).await;
            containers.insert(container()).unwrap();
            containers.remove("c");
            assert!(!containers.close_if_empty());
            tokio::time::sleep(PATIENCE.next * 9).await;
            containers.insert(container()).unwrap();
            containers.close();
        };
        let began = tokio::time::Instant::now();
        tokio::join!(containers.closed(PATIENCE), busy);
        assert_eq!(began.elapsed(), PATIENCE.first * 9 + PATIENCE.next * 9);
        containers.remove("c");
        assert!(containers.insert(container()).is_err(), "closed is closed");
    }
}
