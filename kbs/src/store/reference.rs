//! Reference values: one row for each value of a name, with who said so and from when until when. A
//! row never changes its value; it ends when it is replaced or withdrawn, and then it is history.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use policies::reference::{HISTORY, Provenance, ReferenceValue, VERSIONS, Version};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Any, Row, Transaction, any::AnyRow};

use super::{REFERENCES, Store, StoreError, TENANT, change::count, record};
use crate::record::{Entry, from_millis, from_word, word};

/// Values that hold now or will, of all names: each broker has them in its memory.
const VALUES: i64 = 20_000;
/// Bytes of one value as JSON.
const VALUE_BYTES: usize = 64 * 1024;
/// Rows of one answer; more than one name has.
const PAGE: i64 = 1000;
/// Entries that go into the record in one statement.
const ENTRIES: usize = 512;
const COLUMNS: &str = "name, value, provenance, not_before, not_after, state, version, updated";

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

/// A part of the list; names in the database's order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    /// Names that begin with this.
    #[serde(default)]
    pub(crate) prefix: String,
    /// Names after this one.
    #[serde(default)]
    pub(crate) after: String,
}

/// The names that a change touched, each with all that it has now, and the number of the last change.
pub(crate) struct Touched {
    pub(crate) version: i64,
    pub(crate) values: Vec<ReferenceValue>,
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
        let number = count(&mut change, REFERENCES).await?;
        let most = i64::try_from(VERSIONS).unwrap_or(i64::MAX);
        for value in values {
            let name = &value.name;
            if mode == Mode::Replace {
                end(
                    &mut change,
                    name,
                    None,
                    ReferenceState::Replaced,
                    number,
                    now,
                )
                .await?;
            }
            for version in &value.versions {
                insert(&mut change, name, version, number, now).await?;
            }
            if active_of(&mut change, name).await? > most {
                let text = format!("`{name}` would have more than {VERSIONS} values at once");
                return Err(StoreError::Limit(text));
            }
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
        let number = count(&mut change, REFERENCES).await?;
        let state = ReferenceState::Withdrawn;
        let ended = end(&mut change, name, version, state, number, now).await?;
        if ended > 0 {
            tell(&mut change, std::iter::once(name), number, entry).await?;
            change.commit().await?;
        }
        Ok(ended)
    }

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
        let broken = |_| StoreError::Content("reference value");
        for row in rows {
            let name: String = row.try_get(0)?;
            touched.version = touched.version.max(row.try_get(6)?);
            if touched.values.last().is_none_or(|last| last.name != name) {
                touched
                    .values
                    .push(ReferenceValue::new(&name).map_err(broken)?);
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
            .bind(PAGE)
            .fetch_all(&self.read)
            .await?;
        let full = i64::try_from(rows.len()).unwrap_or(PAGE) >= PAGE;
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
    let provenance = serde_json::to_string(&version.provenance)
        .map_err(|_| StoreError::Content("provenance"))?;
    // The same again is no second value.
    let known = sqlx::query(
        "UPDATE reference_value SET changed = $1, updated = $2
         WHERE tenant = $3 AND name = $4 AND state = 'active' AND value = $5 AND provenance = $6
         AND not_before IS NOT DISTINCT FROM $7 AND not_after IS NOT DISTINCT FROM $8",
    )
    .bind(number)
    .bind(now)
    .bind(TENANT)
    .bind(name)
    .bind(&value)
    .bind(&provenance)
    .bind(version.not_before.map(to_millis))
    .bind(version.not_after.map(to_millis))
    .execute(&mut **change)
    .await?;
    if known.rows_affected() > 0 {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO reference_value (tenant, name, value, provenance, not_before, not_after,
             state, version, changed, updated)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9)",
    )
    .bind(TENANT)
    .bind(name)
    .bind(value)
    .bind(provenance)
    .bind(version.not_before.map(to_millis))
    .bind(version.not_after.map(to_millis))
    .bind(word(&ReferenceState::Active))
    .bind(number)
    .bind(now)
    .execute(&mut **change)
    .await?;
    Ok(())
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
    for some in all.chunks(ENTRIES) {
        record::insert(change, some).await?;
    }
    Ok(())
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

/// Milliseconds since 1970.
fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
