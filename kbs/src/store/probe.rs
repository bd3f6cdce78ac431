//! What a database has in it, found without changing it.

use std::collections::BTreeSet;

use sqlx::{AnyConnection, ConnectOptions, Connection, Row, any::AnyConnectOptions};

use super::{Address, Engine, StoreError, schema};
use crate::master::MasterKeys;

/// What is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing of a broker's: it will be made.
    Empty,
    /// A broker's data.
    Data {
        /// Whether this program would bring its tables to a newer version first.
        older: bool,
        /// The ids of the master keys that its resources are under.
        masters: BTreeSet<String>,
    },
}

/// Looks at a database that exists.
///
/// # Errors
/// When it does not answer, or was written by a newer program.
pub(crate) async fn probe(address: &Address) -> Result<Found, StoreError> {
    sqlx::any::install_default_drivers();
    let url = address.url.replace("?mode=rwc", "?mode=ro");
    let options: AnyConnectOptions = url.parse()?;
    let mut database = options.disable_statement_logging().connect().await?;
    let found = look(&mut database, address.engine).await;
    database.close().await?;
    found
}

async fn look(database: &mut AnyConnection, engine: Engine) -> Result<Found, StoreError> {
    let exists = match engine {
        Engine::Sqlite => "SELECT COUNT(*) FROM sqlite_master WHERE name = 'kbs_schema'",
        Engine::Postgres => {
            "SELECT COUNT(*) FROM pg_tables
             WHERE tablename = 'kbs_schema' AND schemaname = ANY (current_schemas(false))"
        }
    };
    let tables: i64 = sqlx::query(exists)
        .fetch_one(&mut *database)
        .await?
        .try_get(0)?;
    if tables == 0 {
        return Ok(Found::Empty);
    }
    let version: i64 = sqlx::query("SELECT version FROM kbs_schema")
        .fetch_one(&mut *database)
        .await?
        .try_get(0)?;
    let newest = i64::try_from(schema::STEPS.len()).unwrap_or(i64::MAX);
    if version > newest {
        return Err(StoreError::Newer);
    }
    let masters = match version == newest {
        true => masters(database).await?,
        false => BTreeSet::new(),
    };
    Ok(Found::Data {
        older: version < newest,
        masters,
    })
}

/// The ids of the master keys that resources are under.
pub(super) async fn masters(database: &mut AnyConnection) -> Result<BTreeSet<String>, StoreError> {
    let rows = sqlx::query("SELECT DISTINCT master FROM resource_version")
        .fetch_all(database)
        .await?;
    let ids = rows.iter().map(|row| row.try_get(0));
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Those of them that are not known here.
pub(crate) fn unknown(masters: BTreeSet<String>, keys: &dyn MasterKeys) -> Option<StoreError> {
    let known = keys.known();
    let unknown: Vec<_> = masters
        .into_iter()
        .filter(|id| !known.contains(id))
        .collect();
    (!unknown.is_empty()).then(|| StoreError::Masters(unknown.join(", ")))
}
