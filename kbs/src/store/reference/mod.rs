//! Reference values: one row for each value of a name, with who said so and from when until when. A
//! row never changes its value; it ends when it is replaced or withdrawn, and then it is history.

mod read;

use std::time::{SystemTime, UNIX_EPOCH};

use policies::reference::{HISTORY, Provenance, ReferenceValue, VERSIONS, Version};
use serde::{Deserialize, Serialize};
use sqlx::{Any, Row, Transaction};

pub(crate) use read::Touched;
pub use read::{ReferenceState, ReferenceVersion};

use super::{REFERENCES, Store, StoreError, TENANT, record};
use crate::record::{Entry, word};

/// Values that hold now or will, of all names: each broker has them in its memory.
const VALUES: i64 = 20_000;
/// Bytes of one value as JSON.
const VALUE_BYTES: usize = 64 * 1024;

/// What becomes of the values that a name has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// They stay beside the new ones: the start of an upgrade.
    Add,
    /// The new ones take their place; Trustee's meaning.
    #[default]
    Replace,
}

impl Store {
    /// Writes all or none of these values, and an entry of the record for each name; gives the
    /// number of the change.
    pub(crate) async fn set_reference_values(
        &self,
        values: &[ReferenceValue],
        mode: Mode,
        now: i64,
        entry: &Entry,
    ) -> Result<i64, StoreError> {
        let mut change = self.begin().await?;
        let number = self.count(&mut change, REFERENCES).await?;
        for value in values {
            write(&mut change, value, mode, number, now).await?;
        }
        if active(&mut change).await? > VALUES {
            let text = format!("more than {VALUES} reference values: delete some first");
            return Err(StoreError::Limit(text));
        }
        let names = values.iter().map(|value| value.name.as_str());
        tell(&mut change, names, number, entry).await?;
        change.commit().await?;
        Ok(number)
    }

    /// Takes the values of a name back, or those of one version of it, and writes the entry of the
    /// record. How many there were.
    pub(crate) async fn withdraw_reference_value(
        &self,
        name: &str,
        version: Option<i64>,
        now: i64,
        entry: &Entry,
    ) -> Result<u64, StoreError> {
        let mut change = self.begin().await?;
        let number = self.count(&mut change, REFERENCES).await?;
        let state = ReferenceState::Withdrawn;
        let ended = end(&mut change, name, version, state, number, now).await?;
        if ended > 0 {
            tell(&mut change, std::iter::once(name), number, entry).await?;
            change.commit().await?;
        }
        Ok(ended)
    }
}

/// Writes the values of one name.
async fn write(
    change: &mut Transaction<'static, Any>,
    value: &ReferenceValue,
    mode: Mode,
    number: i64,
    now: i64,
) -> Result<(), StoreError> {
    let name = &value.name;
    if mode == Mode::Replace {
        end(change, name, None, ReferenceState::Replaced, number, now).await?;
    }
    for version in &value.versions {
        // The same again is no second value.
        if mode == Mode::Replace || !touch(change, name, version, number, now).await? {
            insert(change, name, version, number, now).await?;
        }
    }
    let most = i64::try_from(VERSIONS).unwrap_or(i64::MAX);
    if mode == Mode::Add && active_of(change, name).await? > most {
        let text = format!("`{name}` would have more than {VERSIONS} values at once");
        return Err(StoreError::Limit(text));
    }
    Ok(())
}

async fn insert(
    change: &mut Transaction<'static, Any>,
    name: &str,
    version: &Version,
    number: i64,
    now: i64,
) -> Result<(), StoreError> {
    let value = version.value.to_string();
    if value.len() > VALUE_BYTES {
        let text = format!("the reference value `{name}` is larger than {VALUE_BYTES} bytes");
        return Err(StoreError::Limit(text));
    }
    sqlx::query(
        "INSERT INTO reference_value (tenant, name, value, provenance, not_before, not_after,
             state, version, changed, updated)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9)",
    )
    .bind(TENANT)
    .bind(name)
    .bind(value)
    .bind(text(&version.provenance)?)
    .bind(version.not_before.map(to_millis))
    .bind(version.not_after.map(to_millis))
    .bind(word(&ReferenceState::Active))
    .bind(number)
    .bind(now)
    .execute(&mut **change)
    .await?;
    Ok(())
}

