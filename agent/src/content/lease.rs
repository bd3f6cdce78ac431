//! Secrets that are lent: asked for again before their lease ends, and taken away when it ends or is revoked.
//!
//! ```text
//! opened ──2/3 of the lease──► asked again ─┬─ given: the file is replaced where it changed; a new lease
//!                                 ▲         ├─ refused: the file goes now ──┐
//!                                 │         └─ no answer: again, and at the lease's end the file goes
//!                                 └───────────── soon ◄─────────────────────┘
//! ```
//!
//! A set is replaced as a whole, as the host's own changes are. What was taken away comes back when the broker
//! gives it again. The host's next set ends all this, and begins its own.

use std::sync::Arc;
use std::time::Duration;

use attestation_agent::{BrokerError, Hub, HubError, Secret};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Slots;

/// The soonest and the latest next attempt after one that failed.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(60);

/// A file whose secret is lent.
pub struct Loan {
    /// Its path in the set.
    pub path: String,
    /// The sealed secret.
    pub sealed: String,
    /// How long it may stay without asking again.
    pub lease: Duration,
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Loan");
        debug.field("path", &self.path).finish_non_exhaustive()
    }
}

/// The loans of a set that is seen now.
#[derive(Debug)]
pub struct Lending {
    /// The slot's name.
    pub(super) slot: String,
    /// Which of its sets.
    pub(super) set: u64,
    /// The files.
    pub(super) loans: Vec<Loan>,
}

/// What becomes of a file: another content, or none.
pub(super) struct Change {
    pub(super) path: String,
    pub(super) secret: Option<Secret>,
}

/// A loan on its way.
struct Held {
    loan: Loan,
    /// When it is asked for again.
    due: Instant,
    /// When its lease ends; none when it was taken away.
    ends: Option<Instant>,
}

/// Looks after the loans of a set for as long as it is seen.
pub async fn keep(slots: Arc<Slots>, hub: Arc<Hub>, lending: Lending) {
    let now = Instant::now();
    let begin = |loan: Loan| Held {
        due: now + loan.lease * 2 / 3,
        ends: Some(now + loan.lease),
        loan,
    };
    let mut held: Vec<Held> = lending.loans.into_iter().map(begin).collect();
    while let Some(next) = held.iter().map(|one| one.due).min() {
        sleep_until(next).await;
        let mut changes = Vec::new();
        for one in held.iter_mut().filter(|one| one.due <= Instant::now()) {
            changes.extend(one.ask(&hub).await);
        }
        if !slots.renew(&lending.slot, lending.set, &changes) {
            return;
        }
    }
}

impl Held {
    /// Asks again, and says what becomes of the file, where something does.
    async fn ask(&mut self, hub: &Hub) -> Option<Change> {
        let asked = hub.unseal(&self.loan.sealed, Some(&self.loan.path));
        // The file does not stay for an answer that is late.
        let ends = self.ends.unwrap_or_else(|| Instant::now() + LATEST);
        let answer = timeout_at(ends, asked).await;
        let now = Instant::now();
        let path = self.loan.path.clone();
        match answer {
            Ok(Ok(opened)) => {
                self.loan.lease = opened.lease.unwrap_or(self.loan.lease);
                self.due = now + self.loan.lease * 2 / 3;
                self.ends = Some(now + self.loan.lease);
                return Some(Change {
                    path,
                    secret: Some(opened.secret),
                });
            }
            Ok(Err(error)) if !is_final(&error) && self.ends.is_some_and(|ends| now < ends) => {
                tracing::warn!(path, %error, "a lease was not renewed yet");
                self.due = (now + self.pause()).min(ends);
                return None;
            }
            Ok(Err(error)) => tracing::warn!(path, %error, "a secret is not lent any more"),
            Err(_) => tracing::warn!(path, "a lease ended without an answer"),
        }
        self.due = now + self.pause();
        let gone = Change { path, secret: None };
        self.ends.take().map(|_| gone)
    }

    fn pause(&self) -> Duration {
        (self.loan.lease / 12).clamp(SOONEST, LATEST)
    }
}

/// Whether the owner's side said no, and not only nothing.
fn is_final(error: &HubError) -> bool {
    match error.broker() {
        Some(
            BrokerError::Denied { .. }
            | BrokerError::NotFound { .. }
            | BrokerError::Rejected { .. },
        ) => true,
        Some(_) => false,
        None => true,
    }
}
