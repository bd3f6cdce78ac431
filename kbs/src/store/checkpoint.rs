//! Moves what SQLite's log holds into the database, beside the writers.
//!
//! SQLite itself does it in the transaction that made the log long, and its guest, and all behind it,
//! wait for the disk a second time. Here one task does it, which writers do not wait for: what it has
//! moved is the same as before, and what it has not is still in the log, after a crash too. Only where
//! the log never rests does it take a writer's turn, for what little is left then, so that the log
//! begins anew.

use std::time::Duration;

use sqlx::{AnyPool, Row};

use super::StoreError;

/// Between two rounds. They are many and small: what a large one writes is in the way of the next commit.
const PAUSE: Duration = Duration::from_millis(25);
/// Pages of a log that is worth a round, and of one that has to begin anew: 256 KiB and 32 MiB.
const WORTH: i64 = 64;
const LONG: i64 = 8000;

/// For connections that write.
pub(super) const NOT_BY_WRITERS: &str = "PRAGMA wal_autocheckpoint = 0;";

/// Goes on until the store is closed.
pub(super) async fn run(pool: AnyPool) {
    let mut rounds = tokio::time::interval(PAUSE);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !pool.is_closed() {
        rounds.tick().await;
        if let Err(error) = round(&pool).await
            && !pool.is_closed()
        {
            tracing::error!(%error, "the store's log cannot be moved into the database");
        }
    }
}

async fn round(pool: &AnyPool) -> Result<(), StoreError> {
    // It moves nothing, and says how long the log is.
    if pages(pool, "PRAGMA wal_checkpoint(NOOP)").await? < WORTH {
        return Ok(());
    }
    if pages(pool, "PRAGMA wal_checkpoint(PASSIVE)").await? >= LONG {
        pages(pool, "PRAGMA wal_checkpoint(RESTART)").await?;
    }
    Ok(())
}

/// Pages in the log.
async fn pages(pool: &AnyPool, pragma: &'static str) -> Result<i64, StoreError> {
    Ok(sqlx::query(pragma).fetch_one(pool).await?.try_get(1)?)
}
