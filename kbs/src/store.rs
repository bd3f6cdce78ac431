//! What outlives the process, in one SQLite file: resources, policies, reference values, denials.
//!
//! A write of an administrator is on the disk when it is answered. Denials are written without
//! waiting for the disk, since a guest can cause them at will, and only the newest are kept.
//! Resources are sealed, so a copy of the file alone gives none away.

use std::{path::Path, time::Duration};

use kbs_protocol::ResourcePath;
use serde::{Deserialize, Serialize};
use sqlx::{
    Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use zeroize::Zeroizing;

use crate::{
    denial::Denial,
    seal::{SealError, Sealer},
};

/// Denials that are kept; the oldest go first.
const DENIALS: i64 = 10_000;
/// Resources that a list shows.
const LISTED: i64 = 10_000;
/// How long a write waits for another one.
const BUSY: Duration = Duration::from_secs(10);

/// Each step brings the file from the version of its index to the next one.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE resource (
        path TEXT PRIMARY KEY, sealed BLOB NOT NULL, bytes INTEGER NOT NULL,
        version INTEGER NOT NULL, updated INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE policy (id TEXT PRIMARY KEY, rego TEXT NOT NULL, updated INTEGER NOT NULL)
        STRICT, WITHOUT ROWID;
    CREATE TABLE reference_value (id TEXT PRIMARY KEY, value TEXT NOT NULL)
        STRICT, WITHOUT ROWID;
    CREATE TABLE denial (
        number INTEGER PRIMARY KEY AUTOINCREMENT, ticket TEXT NOT NULL UNIQUE, record TEXT NOT NULL
    ) STRICT;
"];

pub(crate) struct Store {
    durable: SqlitePool,
    hasty: SqlitePool,
    sealer: Sealer,
}

/// What an administrator may see of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Its name.
    pub path: ResourcePath,
    /// Its size in the clear.
    pub bytes: i64,
    /// How often it was written, from 1.
    pub version: i64,
    /// Seconds since 1970 of the last write.
    pub updated: i64,
}

impl Store {
    pub(crate) async fn open(path: &Path, sealer: Sealer) -> Result<Self, StoreError> {
        let options = |synchronous| {
            SqliteConnectOptions::new()
                .filename(path)
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .busy_timeout(BUSY)
                .synchronous(synchronous)
        };
        let pool = SqlitePoolOptions::new();
        let durable = pool
            .clone()
            .max_connections(4)
            .connect_with(options(SqliteSynchronous::Full))
            .await?;
        migrate(&durable).await?;
        let hasty = pool
            .max_connections(1)
            .connect_with(options(SqliteSynchronous::Normal))
            .await?;
        Ok(Self {
            durable,
            hasty,
            sealer,
        })
    }

    pub(crate) async fn set_resource(
        &self,
        path: &ResourcePath,
        plain: &[u8],
        now: i64,
    ) -> Result<(), StoreError> {
        let name = path.to_string();
        let sealed = self.sealer.seal(&name, plain)?;
        sqlx::query(
            "INSERT INTO resource (path, sealed, bytes, version, updated) VALUES (?1, ?2, ?3, 1, ?4)
             ON CONFLICT (path) DO UPDATE SET sealed = ?2, bytes = ?3, version = version + 1, updated = ?4",
        )
        .bind(name)
        .bind(sealed)
        .bind(i64::try_from(plain.len()).unwrap_or(i64::MAX))
        .bind(now)
        .execute(&self.durable)
        .await?;
        Ok(())
    }

    pub(crate) async fn resource(
        &self,
        path: &ResourcePath,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let name = path.to_string();
        let row = sqlx::query("SELECT sealed FROM resource WHERE path = ?1")
            .bind(&name)
            .fetch_optional(&self.durable)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let sealed: &[u8] = row.try_get(0)?;
        Ok(Some(self.sealer.open(&name, sealed)?))
    }

    /// Whether there was one.
    pub(crate) async fn delete_resource(&self, path: &ResourcePath) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM resource WHERE path = ?1")
            .bind(path.to_string())
            .execute(&self.durable)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    pub(crate) async fn list_resources(&self) -> Result<Vec<Metadata>, StoreError> {
        let rows = sqlx::query(
            "SELECT path, bytes, version, updated FROM resource ORDER BY path LIMIT ?1",
        )
        .bind(LISTED)
        .fetch_all(&self.durable)
        .await?;
        rows.iter()
            .map(|row| {
                let path: String = row.try_get(0)?;
                Ok(Metadata {
                    path: path.parse().map_err(|_| StoreError::Content("resource"))?,
                    bytes: row.try_get(1)?,
                    version: row.try_get(2)?,
                    updated: row.try_get(3)?,
                })
            })
            .collect()
    }

