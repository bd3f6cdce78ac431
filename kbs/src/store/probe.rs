//! What a database has in it, found without changing it.

use std::collections::BTreeSet;

use sqlx::{AnyConnection, Connection, Row};

use super::{
    Address, Engine, StoreError, reach, schema,
    standing::{Standing, standing},
};
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
/// When it does not answer, or was written by a newer program or another one.
pub(crate) async fn probe(address: &Address) -> Result<Found, StoreError> {
    sqlx::any::install_default_drivers();
    let mut database = reach::look(address).await?;
    let found = look(&mut database, address.engine).await;
    drop(database.close().await);
    found.map_err(|error| address.told(error))
}

async fn look(database: &mut AnyConnection, engine: Engine) -> Result<Found, StoreError> {
    let Standing::At(version) = standing(database, engine).await? else {
        return Ok(Found::Empty);
    };
    if usize::try_from(version).is_ok_and(|version| version <= schema::NAMED) {
        schema::check_names(database).await?;
    }
    let newest = i64::try_from(schema::STEPS.len()).unwrap_or(i64::MAX);
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
