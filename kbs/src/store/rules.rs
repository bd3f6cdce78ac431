//! What is decided by: policies and reference values, with a counter of their changes that brokers
//! on one database watch.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, TENANT, record};
use crate::record::Entry;

/// The counter of the reference values; policies count under their ids.
pub(crate) const REFERENCES: &str = "reference-value";

/// How often each thing was changed, by its name.
pub(crate) type Counters = BTreeMap<String, i64>;

impl Store {
    pub(crate) async fn counters(&self) -> Result<Counters, StoreError> {
        let rows = sqlx::query("SELECT what, counter FROM change WHERE tenant = $1")
            .bind(TENANT)
            .fetch_all(&self.read)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }

    /// Writes a new version of a policy, and the entry of the record.
    pub(crate) async fn set_policy(
        &self,
        id: &str,
        rego: &str,
        now: i64,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        let version = count(&mut change, id).await?;
        sqlx::query(
            "INSERT INTO policy (tenant, id, version, rego, updated) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(TENANT)
        .bind(id)
        .bind(version)
        .bind(rego)
        .bind(now)
        .execute(&mut *change)
        .await?;
        record::insert(&mut change, &[entry]).await?;
        Ok(change.commit().await?)
    }

    /// The newest version of a policy, and its number.
    pub(crate) async fn policy(&self, id: &str) -> Result<Option<(i64, String)>, StoreError> {
        let row = sqlx::query(
            "SELECT version, rego FROM policy WHERE tenant = $1 AND id = $2
             ORDER BY version DESC LIMIT 1",
        )
        .bind(TENANT)
        .bind(id)
        .fetch_optional(&self.read)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some((row.try_get(0)?, row.try_get(1)?)))
    }

    /// Writes all or none of them, and the entry of the record.
    pub(crate) async fn set_reference_values(
        &self,
        values: &Map<String, Value>,
        now: i64,
        entry: &Entry,
    ) -> Result<(), StoreError> {
        let mut change = self.begin().await?;
        count(&mut change, REFERENCES).await?;
        for (id, value) in values {
            sqlx::query(
                "INSERT INTO reference_value (tenant, id, value, updated) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (tenant, id) DO UPDATE SET value = $3, updated = $4",
            )
            .bind(TENANT)
            .bind(id)
            .bind(value.to_string())
            .bind(now)
            .execute(&mut *change)
            .await?;
        }
        record::insert(&mut change, &[entry]).await?;
        Ok(change.commit().await?)
    }

    pub(crate) async fn reference_values(&self) -> Result<BTreeMap<String, Value>, StoreError> {
        let rows = sqlx::query("SELECT id, value FROM reference_value WHERE tenant = $1")
            .bind(TENANT)
            .fetch_all(&self.read)
            .await?;
        rows.iter()
            .map(|row| {
                let value: String = row.try_get(1)?;
                let value = serde_json::from_str(&value)
                    .map_err(|_| StoreError::Content("reference value"))?;
                Ok((row.try_get(0)?, value))
            })
            .collect()
    }
}

/// Counts a change, and gives its number. It locks the counter until the change is done, so that
/// changes of one thing follow one another.
async fn count(change: &mut Transaction<'static, Any>, what: &str) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "INSERT INTO change (tenant, what, counter) VALUES ($1, $2, 1)
         ON CONFLICT (tenant, what) DO UPDATE SET counter = change.counter + 1
         RETURNING counter",
    )
    .bind(TENANT)
    .bind(what)
    .fetch_one(&mut **change)
    .await?;
    Ok(row.try_get(0)?)
}
