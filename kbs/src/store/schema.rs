//! The tables, the steps that lead to them, and which of them a database has been through.
//!
//! The text is SQLite's; the few words that PostgreSQL has other names for are replaced in it.

use policies::reference::{ReferenceError, ReferenceValue};
use serde::Deserialize;
use sqlx::{Any, AnyConnection, AnyPool, Row, Transaction};

use super::{
    Engine, LONG_TURN, StoreError, TENANT, change, record, resource,
    standing::{Standing, standing},
};
use crate::{
    master::MasterKeys,
    record::{Entry, Judged, Kind, Outcome},
};

/// Each step brings the database from the version of its index to the next one.
pub(super) const STEPS: [&str; 6] = [
    "
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
    ",
    // A tenant in each row, versions, data keys, and the record in place of the denials.
    "
    ALTER TABLE resource RENAME TO old_resource;
    ALTER TABLE policy RENAME TO old_policy;
    ALTER TABLE reference_value RENAME TO old_reference_value;
    CREATE TABLE resource (
        tenant TEXT NOT NULL, path TEXT NOT NULL, version INTEGER NOT NULL,
        bytes INTEGER NOT NULL, updated INTEGER NOT NULL, present INTEGER NOT NULL,
        CONSTRAINT resource_2 PRIMARY KEY (tenant, path)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE resource_version (
        tenant TEXT NOT NULL, path TEXT NOT NULL, version INTEGER NOT NULL,
        bytes INTEGER NOT NULL, updated INTEGER NOT NULL,
        sealed BLOB NOT NULL, wrapped BLOB NOT NULL, master TEXT NOT NULL,
        PRIMARY KEY (tenant, path, version)
    ) STRICT;
    CREATE INDEX resource_version_master ON resource_version (master);
    CREATE TABLE policy (
        tenant TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,
        rego TEXT NOT NULL, updated INTEGER NOT NULL,
        CONSTRAINT policy_2 PRIMARY KEY (tenant, id, version)
    ) STRICT;
    INSERT INTO policy (tenant, id, version, rego, updated)
        SELECT 'default', id, 1, rego, updated FROM old_policy;
    CREATE TABLE reference_value (
        tenant TEXT NOT NULL, id TEXT NOT NULL, value TEXT NOT NULL, updated INTEGER NOT NULL,
        CONSTRAINT reference_value_2 PRIMARY KEY (tenant, id)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO reference_value (tenant, id, value, updated)
        SELECT 'default', id, value, 0 FROM old_reference_value;
    CREATE TABLE change (
        tenant TEXT NOT NULL, what TEXT NOT NULL, counter INTEGER NOT NULL,
        PRIMARY KEY (tenant, what)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO change (tenant, what, counter) SELECT tenant, id, version FROM policy;
    CREATE TABLE record (
        id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, time INTEGER NOT NULL,
        kind TEXT NOT NULL, subject TEXT NOT NULL, resource TEXT NOT NULL, result TEXT NOT NULL,
        ticket TEXT NOT NULL, evidence TEXT NOT NULL, versions TEXT NOT NULL, claims TEXT NOT NULL
    ) STRICT;
    CREATE INDEX record_time ON record (tenant, time);
    CREATE INDEX record_ticket ON record (tenant, ticket);
    ",
    // Policies that end, changes in their order, and reference values with who, from when, until when.
    r#"
    ALTER TABLE record ADD COLUMN attestation TEXT NOT NULL DEFAULT '';
    ALTER TABLE policy ADD COLUMN present INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE change ADD COLUMN moment INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX change_moment ON change (tenant, moment);
    ALTER TABLE reference_value RENAME TO old_reference_value;
    CREATE TABLE reference_value (
        id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, name TEXT NOT NULL,
        value TEXT NOT NULL, provenance TEXT NOT NULL, not_before INTEGER, not_after INTEGER,
        state TEXT NOT NULL, version INTEGER NOT NULL, changed INTEGER NOT NULL,
        updated INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX reference_value_name ON reference_value (tenant, name);
    CREATE INDEX reference_value_changed ON reference_value (tenant, changed);
    INSERT INTO change (tenant, what, counter)
        SELECT DISTINCT tenant, 'reference-value', 1 FROM old_reference_value WHERE true
        ON CONFLICT DO NOTHING;
    INSERT INTO reference_value (tenant, name, value, provenance, state, version, changed, updated)
        SELECT o.tenant, o.id, o.value, '{"by":"administrator","who":"not known any more"}',
        'active', c.counter, c.counter, o.updated
        FROM old_reference_value o JOIN change c
        ON c.tenant = o.tenant AND c.what = 'reference-value' ORDER BY o.id;
    DROP TABLE old_reference_value;
    "#,
    // What was released has no ticket to be found by.
    "
    DROP INDEX record_ticket;
    CREATE INDEX record_ticket ON record (tenant, ticket) WHERE ticket <> '';
    ",
    // Refusals beyond those that are kept are found without a look at what was released.
    "
    CREATE INDEX record_denied ON record (tenant, id) WHERE result = 'denied';
    ",
    // What tells a change from one of the same number after a restore; room for a probe; when the clock
    // was last believed; and which entries of the record guests write as they like.
    "
    CREATE TABLE kbs_clock (tenant TEXT NOT NULL PRIMARY KEY, believed INTEGER NOT NULL) STRICT;
    ALTER TABLE record ADD COLUMN minor INTEGER NOT NULL DEFAULT 0;
    UPDATE record SET minor = 1 WHERE result = 'denied';
    DROP INDEX record_denied;
    CREATE INDEX record_minor ON record (tenant, id) WHERE minor = 1;
    CREATE TABLE kbs_probe (id INTEGER NOT NULL PRIMARY KEY, filling BLOB NOT NULL) STRICT;
    CREATE TABLE change_stamp (
        tenant TEXT NOT NULL, moment INTEGER NOT NULL, stamp TEXT NOT NULL,
        PRIMARY KEY (tenant, moment)
    ) STRICT, WITHOUT ROWID;
    ",
];
/// Any number that no other program of the database takes: brokers that start at once migrate one
/// after the other.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7105882331)";

/// The step from which on a reference value's name has a form.
pub(super) const NAMED: usize = 2;
/// The step from which on a change has a stamp.
const STAMPED: usize = 5;

/// Brings a database to the newest version, in one transaction.
pub(super) async fn migrate(
    pool: &AnyPool,
    engine: Engine,
    keys: &dyn MasterKeys,
) -> Result<(), StoreError> {
    let mut change = pool.begin_with(engine.begin_write()).await?;
    if engine == Engine::Postgres {
        sqlx::raw_sql(LONG_TURN).execute(&mut *change).await?;
        sqlx::raw_sql(LOCK).execute(&mut *change).await?;
    }
    let found = match standing(&mut change, engine).await? {
        Standing::Empty => 0,
        Standing::At(version) => version,
    };
    write_version(&mut change, engine, found).await?;
    let done = usize::try_from(found).unwrap_or(usize::MAX);
    for (number, step) in STEPS.iter().enumerate().skip(done) {
        if number == NAMED {
            check_names(&mut change).await?;
        }
        let text = sqlx::AssertSqlSafe(engine.dialect(step));
        sqlx::raw_sql(text).execute(&mut *change).await?;
        if number == 1 {
            adopt_resources(&mut change, keys).await?;
        }
        if number == STAMPED {
            change::adopt(&mut change).await?;
        }
    }
    if done < 2 {
        // An entry of the record has the columns of the newest step.
        adopt_denials(&mut change).await?;
    }
    if done < STEPS.len() {
        sqlx::query("UPDATE kbs_schema SET version = $1")
            .bind(i64::try_from(STEPS.len()).unwrap_or(i64::MAX))
            .execute(&mut *change)
            .await?;
    }
    Ok(change.commit().await?)
}

/// The version is in a table of its own; before there was one, in SQLite's `user_version`.
async fn write_version(
    change: &mut Transaction<'static, Any>,
    engine: Engine,
    found: i64,
) -> Result<(), StoreError> {
    let table = engine.dialect("CREATE TABLE IF NOT EXISTS kbs_schema (version INTEGER NOT NULL)");
    sqlx::raw_sql(sqlx::AssertSqlSafe(table))
        .execute(&mut **change)
        .await?;
    sqlx::query(
        "INSERT INTO kbs_schema (version)
         SELECT CAST($1 AS BIGINT) WHERE NOT EXISTS (SELECT 1 FROM kbs_schema)",
    )
    .bind(found)
    .execute(&mut **change)
    .await?;
    Ok(())
}

/// Older programs took any name. Nothing is changed yet where one is refused.
pub(super) async fn check_names(database: &mut AnyConnection) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT id FROM reference_value ORDER BY id")
        .fetch_all(database)
        .await?;
    for row in rows {
        let name: String = row.try_get(0)?;
        ReferenceValue::new(&name).map_err(|error| unkept(&name, "id", &error))?;
    }
    Ok(())
}

/// A reference value that cannot be kept by its name, and how to be rid of it.
pub(super) fn unkept(name: &str, column: &str, error: &ReferenceError) -> StoreError {
    StoreError::Reference(format!(
        "{name:?} cannot be kept: {error}. Delete it with the kbs that wrote it, or delete the row with \
         this `{column}` from the table `reference_value`, and start again: nothing was changed"
    ))
}

/// Seals again, with data keys, what was sealed under the master key itself.
async fn adopt_resources(
    change: &mut Transaction<'static, Any>,
    keys: &dyn MasterKeys,
) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT path, sealed, version, updated FROM old_resource")
        .fetch_all(&mut **change)
        .await?;
    for row in rows {
        let (path, sealed): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let plain = keys.open_direct(&path, &sealed)?;
        let (version, updated): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
        sqlx::query(
            "INSERT INTO resource (tenant, path, version, bytes, updated, present)
             VALUES ($1, $2, $3, $4, $5, 1)",
        )
        .bind(TENANT)
        .bind(&path)
        .bind(version)
        .bind(resource::length(&plain))
        .bind(updated)
        .execute(&mut **change)
        .await?;
        resource::insert_version(change, keys, &path, version, &plain, updated).await?;
    }
    let drop = "DROP TABLE old_resource; DROP TABLE old_policy; DROP TABLE old_reference_value;";
    sqlx::raw_sql(drop).execute(&mut **change).await?;
    Ok(())
}

/// A refusal, as it was kept before there was a record.
#[derive(Deserialize)]
struct Denial {
    ticket: String,
    time: String,
    step: String,
    subject: String,
    reasons: Vec<Judged>,
}

async fn adopt_denials(change: &mut Transaction<'static, Any>) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT record FROM denial ORDER BY number")
        .fetch_all(&mut **change)
        .await?;
    for row in rows {
        let text: String = row.try_get(0)?;
        let old: Denial = serde_json::from_str(&text).map_err(|_| StoreError::Content("denial"))?;
        let kind = if old.step == "attest" {
            Kind::Attest
        } else {
            Kind::Release
        };
        let mut entry = Entry::new(kind, Outcome::Denied, String::new(), old.subject);
        (entry.ticket, entry.time, entry.claims) = (old.ticket, old.time, old.reasons);
        record::insert(change, &[&entry]).await?;
    }
    sqlx::raw_sql("DROP TABLE denial")
        .execute(&mut **change)
        .await?;
    Ok(())
}
