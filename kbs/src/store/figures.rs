//! How busy the store is.

use sqlx::AnyPool;

use super::{Store, StoreError, record};

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
