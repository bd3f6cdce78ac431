//! Policies: each version of a text under the id of the scope that it is attached to. A deletion is a
//! version too, without a text.

use serde::{Deserialize, Serialize};
use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, TENANT, record};
use crate::{record::Entry, scope::Scope};

/// Policies that hold at once.
const POLICIES: i64 = 5000;
/// Versions that are kept of a policy; the oldest go first.
const VERSIONS: i64 = 50;

/// What is remembered of one version of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// The policy's id.
    pub id: String,
    /// The number of this version, from 1.
    pub version: i64,
    /// Bytes of the Rego text.
    pub bytes: i64,
    /// Seconds since 1970 of the change.
    pub updated: i64,
    /// Whether this change was the end of the policy.
    pub deleted: bool,
}

impl Store {
    /// Writes a new version of a policy, and the entry of the record; gives its number.
    pub(crate) async fn set_policy(
        &self,
        id: &str,
        rego: &str,
        now: i64,
        entry: &Entry,
    ) -> Result<i64, StoreError> {
        let mut change = self.begin().await?;
        if !holds(&mut change, id).await? && held(&mut change).await? >= POLICIES {
            let text = format!("{POLICIES} policies are attached already: delete one first");
            return Err(StoreError::Limit(text));
        }
        let version = self.count(&mut change, id).await?;
        insert(&mut change, id, version, Some(rego), now).await?;
        record::insert(&mut change, &[&told(entry, id, version)]).await?;
        change.commit().await?;
        Ok(version)
    }

    /// Ends a policy, and writes the entry of the record. Whether there was one.
    pub(crate) async fn delete_policy(
        &self,
        id: &str,
        now: i64,
        entry: &Entry,
    ) -> Result<bool, StoreError> {
        let mut change = self.begin().await?;
        if !holds(&mut change, id).await? {
            return Ok(false);
        }
        let version = self.count(&mut change, id).await?;
        insert(&mut change, id, version, None, now).await?;
        record::insert(&mut change, &[&told(entry, id, version)]).await?;
        change.commit().await?;
        Ok(true)
    }

    /// The text of one version of a policy, or of the one that holds.
    pub(crate) async fn policy(
        &self,
        id: &str,
        version: Option<i64>,
    ) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "SELECT rego FROM policy WHERE tenant = $1 AND id = $2 AND present = 1
             AND version = CASE WHEN $3 > 0 THEN $3 ELSE
                 (SELECT MAX(version) FROM policy WHERE tenant = $1 AND id = $2) END",
        )
        .bind(TENANT)
        .bind(id)
        .bind(version.unwrap_or(0))
        .fetch_optional(&self.read)
        .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// The versions that are kept, the oldest first.
    pub(crate) async fn policy_history(&self, id: &str) -> Result<Vec<PolicyVersion>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, version, octet_length(rego), updated, present FROM policy
             WHERE tenant = $1 AND id = $2 ORDER BY version",
        )
        .bind(TENANT)
        .bind(id)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(PolicyVersion {
                    id: row.try_get(0)?,
                    version: row.try_get(1)?,
                    bytes: row.try_get(2)?,
                    updated: row.try_get(3)?,
                    deleted: row.try_get::<i64, _>(4)? == 0,
                })
            })
            .collect()
    }
}

/// The entry with what was changed and its new version.
fn told(entry: &Entry, id: &str, version: i64) -> Entry {
    let mut entry = entry.clone();
    id.clone_into(&mut entry.resource);
    let number = match Scope::from_id(id) {
        Ok(Scope::Appraisal(_)) => &mut entry.versions.appraisal,
        Ok(Scope::Release(_)) | Err(_) => &mut entry.versions.release,
    };
    *number = version;
    entry
}

/// Whether there is a policy of this id now.
async fn holds(change: &mut Transaction<'static, Any>, id: &str) -> Result<bool, StoreError> {
    let row = sqlx::query(
        "SELECT present FROM policy WHERE tenant = $1 AND id = $2 ORDER BY version DESC LIMIT 1",
    )
    .bind(TENANT)
    .bind(id)
    .fetch_optional(&mut **change)
    .await?;
    let present = row.map(|row| row.try_get::<i64, _>(0)).transpose()?;
    Ok(present.unwrap_or(0) != 0)
}

async fn held(change: &mut Transaction<'static, Any>) -> Result<i64, StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) FROM change c JOIN policy p
         ON p.tenant = c.tenant AND p.id = c.what AND p.version = c.counter
         WHERE c.tenant = $1 AND p.present = 1",
    )
    .bind(TENANT)
    .fetch_one(&mut **change)
    .await?;
    Ok(row.try_get(0)?)
}

async fn insert(
    change: &mut Transaction<'static, Any>,
    id: &str,
    version: i64,
    rego: Option<&str>,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO policy (tenant, id, version, rego, updated, present)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(TENANT)
    .bind(id)
    .bind(version)
    .bind(rego.unwrap_or_default())
    .bind(now)
    .bind(i64::from(rego.is_some()))
    .execute(&mut **change)
    .await?;
    sqlx::query("DELETE FROM policy WHERE tenant = $1 AND id = $2 AND version <= $3")
        .bind(TENANT)
        .bind(id)
        .bind(version - VERSIONS)
        .execute(&mut **change)
        .await?;
    Ok(())
}
