//! What the record forgets, once a minute: entries that are older than `[record] days`, and minor ones (see
//! [`Forget`]) beyond `[record] rows`.
//!
//! Age goes by the clock of this machine, and a clock that was set wrong by years would end the whole
//! record. So after a leap of the clock nothing is removed for its age until a day has passed, which is
//! time to set it right. The store has the time that was believed last, so that a broker that is started
//! anew under a wrong clock does not take it for the right one.

use std::time::{Duration, Instant, SystemTime};

use crate::{
    broker::Broker,
    config,
    session::seconds,
    store::{Forget, Store, StoreError},
    upkeep::every,
};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
const DAY_MILLIS: i64 = 24 * 3600 * 1000;
/// How far the clock may go ahead of the time that passed.
const LEAP_MILLIS: i64 = DAY_MILLIS;

pub(crate) async fn run(broker: &Broker) {
    let mut rounds = every(ROUND);
    let mut calendar = Calendar::default();
    loop {
        rounds.tick().await;
        let now = i64::try_from(seconds(SystemTime::now())).unwrap_or(i64::MAX);
        let clock = (now.saturating_mul(1000), Instant::now());
        match round(&broker.store, &broker.retention, &mut calendar, clock).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "entries of the record removed"),
            Err(error) => tracing::error!(%error, "old entries of the record cannot be removed"),
        }
    }
}

/// How many entries went.
pub(crate) async fn round(
    store: &Store,
    kept: &config::Record,
    calendar: &mut Calendar,
    (now, at): (i64, Instant),
) -> Result<u64, StoreError> {
    if calendar.last.is_none() {
        let believed = match store.last_believed().await? {
            Some(believed) => Some(believed),
            None => store.last_recorded().await?,
        };
        calendar.last = believed.map(|last| (last, at));
    }
    let right = calendar.is_right(now, at);
    let days = i64::from(kept.days).saturating_mul(DAY_MILLIS);
    let forget = Forget {
        before: right.then(|| now.saturating_sub(days)),
        minor: kept.rows.into(),
    };
    let removed = store.forget(forget).await?;
    if right {
        store.believe(now).await?;
    }
    Ok(removed)
}

/// What the clock said, in milliseconds since 1970, and the time that passed.
#[derive(Debug, Default)]
pub(crate) struct Calendar {
    last: Option<(i64, Instant)>,
    leapt: Option<Instant>,
}

impl Calendar {
    /// Whether the clock went as time does, for a day at least.
    fn is_right(&mut self, now: i64, at: Instant) -> bool {
        if let Some((then, since)) = self.last {
            let passed = at.saturating_duration_since(since).as_millis();
            let ahead = now
                .saturating_sub(then)
                .saturating_sub(i64::try_from(passed).unwrap_or(i64::MAX));
            if ahead > LEAP_MILLIS {
                tracing::warn!(
                    days = ahead / DAY_MILLIS,
                    "the clock is ahead of when it was right: for a day nothing of the record is removed for its age"
                );
                self.leapt = Some(at);
            }
        }
        self.last = Some((now, at));
        self.leapt
            .is_none_or(|leapt| at.saturating_duration_since(leapt) >= DAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_clock_that_leapt_is_believed_after_a_day() {
        let mut calendar = Calendar::default();
        let (mut now, mut at) = (1_000_000_000_000, Instant::now());
        let mut next = |calendar: &mut Calendar, clock: i64, passed: Duration| {
            (now, at) = (now + clock, at + passed);
            calendar.is_right(now, at)
        };
        assert!(next(&mut calendar, 0, MINUTE));
        assert!(next(&mut calendar, 60_000, MINUTE));
        // It was set, by hand or after a sleep.
        assert!(next(&mut calendar, DAY_MILLIS / 2, MINUTE));
        assert!(next(&mut calendar, -DAY_MILLIS, MINUTE));
        assert!(!next(&mut calendar, 400 * DAY_MILLIS, MINUTE));
        assert!(!next(&mut calendar, 60_000, MINUTE));
        assert!(!next(&mut calendar, -400 * DAY_MILLIS, MINUTE));
        assert!(next(&mut calendar, DAY_MILLIS, DAY));
    }

    #[test]
    fn a_record_that_ends_long_ago_may_be_under_a_clock_that_is_wrong() {
        let at = Instant::now();
        let mut calendar = Calendar {
            last: Some((1_000_000_000_000, at)),
            leapt: None,
        };
        assert!(!calendar.is_right(1_000_000_000_000 + 2 * DAY_MILLIS, at + MINUTE));
    }
}
