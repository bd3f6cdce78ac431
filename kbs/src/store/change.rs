//! What was changed of that by which is decided, and in which order, so that a broker sees what others
//! on its database changed without reading all of it again.
//!
//! Moments count from one, and a database that was restored counts some of them a second time. So each
//! one has a stamp that nobody makes twice: where the stamp of a moment is another one than it was, what
//! is known of the database is not what led to what it holds now.

use std::sync::{Mutex, PoisonError};

use rand::Rng;
use sqlx::{Any, AnyConnection, Row, Transaction};

use super::{Store, StoreError, TENANT};

/// What the reference values are counted as; policies count under their ids.
pub(crate) const REFERENCES: &str = "reference-value";
/// Moments whose stamps are kept: a broker that has missed more changes than that has to read all anew.
const STAMPS: i64 = 10_000;
const STAMP_BYTES: usize = 16;

/// A moment, and the stamp that tells it from one of the same number in another history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The number of a change among all; later ones have larger numbers.
    pub(crate) moment: i64,
    /// Empty where a program wrote the change that knew of no stamps.
    pub(crate) stamp: String,
}

impl Mark {
    /// Before all changes.
    pub(crate) const BEGINNING: Self = Self {
        moment: -1,
        stamp: String::new(),
    };
}

/// The last change of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// [`REFERENCES`], or the id of a policy.
    pub(crate) what: String,
    /// When it was.
    pub(crate) mark: Mark,
    /// How often this thing was changed, which is the version of a policy.
    pub(crate) version: i64,
    /// Whether it is a policy that holds; not one that was deleted.
    pub(crate) present: bool,
}

/// The last change that is decided by.
pub(super) struct Seen(Mutex<Mark>);

impl Default for Seen {
    fn default() -> Self {
        Self(Mutex::new(Mark::BEGINNING))
    }
}

/// The stamp of a moment in one row, and no row where nothing was changed then or later.
const STAMP_OF: &str =
    "SELECT '' AS what, CAST($2 AS BIGINT) AS moment, 0 AS version, 0 AS present,
        COALESCE((SELECT stamp FROM change_stamp WHERE tenant = $1 AND moment = $2), '') AS stamp
     WHERE EXISTS (SELECT 1 FROM change WHERE tenant = $1 AND moment >= $2)";

impl Store {
    /// What changed after a mark, the oldest first: each thing once, with its last change. All that
    /// there is, after [`Mark::BEGINNING`].
    ///
    /// # Errors
    /// [`StoreError::WentBack`] where the mark is of another history than the database's.
    pub(crate) async fn changes(&self, after: &Mark) -> Result<Vec<Change>, StoreError> {
        // In one query: a database that is restored between two of them would be taken for the same.
        let text = format!(
            "{STAMP_OF}
             UNION ALL
             SELECT c.what, c.moment, c.counter, COALESCE(p.present, 0), COALESCE(s.stamp, '')
             FROM change c LEFT JOIN policy p
             ON p.tenant = c.tenant AND p.id = c.what AND p.version = c.counter
             LEFT JOIN change_stamp s ON s.tenant = c.tenant AND s.moment = c.moment
             WHERE c.tenant = $1 AND c.moment > $2 ORDER BY moment, what"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(TENANT)
            .bind(after.moment)
            .fetch_all(&self.read)
            .await?;
        let changes = rows.iter().map(change).collect::<Result<Vec<_>, _>>()?;
        let mut changes = changes.into_iter().peekable();
        let found = changes.next_if(|first| first.what.is_empty());
        let same = found.is_some_and(|found| found.mark == *after);
        if *after != Mark::BEGINNING && !same {
            return Err(StoreError::WentBack);
        }
        Ok(changes.collect())
    }

    /// What is decided by now: a change that is made here from now on has to follow it.
    pub(crate) fn saw(&self, mark: &Mark) {
        let mut seen = self.seen.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone_from(mark);
    }

    /// Counts a change, and gives its number among those of the same thing. Who writes holds the turn to
    /// write, so a larger moment is a later commit.
    ///
    /// # Errors
    /// [`StoreError::WentBack`] where the database is not what this broker decides by, or what followed:
    /// nobody can have meant to change that.
    pub(super) async fn count(
        &self,
        change: &mut Transaction<'static, Any>,
        what: &str,
    ) -> Result<i64, StoreError> {
        let seen = self.seen.0.lock();
        let seen = seen.unwrap_or_else(PoisonError::into_inner).clone();
        if seen != Mark::BEGINNING && !is_there(change, &seen).await? {
            return Err(StoreError::WentBack);
        }
        let row = sqlx::query(
            "INSERT INTO change (tenant, what, counter, moment)
             VALUES ($1, $2, 1, (SELECT COALESCE(MAX(moment), 0) + 1 FROM change WHERE tenant = $1))
             ON CONFLICT (tenant, what) DO UPDATE
             SET counter = change.counter + 1, moment = excluded.moment
             RETURNING counter, moment",
        )
        .bind(TENANT)
        .bind(what)
        .fetch_one(&mut **change)
        .await?;
        stamp(change, row.try_get(1)?).await?;
        Ok(row.try_get(0)?)
    }
}

fn change(row: &sqlx::any::AnyRow) -> Result<Change, StoreError> {
    Ok(Change {
        what: row.try_get(0)?,
        mark: Mark {
            moment: row.try_get(1)?,
            stamp: row.try_get(4)?,
        },
        version: row.try_get(2)?,
        present: row.try_get::<i64, _>(3)? != 0,
    })
}

async fn is_there(database: &mut AnyConnection, mark: &Mark) -> Result<bool, StoreError> {
    let row = sqlx::query(STAMP_OF)
        .bind(TENANT)
        .bind(mark.moment)
        .fetch_optional(database)
        .await?;
    let found = row.map(|row| row.try_get::<String, _>(4)).transpose()?;
    Ok(found.is_some_and(|stamp| stamp == mark.stamp))
}

async fn stamp(database: &mut AnyConnection, moment: i64) -> Result<(), StoreError> {
    let mut stamp = [0; STAMP_BYTES];
    rand::rng().fill_bytes(&mut stamp);
    sqlx::query("INSERT INTO change_stamp (tenant, moment, stamp) VALUES ($1, $2, $3)")
        .bind(TENANT)
        .bind(moment)
        .bind(hex::encode(stamp))
        .execute(&mut *database)
        .await?;
    sqlx::query("DELETE FROM change_stamp WHERE tenant = $1 AND moment <= $2")
        .bind(TENANT)
        .bind(moment - STAMPS)
        .execute(database)
        .await?;
    Ok(())
}

/// Gives the newest change of an older program's database its stamp.
pub(super) async fn adopt(database: &mut AnyConnection) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT MAX(moment) FROM change WHERE tenant = $1")
        .bind(TENANT)
        .fetch_one(&mut *database)
        .await?;
    match row.try_get::<Option<i64>, _>(0)? {
        Some(newest) => stamp(database, newest).await,
        None => Ok(()),
    }
}
