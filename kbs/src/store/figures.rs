//! How busy the store is, and whether it does what it is for.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rand::Rng;
use sqlx::AnyPool;

use super::{Store, StoreError, record};

/// Between two attempts to write, as long as they fail.
const PROBE: Duration = Duration::from_secs(2);
/// For one attempt: who asks whether a broker is ready does not wait for longer.
const PROBE_TIME: Duration = Duration::from_secs(2);

/// What an attempt writes: as much as a full batch of entries with long claims.
const PROBE_BYTES: usize = 1024 * 1024;

/// How the last writes went. A store that fails is asked for more only by who wants to know whether it
/// is well again.
#[derive(Default)]
pub(super) struct Writes(Mutex<Failing>);

/// Whether they failed, and when one was attempted since.
#[derive(Clone, Copy, Default)]
struct Failing {
    since: Option<Instant>,
    tried: Option<Instant>,
}

impl Writes {
    fn change(&self, change: impl FnOnce(&mut Failing)) -> Failing {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut failing);
        *failing
    }
}

/// What the metrics tell of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) reading: i64,
    pub(crate) reading_idle: i64,
    pub(crate) writing: i64,
    pub(crate) writing_idle: i64,
    /// Entries of the record that are not on the disk.
    pub(crate) waiting: i64,
}

impl Store {
    /// Whether the database answers.
    pub(crate) async fn answers(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").fetch_one(&self.read).await?;
        Ok(())
    }

    /// A request could not be answered for the store's sake.
    pub(crate) fn failed(&self) {
        self.writes
            .change(|failing| failing.since = Some(Instant::now()));
    }

    /// Whether what was last written is on the disk. After a failure something is written for nothing,
    /// once in a while, until that succeeds.
    pub(crate) async fn is_writable(&self) -> bool {
        let now = Instant::now();
        let mut due = false;
        let failing = self.writes.change(|failing| {
            let recent = |at: Instant| now.saturating_duration_since(at) < PROBE;
            due = failing.since.is_some() && !failing.tried.is_some_and(recent);
            if due {
                failing.tried = Some(now);
            }
        });
        if !due {
            return failing.since.is_none();
        }
        match tokio::time::timeout(PROBE_TIME, self.write_nothing()).await {
            Ok(Ok(())) => {
                // What failed meanwhile is another failure.
                let left = self.writes.change(|left| {
                    if left.since == failing.since {
                        *left = Failing::default();
                    }
                });
                return left.since.is_none();
            }
            Ok(Err(error)) => tracing::error!(%error, "the store cannot be written"),
            Err(_) => tracing::error!("the store takes no write in time"),
        }
        false
    }

    /// A change that failed for want of room leaves what it had taken, and a small one fits into that. So
    /// this one is as large as a batch of entries, and is not one that compresses.
    async fn write_nothing(&self) -> Result<(), StoreError> {
        let mut filling = vec![0; PROBE_BYTES];
        rand::rng().fill_bytes(&mut filling);
        let mut change = self.begin().await?;
        sqlx::query(
            "INSERT INTO kbs_probe (id, filling) VALUES (1, $1)
             ON CONFLICT (id) DO UPDATE SET filling = excluded.filling",
        )
        .bind(filling)
        .execute(&mut *change)
        .await?;
        Ok(change.commit().await?)
    }

    pub(crate) fn figures(&self) -> Figures {
        let (reading, reading_idle) = connections(&self.read);
        let (writing, writing_idle) = connections(&self.writer.pool);
        let free = self.recorder.capacity();
        Figures {
            reading,
            reading_idle,
            writing,
            writing_idle,
            waiting: i64::try_from(record::WAITING.saturating_sub(free)).unwrap_or(i64::MAX),
        }
    }
}

/// Busy ones, and those that wait for use.
fn connections(pool: &AnyPool) -> (i64, i64) {
    let all = i64::from(pool.size());
    let idle = i64::try_from(pool.num_idle()).unwrap_or(i64::MAX);
    (all.saturating_sub(idle), idle)
}
