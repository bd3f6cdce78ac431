//! Secrets that are lent: asked for again before their lease ends, and taken away when it ends or is revoked.
//!
//! ```text
//! asked ──2/3 of the lease──► asked again ─┬─ given: the file is replaced where it changed; a new lease
//!                                ▲         ├─ refused: the file goes now ──┐
//!                                │         └─ no answer: again, and at the lease's end the file goes
//!                                └───────────── soon ◄─────────────────────┘
//! ```
//!
//! A lease is from when the secret was asked for, whenever it is seen: what a host delays is lost of it. Each file has
//! one [`Keeper`] and waits for no other; the keeper has the file open, and with the keeper what is in it goes,
//! whatever ends it. What was taken away comes back when the broker gives it again. The host's next set ends all this,
//! and begins its own.

use std::sync::Arc;
use std::time::Duration;

use agent_api::content::ContentFile;
use attestation_agent::{BrokerError, Hub, HubError, Secret};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::written::Written;
use super::{Slots, set};
use crate::sealed::fault;

/// The soonest and the latest next attempt after one that failed.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(60);
/// What stays of a lease in a file that was replaced, for programs that have begun to read it.
const GRACE: Duration = Duration::from_secs(10);

/// When a secret was asked for, and for how long it was given.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    asked: Instant,
    lease: Duration,
}

/// A secret as the owner's side gives it.
#[expect(missing_debug_implementations, reason = "holds a secret")]
pub struct Given {
    /// In the clear.
    pub secret: Secret,
    /// None where it is not lent, but for good.
    pub term: Option<Term>,
}

/// A file whose secret is lent.
pub struct Loan {
    /// The file, without what is in it.
    pub file: ContentFile,
    /// The sealed secret.
    pub sealed: String,
    /// The secret.
    pub secret: Secret,
    /// For how long.
    pub term: Term,
}

/// The loans of a set that is seen now.
#[derive(Debug, Default)]
#[must_use = "what nobody keeps is emptied"]
pub struct Lending(pub(super) Vec<Keeper>);

/// Looks after one lent file.
pub(super) struct Keeper {
    slot: String,
    /// Which of the slot's sets.
    set: u64,
    /// Ends with it.
    is_seen: watch::Receiver<()>,
    file: ContentFile,
    sealed: String,
    term: Term,
    /// None while it is not there.
    written: Option<Written>,
    /// Whether it was to go, and has not gone entirely.
    is_leaving: bool,
    /// When there is something to do.
    due: Instant,
}

/// Who gives sealed secrets.
pub trait Lender: Send + Sync + 'static {
    /// Opens a sealed secret for the file `path`.
    fn give(
        &self,
        sealed: &str,
        path: &str,
    ) -> impl Future<Output = Result<Given, HubError>> + Send;
}

impl Lender for Hub {
    async fn give(&self, sealed: &str, path: &str) -> Result<Given, HubError> {
        let payload = self.examine(sealed).await?;
        let asked = Instant::now();
        let opened = self.open(payload, Some(path)).await?;
        Ok(Given {
            secret: opened.secret,
            term: opened.lease.map(|lease| Term::new(asked, lease)),
        })
    }
}

impl Term {
    /// Of a secret that was asked for then.
    #[must_use]
    pub fn new(asked: Instant, lease: Duration) -> Self {
        Self { asked, lease }
    }

    /// When to ask again.
    fn due(self) -> Instant {
        self.asked + self.lease * 2 / 3
    }

    fn ends(self) -> Instant {
        self.asked + self.lease
    }

    pub(super) fn is_over(self) -> bool {
        Instant::now() >= self.ends()
    }

    fn pause(self) -> Duration {
        (self.lease / 12).clamp(SOONEST, LATEST)
    }
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Loan");
        debug.field("path", &self.file.path).finish_non_exhaustive()
    }
}

impl Loan {
    /// What it takes of the guest's memory, in bytes.
    pub(super) fn held(&self) -> usize {
        set::held(&self.file.path, self.secret.expose().len())
    }
}

impl Lending {
    /// Looks after all of it for as long as the set is seen.
    pub fn keep<L: Lender>(self, slots: &Arc<Slots>, lender: &Arc<L>) {
        for keeper in self.0 {
            tokio::spawn(keeper.keep(Arc::clone(slots), Arc::clone(lender)));
        }
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Keeper");
        debug.field("path", &self.file.path).finish_non_exhaustive()
    }
}

