//! What the record need not remember any more is removed in small steps, since each holds up whoever writes.

use std::time::Duration;

use sqlx::Row;
use tokio::time::{Instant, sleep};

use super::{Store, StoreError, TENANT};

/// Entries that one step removes: a few milliseconds.
const STEP: i64 = 250;

/// What is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forget {
    /// Entries from before this time, in milliseconds since 1970.
    pub(crate) before: Option<i64>,
    /// The oldest minor entries beyond this number: refusals, and attestations that affirm nothing. Guests
    /// write these as they like; nothing that they do removes a release or an administration before its
    /// time.
    pub(crate) minor: i64,
}

impl Store {
    /// Removes what is to be removed, and gives how many entries that were. Others have at least half of
    /// the time for their writes.
    pub(crate) async fn forget(&self, forget: Forget) -> Result<u64, StoreError> {
        let mut removed = 0;
        if let Some(before) = forget.before {
            let old = "time < $2 ORDER BY time";
            removed += self.remove(old, before).await?;
        }
        if let Some(last) = self.minor_beyond(forget.minor).await? {
            let minor = "minor = 1 AND id <= $2 ORDER BY id";
            removed += self.remove(minor, last).await?;
        }
        Ok(removed)
    }

    /// The last time that [`Store::believe`] was told, in milliseconds since 1970.
    pub(crate) async fn last_believed(&self) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query("SELECT believed FROM kbs_clock WHERE tenant = $1")
            .bind(TENANT)
            .fetch_optional(&self.read)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// The clock is right, as far as one can tell.
    pub(crate) async fn believe(&self, now: i64) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        sqlx::query(
            "INSERT INTO kbs_clock (tenant, believed) VALUES ($1, $2)
             ON CONFLICT (tenant) DO UPDATE SET believed = excluded.believed",
        )
        .bind(TENANT)
        .bind(now)
        .execute(&mut *change)
        .await?;
        Ok(change.commit().await?)
    }

    /// The time of the newest entry, in milliseconds since 1970.
    pub(crate) async fn last_recorded(&self) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query("SELECT MAX(time) FROM record WHERE tenant = $1")
            .bind(TENANT)
            .fetch_one(&self.read)
            .await?;
        Ok(row.try_get(0)?)
    }

    /// The newest minor entry that is beyond a number of them.
    async fn minor_beyond(&self, kept: i64) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query(
            "SELECT id FROM record WHERE tenant = $1 AND minor = 1
             ORDER BY id DESC LIMIT 1 OFFSET $2",
        )
        .bind(TENANT)
        .bind(kept)
        .fetch_optional(&self.read)
        .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    async fn remove(&self, which: &'static str, bound: i64) -> Result<u64, StoreError> {
        let text = format!(
            "DELETE FROM record WHERE id IN
             (SELECT id FROM record WHERE tenant = $1 AND {which} LIMIT $3)"
        );
        let mut removed = 0;
        loop {
            let began = Instant::now();
            let mut change = self.begin().await?;
            let done = sqlx::query(sqlx::AssertSqlSafe(text.as_str()))
                .bind(TENANT)
                .bind(bound)
                .bind(STEP)
                .execute(&mut *change)
                .await?;
            change.commit().await?;
            removed += done.rows_affected();
            if i64::try_from(done.rows_affected()).is_ok_and(|rows| rows < STEP) {
                return Ok(removed);
            }
            sleep(began.elapsed().max(Duration::from_millis(1))).await;
        }
    }
}
