//! Resources: each version sealed under a data key of its own, which a master key wraps.
//!
//! Both seals name tenant, path and version, so a row that is moved elsewhere does not open.

use kbs_protocol::ResourcePath;
use rand::Rng;
use serde::{Deserialize, Serialize};
use sqlx::{Any, Row, Transaction};
use zeroize::Zeroizing;

use super::{Page, Store, StoreError, TENANT, page, record};
use crate::{
    master::{MasterKeys, Wrapped},
    record::Entry,
    seal::{KEY_BYTES, SealError, Sealer},
};

/// Versions that are kept of a resource; the oldest go first.
const VERSIONS: i64 = 10;
/// Data keys that one step wraps anew.
const REWRAPPED: i64 = 100;

/// What an administrator may see of a resource, or of one of its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Its name.
    pub path: ResourcePath,
    /// Its size in the clear.
    pub bytes: i64,
    /// How often it was written, from 1; a deletion counts as well.
    pub version: i64,
    /// Seconds since 1970 of the write.
    pub updated: i64,
}

/// Under which master keys the store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The id of the key that wraps now.
    pub newest: String,
    /// The ids that this broker knows.
    pub known: Vec<String>,
    /// How many versions of resources are wrapped under each id. A key with none may be removed.
    pub versions: std::collections::BTreeMap<String, i64>,
}

/// What became of data keys under older master keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rewrap {
    pub(crate) wrapped: usize,
    /// Those that do not open; of all there are, where none was wrapped.
    pub(crate) passed_over: usize,
    /// Path and version of the first of them.
    pub(crate) first: Option<(String, i64)>,
}

impl Store {
    /// Writes a new version and its entry of the record, both or none, and gives its number.
    pub(crate) async fn set_resource(
        &self,
        path: &ResourcePath,
        plain: &[u8],
        now: i64,
        entry: &Entry,
    ) -> Result<i64, StoreError> {
        let path = path.to_string();
        let mut change = self.begin().await?;
        let version: i64 = sqlx::query(
            "INSERT INTO resource (tenant, path, version, bytes, updated, present)
             VALUES ($1, $2, 1, $3, $4, 1)
             ON CONFLICT (tenant, path) DO UPDATE
             SET version = resource.version + 1, bytes = $3, updated = $4, present = 1
             RETURNING version",
        )
        .bind(TENANT)
        .bind(&path)
        .bind(length(plain))
        .bind(now)
        .fetch_one(&mut *change)
        .await?
        .try_get(0)?;
        insert_version(&mut change, &*self.keys, &path, version, plain, now).await?;
        sqlx::query(
            "DELETE FROM resource_version WHERE tenant = $1 AND path = $2 AND version <= $3",
        )
        .bind(TENANT)
        .bind(&path)
        .bind(version - VERSIONS)
        .execute(&mut *change)
        .await?;
        record::insert(&mut change, &[&numbered(entry, version)]).await?;
        change.commit().await?;
        Ok(version)
    }

    /// Deletes all versions, and writes the entry of the record. Whether there was one.
    pub(crate) async fn delete_resource(
        &self,
        path: &ResourcePath,
        now: i64,
        entry: &Entry,
    ) -> Result<bool, StoreError> {
        let path = path.to_string();
        let mut change = self.begin().await?;
        let row = sqlx::query(
            "UPDATE resource SET version = version + 1, bytes = 0, updated = $3, present = 0
             WHERE tenant = $1 AND path = $2 AND present = 1 RETURNING version",
        )
        .bind(TENANT)
        .bind(&path)
        .bind(now)
        .fetch_optional(&mut *change)
        .await?;
        let Some(row) = row else {
            return Ok(false);
        };
        let version = row.try_get(0)?;
        sqlx::query("DELETE FROM resource_version WHERE tenant = $1 AND path = $2")
            .bind(TENANT)
            .bind(&path)
            .execute(&mut *change)
            .await?;
        record::insert(&mut change, &[&numbered(entry, version)]).await?;
        change.commit().await?;
        Ok(true)
    }

    /// A page of what somebody may see; empty where there is no more.
    pub(crate) async fn list_resources(
        &self,
        page: &Page,
        may_see: impl Fn(&ResourcePath) -> bool,
    ) -> Result<Vec<Metadata>, StoreError> {
        let mut page = page.clone();
        loop {
            let mut rows = self.page_of_resources(&page).await?;
            let full = page::is_full(rows.len());
            if let Some(last) = rows.last() {
                page.after = last.path.to_string();
            }
            rows.retain(|one| may_see(&one.path));
            if !full || !rows.is_empty() {
                return Ok(rows);
            }
        }
    }

    async fn page_of_resources(&self, page: &Page) -> Result<Vec<Metadata>, StoreError> {
        let rows = sqlx::query(
            "SELECT path, bytes, version, updated FROM resource
             WHERE tenant = $1 AND present = 1 AND path > $2
             AND substr(path, 1, length($3)) = $3 ORDER BY path LIMIT $4",
        )
        .bind(TENANT)
        .bind(&page.after)
        .bind(&page.prefix)
        .bind(page::ROWS)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(metadata).collect()
    }

    /// The versions that are kept, the oldest first.
    pub(crate) async fn resource_history(
        &self,
        path: &ResourcePath,
    ) -> Result<Vec<Metadata>, StoreError> {
        let rows = sqlx::query(
            "SELECT path, bytes, version, updated FROM resource_version
             WHERE tenant = $1 AND path = $2 ORDER BY version LIMIT $3",
        )
        .bind(TENANT)
        .bind(path.to_string())
        .bind(VERSIONS)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(metadata).collect()
    }