impl Keeper {
    pub(super) fn new(
        slot: &str,
        set: u64,
        is_seen: watch::Receiver<()>,
        loan: Loan,
        written: Option<Written>,
    ) -> Self {
        Self {
            slot: slot.to_owned(),
            set,
            is_seen,
            file: loan.file,
            sealed: loan.sealed,
            term: loan.term,
            written,
            is_leaving: false,
            due: loan.term.due(),
        }
    }

    async fn keep<L: Lender>(mut self, slots: Arc<Slots>, lender: Arc<L>) {
        let mut is_seen = self.is_seen.clone();
        tokio::select! {
            biased;
            _ = is_seen.changed() => {}
            () = self.serve(&slots, &*lender) => {}
        }
        if let Some(written) = self.written.take() {
            fade(written, self.term).await;
        }
    }

    async fn serve(&mut self, slots: &Slots, lender: &impl Lender) {
        loop {
            sleep_until(self.due).await;
            if !self.is_leaving {
                self.ask(slots, lender).await;
            }
            if self.is_leaving {
                self.withdraw(slots);
            }
        }
    }

    /// Asks again, and shows what is given.
    async fn ask(&mut self, slots: &Slots, lender: &impl Lender) {
        let path = self.file.path.clone();
        // The file does not stay for an answer that is late.
        let latest = match self.written {
            Some(_) => self.term.ends(),
            None => Instant::now() + LATEST,
        };
        let asked = lender.give(&self.sealed, &path);
        match timeout_at(latest, asked).await {
            Ok(Ok(given)) if self.take(slots, &given) => return,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                let is_final = is_final(&error);
                let error = fault(&format!("file {path}"), &error);
                tracing::warn!(%error, is_final, "a lease was not renewed");
                self.is_leaving = is_final;
            }
            Err(_) => tracing::warn!(path, "a lease was not renewed: there was no answer"),
        }
        self.due = Instant::now() + self.term.pause();
        if self.written.is_some() {
            self.due = self.due.min(self.term.ends());
        }
        // Whatever the cause is, nothing stays longer. What is not there need not go.
        self.is_leaving = self.written.is_some() && (self.is_leaving || self.term.is_over());
    }

    /// Says whether it begins a new lease.
    fn take(&mut self, slots: &Slots, given: &Given) -> bool {
        let path = &self.file.path;
        let Some(term) = given.term.filter(|term| !term.is_over()) else {
            tracing::warn!(path, "a secret came when its lease had ended");
            return false;
        };
        let is_there = |written: &Written| written.holds(&given.secret);
        if !self.written.as_ref().is_some_and(is_there) {
            let set = (self.slot.as_str(), self.set);
            let written = match slots.replace(set, &self.file, &given.secret) {
                Ok(written) => written,
                Err(error) => {
                    tracing::warn!(path, %error, "a lent secret was not replaced");
                    return false;
                }
            };
            let before = std::mem::replace(&mut self.written, written);
            if let Some(before) = before {
                tokio::spawn(fade(before, self.term));
            }
        }
        (self.term, self.due) = (term, term.due());
        true
    }

    /// Takes the file away, its name and what is in it, each whether or not the other goes.
    fn withdraw(&mut self, slots: &Slots) {
        let path = &self.file.path;
        let struck = slots.withdraw((&self.slot, self.set), path);
        let emptied = self.written.as_ref().map_or(Ok(()), Written::empty);
        self.due = Instant::now() + self.term.pause();
        match (struck, emptied) {
            (Ok(()), Ok(())) => {
                tracing::warn!(path, "a secret is not lent any more");
                (self.written, self.is_leaving) = (None, false);
            }
            (Err(error), _) => tracing::warn!(path, %error, "a lent file is not gone yet"),
            (_, Err(error)) => tracing::warn!(path, %error, "a lent file is not empty yet"),
        }
    }
}

/// Empties a file that was replaced.
async fn fade(written: Written, term: Term) {
    sleep_until(term.ends().min(Instant::now() + GRACE)).await;
    drop(written);
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

#[cfg(test)]
mod tests;
