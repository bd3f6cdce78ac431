//! Renews the token before anybody has to wait for it.
//!
//! Requests go on with the token that is there; the new one takes its place when it has come. A token that nobody used
//! is left to end, so that a pod which needs no more secrets attests no more. A renewal that fails changes nothing:
//! who asks next attests, and is told why that fails.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Attestation, Broker, State};
use crate::broker::retry::Deadline;

impl Broker {
    /// Keeps the token fresh for as long as the broker is there and in use. To be spawned once.
    pub fn keep_fresh(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        keep_fresh(Arc::downgrade(self), self.renewal.subscribe())
    }

    async fn renew(&self) {
        let Some(before) = self.current().await else {
            return;
        };
        let started = Instant::now();
        let outcome = self.handshake(Deadline::after(self.deadline), None).await;
        let took = started.elapsed();
        let mut state = self.state.lock().await;
        if state.current() != Some(before) {
            return;
        }
        match outcome {
            Ok((attested, _)) => {
                let number = self.ended.load(Ordering::Acquire) + 1;
                self.ended.store(number, Ordering::Release);
                self.install(&mut state, attested, Attestation { number, took });
            }
            Err(error) => tracing::warn!(%error, "the token was not renewed ahead of time"),
        }
    }

    async fn current(&self) -> Option<(u64, u64)> {
        self.state.lock().await.current()
    }
}

impl State {
    /// Which token of which guest.
    fn current(&self) -> Option<(u64, u64)> {
        let session = self.session.as_ref()?;
        Some((session.attestation.number, self.changes))
    }
}

async fn keep_fresh(broker: Weak<Broker>, mut due: watch::Receiver<Option<Instant>>) {
    loop {
        let at = *due.borrow_and_update();
        if let Some(at) = at {
            tokio::select! {
                changed = due.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = sleep_until(at) => {}
            }
            let Some(broker) = broker.upgrade() else {
                return;
            };
            if broker.used.swap(false, Ordering::Relaxed) {
                broker.renew().await;
                // A new one has a time of its own; one that did not come is for who asks next.
                if due.has_changed().unwrap_or(false) {
                    continue;
                }
            }
        }
        if due.changed().await.is_err() {
            return;
        }
    }
}