    pub(crate) async fn key_status(&self) -> Result<KeyStatus, StoreError> {
        let rows = sqlx::query("SELECT master, COUNT(*) FROM resource_version GROUP BY master")
            .fetch_all(&self.read)
            .await?;
        let count = |row: &sqlx::any::AnyRow| Ok((row.try_get(0)?, row.try_get(1)?));
        Ok(KeyStatus {
            newest: self.keys.newest(),
            known: self.keys.known(),
            versions: rows.iter().map(count).collect::<Result<_, StoreError>>()?,
        })
    }

    /// Wraps some data keys anew that an older master key wraps. Contents stay as they are, and readers
    /// see one wrapping or the other. What a key wraps that is not known here stays as it is:
    /// [`KeyStatus`] tells of it. What does not open is passed over: it is no reason to keep an old key
    /// for the others.
    pub(crate) async fn rewrap(&self) -> Result<Rewrap, StoreError> {
        let newest = self.keys.newest();
        let mut all = Rewrap::default();
        for old in self.keys.known().iter().filter(|id| **id != newest) {
            let mut after = (String::new(), 0);
            loop {
                let rows = self.wrapped_by(old, &after).await?;
                let Some(last) = rows.last() else { break };
                after = (last.0.clone(), last.1);
                let before = all.wrapped;
                self.wrap_anew(rows, &mut all).await?;
                // That is enough for one step, and the next one begins with what is left.
                if all.wrapped > before {
                    break;
                }
            }
        }
        Ok(all)
    }

    /// Versions of resources by path and number, from the one after `after` on.
    async fn wrapped_by(
        &self,
        master: &str,
        after: &(String, i64),
    ) -> Result<Vec<(String, i64, Wrapped)>, StoreError> {
        let rows = sqlx::query(
            "SELECT path, version, wrapped, master FROM resource_version
             WHERE tenant = $1 AND master = $2 AND (path > $3 OR (path = $3 AND version > $4))
             ORDER BY path, version LIMIT $5",
        )
        .bind(TENANT)
        .bind(master)
        .bind(&after.0)
        .bind(after.1)
        .bind(REWRAPPED)
        .fetch_all(&self.read)
        .await?;
        rows.iter()
            .map(|row| {
                let wrapped = Wrapped {
                    bytes: row.try_get(2)?,
                    master: row.try_get(3)?,
                };
                Ok((row.try_get(0)?, row.try_get(1)?, wrapped))
            })
            .collect()
    }

    async fn wrap_anew(
        &self,
        rows: Vec<(String, i64, Wrapped)>,
        all: &mut Rewrap,
    ) -> Result<(), StoreError> {
        let mut opened = Vec::with_capacity(rows.len());
        for (path, version, old) in rows {
            match self.keys.unwrap(&key_place(&path, version), &old) {
                Ok(key) => opened.push((path, version, old, key)),
                Err(_) => {
                    all.passed_over += 1;
                    all.first = all.first.take().or(Some((path, version)));
                }
            }
        }
        if opened.is_empty() {
            return Ok(());
        }
        let mut change = self.begin().await?;
        all.wrapped += opened.len();
        for (path, version, old, key) in opened {
            let new = self.keys.wrap(&key_place(&path, version), &key)?;
            sqlx::query(
                "UPDATE resource_version SET wrapped = $1, master = $2
                 WHERE tenant = $3 AND path = $4 AND version = $5 AND master = $6",
            )
            .bind(new.bytes)
            .bind(new.master)
            .bind(TENANT)
            .bind(path)
            .bind(version)
            .bind(old.master)
            .execute(&mut *change)
            .await?;
        }
        Ok(change.commit().await?)
    }
}

/// The entry with the version that the change made.
fn numbered(entry: &Entry, version: i64) -> Entry {
    let mut entry = entry.clone();
    entry.versions.resource = version;
    entry
}

pub(super) async fn insert_version(
    change: &mut Transaction<'static, Any>,
    keys: &dyn MasterKeys,
    path: &str,
    version: i64,
    plain: &[u8],
    now: i64,
) -> Result<(), StoreError> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    rand::rng().fill_bytes(&mut *key);
    let sealed = Sealer::from_bytes(&key).seal(&place(path, version), plain)?;
    let wrapped = keys.wrap(&key_place(path, version), &*key)?;
    sqlx::query(
        "INSERT INTO resource_version
         (tenant, path, version, bytes, updated, sealed, wrapped, master)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(TENANT)
    .bind(path)
    .bind(version)
    .bind(length(plain))
    .bind(now)
    .bind(sealed)
    .bind(wrapped.bytes)
    .bind(wrapped.master)
    .execute(&mut **change)
    .await?;
    Ok(())
}

pub(super) fn length(plain: &[u8]) -> i64 {
    i64::try_from(plain.len()).unwrap_or(i64::MAX)
}

fn metadata(row: &sqlx::any::AnyRow) -> Result<Metadata, StoreError> {
    let path: String = row.try_get(0)?;
    Ok(Metadata {
        path: path.parse().map_err(|_| StoreError::Content("resource"))?,
        bytes: row.try_get(1)?,
        version: row.try_get(2)?,
        updated: row.try_get(3)?,
    })
}

pub(super) fn sealer(key: &[u8]) -> Result<Sealer, SealError> {
    key.try_into()
        .map(Sealer::from_bytes)
        .map_err(|_| SealError)
}

pub(super) fn place(path: &str, version: i64) -> String {
    format!("kbs resource 2\n{TENANT}\n{path}\n{version}")
}

pub(super) fn key_place(path: &str, version: i64) -> String {
    format!("kbs data key 2\n{TENANT}\n{path}\n{version}")
}
