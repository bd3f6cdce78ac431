//! Attempts with growing pauses, until one deadline over all of them. A broker that nobody can
//! connect to has less time: a listener that is restarted is back at once, and a wrong name or port
//! stays wrong, while the pod's user waits for the error.

use std::{io, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::{BrokerError, Step};

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// How long attempts go on that are answered by refused connections alone.
const REFUSED: Duration = Duration::from_millis(2500);

/// How much another attempt may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Not at all.
    Final,
    /// Within [`REFUSED`], or not at all.
    Short,
    /// Until the deadline.
    Whole,
}

/// A failure that tells how much another attempt may help.
pub(super) trait Transient: From<BrokerError> {
    fn patience(&self) -> Patience;
}

impl Transient for BrokerError {
    fn patience(&self) -> Patience {
        match self {
            Self::Unreachable { cause, .. } if is_refusal(cause) => Patience::Short,
            Self::Unreachable { .. } | Self::Unavailable { .. } => Patience::Whole,
            _ => Patience::Final,
        }
    }
}

/// Whether the way to the broker ended with a clear no: the connection was refused, the name is not
/// known. A time-out has had its own time, and who is busy may not be soon.
fn is_refusal(cause: &transport::Error) -> bool {
    use io::ErrorKind::{ResourceBusy, TimedOut};
    matches!(cause, transport::Error::Dial { kind, .. } if !matches!(kind, TimedOut | ResourceBusy))
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
        let mut refused_since = None;
        loop {
            let error = match timeout_at(self.at, attempt()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => return Err(last.unwrap_or_else(|| self.error(step).into())),
            };
            let end = match error.patience() {
                Patience::Final => return Err(error),
                Patience::Short => {
                    let since = *refused_since.get_or_insert_with(Instant::now);
                    self.at.min(since + REFUSED)
                }
                Patience::Whole => {
                    refused_since = None;
                    self.at
                }
            };
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            if Instant::now() + jittered >= end {
                return Err(error);
            }
            tracing::debug!(%step, pause_ms = jittered.as_millis(), "another attempt");
            last = Some(error);
            sleep(jittered).await;
            pause = (pause * 2).min(LONGEST);
        }
    }
}