/// Marks a value as changed where the name has it already, with the same window and provenance.
async fn touch(
    change: &mut Transaction<'static, Any>,
    name: &str,
    version: &Version,
    number: i64,
    now: i64,
) -> Result<bool, StoreError> {
    let known = sqlx::query(
        "UPDATE reference_value SET changed = $1, updated = $2
         WHERE tenant = $3 AND name = $4 AND state = 'active' AND value = $5 AND provenance = $6
         AND not_before IS NOT DISTINCT FROM $7 AND not_after IS NOT DISTINCT FROM $8",
    )
    .bind(number)
    .bind(now)
    .bind(TENANT)
    .bind(name)
    .bind(version.value.to_string())
    .bind(text(&version.provenance)?)
    .bind(version.not_before.map(to_millis))
    .bind(version.not_after.map(to_millis))
    .execute(&mut **change)
    .await?;
    Ok(known.rows_affected() > 0)
}

fn text(provenance: &Provenance) -> Result<String, StoreError> {
    serde_json::to_string(provenance).map_err(|_| StoreError::Content("provenance"))
}

/// Ends what a name has, or what one change brought to it.
async fn end(
    change: &mut Transaction<'static, Any>,
    name: &str,
    version: Option<i64>,
    state: ReferenceState,
    number: i64,
    now: i64,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "UPDATE reference_value SET state = $1, changed = $2, updated = $3
         WHERE tenant = $4 AND name = $5 AND state = 'active' AND ($6 = 0 OR version = $6)",
    )
    .bind(word(&state))
    .bind(number)
    .bind(now)
    .bind(TENANT)
    .bind(name)
    .bind(version.unwrap_or(0))
    .execute(&mut **change)
    .await?;
    if done.rows_affected() > 0 {
        shorten(change, name).await?;
    }
    Ok(done.rows_affected())
}

/// Holds the history of a name to its length.
async fn shorten(change: &mut Transaction<'static, Any>, name: &str) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM reference_value WHERE tenant = $1 AND name = $2 AND id IN (
             SELECT id FROM reference_value WHERE tenant = $1 AND name = $2
             AND state <> 'active' ORDER BY changed DESC, id DESC LIMIT $3 OFFSET $4)",
    )
    .bind(TENANT)
    .bind(name)
    .bind(i64::MAX)
    .bind(i64::try_from(HISTORY).unwrap_or(i64::MAX))
    .execute(&mut **change)
    .await?;
    Ok(())
}

/// How many values hold now or will.
async fn active(change: &mut Transaction<'static, Any>) -> Result<i64, StoreError> {
    let row =
        sqlx::query("SELECT COUNT(*) FROM reference_value WHERE tenant = $1 AND state = 'active'")
            .bind(TENANT)
            .fetch_one(&mut **change)
            .await?;
    Ok(row.try_get(0)?)
}

/// The same of one name.
async fn active_of(change: &mut Transaction<'static, Any>, name: &str) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) FROM reference_value
         WHERE tenant = $1 AND name = $2 AND state = 'active'",
    )
    .bind(TENANT)
    .bind(name)
    .fetch_one(&mut **change)
    .await?;
    Ok(row.try_get(0)?)
}

/// An entry of the record for each name, so that each can be looked up.
async fn tell(
    change: &mut Transaction<'static, Any>,
    names: impl Iterator<Item = &str>,
    number: i64,
    entry: &Entry,
) -> Result<(), StoreError> {
    let entries: Vec<Entry> = names
        .map(|name| {
            let mut one = entry.clone();
            one.resource = format!("{REFERENCES}/{name}");
            one.versions.references = number;
            one
        })
        .collect();
    let all: Vec<&Entry> = entries.iter().collect();
    record::insert(change, &all).await
}

/// Milliseconds since 1970.
fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
