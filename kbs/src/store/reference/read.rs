//! Reference values as they are read: what changed, a page of the list, the history of a name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use policies::reference::{Provenance, ReferenceValue, Version};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Row, any::AnyRow};

use super::{
    super::{Page, TENANT, page, schema::unkept},
    Store, StoreError, to_millis,
};
use crate::record::{from_millis, from_word};

/// Rows of one answer; more than one name has.
const COLUMNS: &str = "name, value, provenance, not_before, not_after, state, version, updated";

/// What became of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceState {
    /// It holds in its time.
    Active,
    /// Another one took its place.
    Replaced,
    /// An administrator took it back.
    Withdrawn,
}

/// One value of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceVersion {
    /// The name that appraisal policies ask for.
    pub name: String,
    /// The value; a list stands for each of its members.
    pub value: Value,
    /// Who said so.
    pub provenance: Provenance,
    /// The first moment at which it holds, in RFC 3339; always where there is none.
    pub not_before: Option<String>,
    /// The first moment at which it no longer holds, in RFC 3339; never where there is none.
    pub not_after: Option<String>,
    /// What became of it.
    pub state: ReferenceState,
    /// The change of the reference values that brought it.
    pub version: i64,
    /// Seconds since 1970 of the last change of this row.
    pub updated: i64,
    /// Whether it holds now.
    pub holds: bool,
}

/// The names that a change touched, each with all that it has now, and the number of the last change.
pub(crate) struct Touched {
    pub(crate) version: i64,
    pub(crate) values: Vec<ReferenceValue>,
}

impl Store {
    /// What has changed since the change of this number; all that holds, after 0.
    pub(crate) async fn references_after(&self, version: i64) -> Result<Touched, StoreError> {
        let rows = sqlx::query(
            "SELECT name, value, provenance, not_before, not_after, state, changed
             FROM reference_value WHERE tenant = $1 AND (changed > $2 OR state = 'active')
             AND name IN (SELECT name FROM reference_value WHERE tenant = $1 AND changed > $2)
             ORDER BY name, id",
        )
        .bind(TENANT)
        .bind(version)
        .fetch_all(&self.read)
        .await?;
        let mut touched = Touched {
            version,
            values: Vec::new(),
        };
        for row in rows {
            let name: String = row.try_get(0)?;
            touched.version = touched.version.max(row.try_get(6)?);
            if touched.values.last().is_none_or(|last| last.name != name) {
                touched.values.push(
                    ReferenceValue::new(&name).map_err(|error| unkept(&name, "name", &error))?,
                );
            }
            if state(&row)? == ReferenceState::Active
                && let Some(last) = touched.values.last_mut()
            {
                last.versions.push(held(&row)?);
            }
        }
        Ok(touched)
    }

    /// What holds now or will: whole names, as many as a page has.
    pub(crate) async fn list_reference_values(
        &self,
        page: &Page,
        now: SystemTime,
    ) -> Result<Vec<ReferenceVersion>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM reference_value WHERE tenant = $1 AND state = 'active'
             AND name > $2 AND substr(name, 1, length($3)) = $3 ORDER BY name, id LIMIT $4"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(TENANT)
            .bind(&page.after)
            .bind(&page.prefix)
            .bind(page::ROWS)
            .fetch_all(&self.read)
            .await?;
        let full = page::is_full(rows.len());
        let mut list = shown(&rows, now)?;
        if full && let Some(last) = list.last().map(|last| last.name.clone()) {
            // The rest of it may be on the next page.
            list.retain(|one| one.name != last);
        }
        Ok(list)
    }

    /// Everything that is remembered of a name, the oldest first.
    pub(crate) async fn reference_history(
        &self,
        name: &str,
        now: SystemTime,
    ) -> Result<Vec<ReferenceVersion>, StoreError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM reference_value WHERE tenant = $1 AND name = $2 ORDER BY id"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(TENANT)
            .bind(name)
            .fetch_all(&self.read)
            .await?;
        shown(&rows, now)
    }
}

/// The version in a row that begins with name, value, provenance and its time.
fn held(row: &AnyRow) -> Result<Version, StoreError> {
    let broken = |_: serde_json::Error| StoreError::Content("reference value");
    let time = |column: usize| row.try_get::<Option<i64>, _>(column);
    Ok(Version {
        value: serde_json::from_str(&row.try_get::<String, _>(1)?).map_err(broken)?,
        provenance: serde_json::from_str(&row.try_get::<String, _>(2)?).map_err(broken)?,
        not_before: time(3)?.map(from_time),
        not_after: time(4)?.map(from_time),
    })
}

fn state(row: &AnyRow) -> Result<ReferenceState, StoreError> {
    let text: String = row.try_get(5)?;
    from_word(&text).ok_or(StoreError::Content("reference value"))
}

fn shown(rows: &[AnyRow], now: SystemTime) -> Result<Vec<ReferenceVersion>, StoreError> {
    rows.iter()
        .map(|row| {
            let version = held(row)?;
            let state = state(row)?;
            let time = |moment: Option<SystemTime>| moment.map(to_millis).and_then(from_millis);
            Ok(ReferenceVersion {
                name: row.try_get(0)?,
                not_before: time(version.not_before),
                not_after: time(version.not_after),
                holds: state == ReferenceState::Active && version.holds(now),
                value: version.value,
                provenance: version.provenance,
                state,
                version: row.try_get(6)?,
                updated: row.try_get(7)?,
            })
        })
        .collect()
}

fn from_time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
