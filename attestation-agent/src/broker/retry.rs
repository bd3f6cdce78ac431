//! Attempts with growing pauses, until one deadline over all of them.

use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::{BrokerError, Step};

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// A failure that tells whether another attempt may help.
pub(super) trait Transient: From<BrokerError> {
    fn is_transient(&self) -> bool;
}

impl Transient for BrokerError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unavailable { .. })
    }
}

/// The end of all attempts.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    after: Duration,
}

impl Deadline {
    pub(super) fn after(after: Duration) -> Self {
        Self {
            at: Instant::now() + after,
            after,
        }
    }

    pub(super) fn error(self, step: Step) -> BrokerError {
        BrokerError::Deadline {
            step,
            after: self.after,
        }
    }

    /// Tries until it works, fails for good, or the deadline is there; then the error is the last
    /// attempt's, which says more than the deadline does.
    pub(super) async fn retry<T, E: Transient, F: Future<Output = Result<T, E>>>(
        self,
        step: Step,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, E> {
        let mut pause = FIRST;
        let mut last = None;
        loop {
            let error = match timeout_at(self.at, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => return Err(last.unwrap_or_else(|| self.error(step).into())),
            };
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            if !error.is_transient() || Instant::now() + jittered >= self.at {
                return Err(error);
            }
            tracing::debug!(%step, pause_ms = jittered.as_millis(), "another attempt");
            last = Some(error);
            sleep(jittered).await;
            pause = (pause * 2).min(LONGEST);
        }
    }
}