    pub(crate) async fn set_policy(
        &self,
        id: &str,
        rego: &str,
        now: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO policy (id, rego, updated) VALUES (?1, ?2, ?3)
             ON CONFLICT (id) DO UPDATE SET rego = ?2, updated = ?3",
        )
        .bind(id)
        .bind(rego)
        .bind(now)
        .execute(&self.durable)
        .await?;
        Ok(())
    }

    pub(crate) async fn policy(&self, id: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT rego FROM policy WHERE id = ?1")
            .bind(id)
            .fetch_optional(&self.durable)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// All or none of them.
    pub(crate) async fn set_reference_values(
        &self,
        values: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), StoreError> {
        let mut change = self.durable.begin().await?;
        for (id, value) in values {
            sqlx::query(
                "INSERT INTO reference_value (id, value) VALUES (?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET value = ?2",
            )
            .bind(id)
            .bind(value.to_string())
            .execute(&mut *change)
            .await?;
        }
        Ok(change.commit().await?)
    }

    pub(crate) async fn reference_values(
        &self,
    ) -> Result<std::collections::BTreeMap<String, serde_json::Value>, StoreError> {
        let rows = sqlx::query("SELECT id, value FROM reference_value")
            .fetch_all(&self.durable)
            .await?;
        rows.iter()
            .map(|row| {
                let value: &str = row.try_get(1)?;
                let value = serde_json::from_str(value)
                    .map_err(|_| StoreError::Content("reference value"))?;
                Ok((row.try_get(0)?, value))
            })
            .collect()
    }

    pub(crate) async fn record(&self, denial: &Denial) -> Result<(), StoreError> {
        let text = serde_json::to_string(denial).map_err(|_| StoreError::Content("denial"))?;
        let done = sqlx::query("INSERT INTO denial (ticket, record) VALUES (?1, ?2)")
            .bind(&denial.ticket)
            .bind(text)
            .execute(&self.hasty)
            .await?;
        sqlx::query("DELETE FROM denial WHERE number <= ?1")
            .bind(done.last_insert_rowid() - DENIALS)
            .execute(&self.hasty)
            .await?;
        Ok(())
    }

    pub(crate) async fn denial(&self, ticket: &str) -> Result<Option<Denial>, StoreError> {
        let row = sqlx::query("SELECT record FROM denial WHERE ticket = ?1")
            .bind(ticket)
            .fetch_optional(&self.hasty)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let text: &str = row.try_get(0)?;
        serde_json::from_str(text)
            .map(Some)
            .map_err(|_| StoreError::Content("denial"))
    }

    pub(crate) async fn close(&self) {
        self.hasty.close().await;
        self.durable.close().await;
    }
}

/// The file's version is SQLite's own `user_version`; a step and its version are one transaction.
async fn migrate(pool: &SqlitePool) -> Result<(), StoreError> {
    let version: i64 = sqlx::query("PRAGMA user_version")
        .fetch_one(pool)
        .await?
        .try_get(0)?;
    let done = usize::try_from(version).unwrap_or(usize::MAX);
    if done > MIGRATIONS.len() {
        return Err(StoreError::Newer);
    }
    for (number, step) in MIGRATIONS.iter().enumerate().skip(done) {
        let mut change = pool.begin().await?;
        sqlx::raw_sql(*step).execute(&mut *change).await?;
        let version = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {}", number + 1));
        sqlx::raw_sql(version).execute(&mut *change).await?;
        change.commit().await?;
    }
    Ok(())
}

/// The store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite.
    #[error("store: {0}")]
    Sql(#[from] sqlx::Error),
    /// A resource does not open.
    #[error("store: {0}: is the store's key the one that it was written with?")]
    Seal(#[from] SealError),
    /// A row that this program did not write.
    #[error("store: a {0} in it cannot be read")]
    Content(&'static str),
    /// Written by a newer program.
    #[error("store: written by a newer kbs: start that one")]
    Newer,
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store(dir: &tempfile::TempDir, sealer: Sealer) -> Store {
        Store::open(&dir.path().join("kbs.sqlite"), sealer)
            .await
            .ok()
            .unwrap()
    }

    #[tokio::test]
    async fn resources_are_versioned_sealed_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, Sealer::new_key().as_bytes()).unwrap();
        let path: ResourcePath = "a/b/c".parse().unwrap();
        let first = store(&dir, Sealer::read(&key).ok().unwrap()).await;
        first.set_resource(&path, b"old", 1).await.unwrap();
        first
            .set_resource(&path, b"hidden treasure", 2)
            .await
            .unwrap();
        first.close().await;
        let bytes = std::fs::read(dir.path().join("kbs.sqlite")).unwrap();
        assert!(!bytes.windows(15).any(|w| w == b"hidden treasure"));
        let second = store(&dir, Sealer::read(&key).ok().unwrap()).await;
        assert_eq!(
            &**second.resource(&path).await.unwrap().unwrap(),
            b"hidden treasure"
        );
        let listed = second.list_resources().await.unwrap();
        assert_eq!(
            (listed[0].version, listed[0].bytes, listed[0].updated),
            (2, 15, 2)
        );
        assert!(second.delete_resource(&path).await.unwrap());
        assert!(!second.delete_resource(&path).await.unwrap());
        second.close().await;
        let other = store(&dir, Sealer::ephemeral()).await;
        assert!(other.resource(&path).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn another_key_opens_nothing_and_a_newer_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path: ResourcePath = "a/b/c".parse().unwrap();
        let first = store(&dir, Sealer::ephemeral()).await;
        first.set_resource(&path, b"x", 1).await.unwrap();
        let other = store(&dir, Sealer::ephemeral()).await;
        assert!(matches!(
            other.resource(&path).await,
            Err(StoreError::Seal(_))
        ));
        sqlx::raw_sql("PRAGMA user_version = 99")
            .execute(&first.durable)
            .await
            .unwrap();
        let newer = Store::open(&dir.path().join("kbs.sqlite"), Sealer::ephemeral()).await;
        assert!(matches!(newer, Err(StoreError::Newer)));
    }

    #[tokio::test]
    async fn only_the_newest_denials_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir, Sealer::ephemeral()).await;
        let old = Denial::new("attest", "x", Vec::new());
        store.record(&old).await.unwrap();
        assert_eq!(store.denial(&old.ticket).await.unwrap(), Some(old.clone()));
        sqlx::query("UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'denial'")
            .bind(DENIALS + 1)
            .execute(&store.hasty)
            .await
            .unwrap();
        let new = Denial::new("attest", "x", Vec::new());
        store.record(&new).await.unwrap();
        assert_eq!(store.denial(&old.ticket).await.unwrap(), None);
        assert_eq!(store.denial(&new.ticket).await.unwrap(), Some(new));
    }
}
