//! What was changed of that by which is decided, and in which order, so that a broker sees what others
//! on its database changed without reading all of it again.

use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, TENANT};

/// What the reference values are counted as; policies count under their ids.
pub(crate) const REFERENCES: &str = "reference-value";

/// The last change of one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// [`REFERENCES`], or the id of a policy.
    pub(crate) what: String,
    /// The number of this change among all; later ones have larger numbers.
    pub(crate) moment: i64,
    /// How often this thing was changed, which is the version of a policy.
    pub(crate) version: i64,
    /// Whether it is a policy that holds; not one that was deleted.
    pub(crate) present: bool,
}

impl Store {
    /// What changed after a moment, the oldest first: each thing once, with its last change. All that
    /// there is, after -1.
    pub(crate) async fn changes(&self, after: i64) -> Result<Vec<Change>, StoreError> {
        let rows = sqlx::query(
            "SELECT c.what, c.moment, c.counter, COALESCE(p.present, 0)
             FROM change c LEFT JOIN policy p
             ON p.tenant = c.tenant AND p.id = c.what AND p.version = c.counter
             WHERE c.tenant = $1 AND c.moment > $2 ORDER BY c.moment, c.what",
        )
        .bind(TENANT)
        .bind(after)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Change {
                    what: row.try_get(0)?,
                    moment: row.try_get(1)?,
                    version: row.try_get(2)?,
                    present: row.try_get::<i64, _>(3)? != 0,
                })
            })
            .collect()
    }
}

/// Counts a change, and gives its number among those of the same thing. Who writes holds the turn to
/// write, so a larger moment is a later commit.
pub(super) async fn count(
    change: &mut Transaction<'static, Any>,
    what: &str,
) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "INSERT INTO change (tenant, what, counter, moment)
         VALUES ($1, $2, 1, (SELECT COALESCE(MAX(moment), 0) + 1 FROM change WHERE tenant = $1))
         ON CONFLICT (tenant, what) DO UPDATE
         SET counter = change.counter + 1, moment = excluded.moment
         RETURNING counter",
    )
    .bind(TENANT)
    .bind(what)
    .fetch_one(&mut **change)
    .await?;
    Ok(row.try_get(0)?)
}
