//! A guest that answers no more and that nobody stops: found by asking it now and then, and ended with its reason, so
//! that whoever watches the pod is told and starts another.
//!
//! ```text
//! every INTERVAL ─► Health.Check ─► answered ───────────────► silence = 0
//!                                   └─ not in INTERVAL ─► paused? ─ yes ─► silence stays
//!                                                          └─ no ─► silence += INTERVAL ─ ≥ limit ─► ended
//! ```
//!
//! Time counts only while the VM runs: neither while it is paused over the control socket, nor while its process is
//! stopped, nor while the host sleeps. An emulated guest on a busy host takes seconds to answer; the limit is
//! minutes.

use std::future::Future;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use hypervisor::Pulse;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use crate::guest::Guest;

/// How often a guest is asked, and how long it may take to answer one question.
const INTERVAL: Duration = Duration::from_secs(30);

/// Watches over one guest, for as long as it is there.
#[derive(Debug)]
pub(super) struct Health {
    task: JoinHandle<()>,
    stuck: oneshot::Receiver<GuestError>,
}

impl Health {
    /// Begins; a limit of zero is none.
    pub(super) fn watch(guest: Guest, pulse: Pulse, limit: Duration) -> Self {
        let (tell, stuck) = oneshot::channel();
        let task = tokio::spawn(async move {
            if limit.is_zero() {
                // Nobody is ever told.
                return std::future::pending().await;
            }
            let answers = || async { guest.check().await.is_ok() };
            silent(answers, || pulse.is_paused(), limit).await;
            let _ = tell.send(error(limit));
        });
        Self { task, stuck }
    }

    /// Waits until the guest is stuck. Cancel-safe.
    pub(super) async fn stuck(&mut self) -> GuestError {
        match (&mut self.stuck).await {
            Ok(error) => error,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn error(limit: Duration) -> GuestError {
    let text = format!(
        "the guest is stuck: its agent has not answered for {} s (cloister.health_timeout)",
        limit.as_secs()
    );
    GuestError::new(ErrorCode::AgentUnreachable, "agent", text)
}

/// Waits until a guest that runs has not answered for so long.
async fn silent<A, P>(answers: impl Fn() -> A, is_paused: impl Fn() -> P, limit: Duration)
where
    A: Future<Output = bool>,
    P: Future<Output = bool>,
{
    let mut silence = Duration::ZERO;
    while silence < limit {
        let next = Instant::now() + INTERVAL;
        let has_answered = timeout(INTERVAL, answers()).await == Ok(true);
        sleep_until(next).await;
        if has_answered {
            silence = Duration::ZERO;
        } else if !is_paused().await {
            silence += INTERVAL;
            warn!(seconds = silence.as_secs(), "the guest does not answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    async fn never() -> bool {
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_never_answers_is_stuck_after_the_limit_and_not_before() {
        let began = Instant::now();
        silent(never, || async { false }, LIMIT).await;
        assert_eq!(began.elapsed(), LIMIT);
        assert!(error(LIMIT).message.contains("300 s"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_slow_or_paused_is_not() {
        let asked = AtomicU32::new(0);
        // Nine questions of ten take longer than they may.
        let slow = || async {
            if asked.fetch_add(1, Ordering::Relaxed) % 10 == 9 {
                return true;
            }
            never().await
        };
        let hours = Duration::from_secs(36_000);
        let watched = silent(slow, || async { false }, LIMIT);
        assert!(timeout(hours, watched).await.is_err());
        let watched = silent(never, || async { true }, LIMIT);
        assert!(timeout(hours, watched).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_it_was_paused_is_no_silence() {
        let looks = AtomicU32::new(0);
        let paused_at_first = || async { looks.fetch_add(1, Ordering::Relaxed) < 100 };
        let began = Instant::now();
        silent(never, paused_at_first, LIMIT).await;
        assert_eq!(began.elapsed(), LIMIT + INTERVAL * 100);
    }
}
