//! How far a database has come, and whether it is a broker's at all: told by its tables, before
//! anything is changed.

use sqlx::{AnyConnection, Row};

use super::{Engine, StoreError, schema::STEPS};

/// The tables of the first version, which had none for its number.
const FIRST: [&str; 4] = ["denial", "policy", "reference_value", "resource"];
/// Those of any version that a database could have already.
const OURS: [&str; 13] = [
    "change",
    "change_stamp",
    "denial",
    "kbs_clock",
    "kbs_probe",
    "kbs_schema",
    "old_policy",
    "old_reference_value",
    "old_resource",
    "policy",
    "record",
    "reference_value",
    "resource",
];
/// Tables that are named in an error.
const NAMED: usize = 5;

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing of a broker's, and nothing in its way.
    Empty,
    /// A broker's tables, after this many steps.
    At(i64),
}

/// Looks at the tables.
///
/// # Errors
/// Names the tables of a program that is none of ours, and a version that is newer than this program.
pub(super) async fn standing(
    database: &mut AnyConnection,
    engine: Engine,
) -> Result<Standing, StoreError> {
    let tables = tables(database, engine).await?;
    if !tables.iter().any(|name| name == "kbs_schema") {
        return unnumbered(database, engine, tables).await;
    }
    let version: i64 = sqlx::query("SELECT version FROM kbs_schema")
        .fetch_one(&mut *database)
        .await?
        .try_get(0)?;
    if version > i64::try_from(STEPS.len()).unwrap_or(i64::MAX) {
        return Err(StoreError::Newer);
    }
    Ok(Standing::At(version))
}

async fn unnumbered(
    database: &mut AnyConnection,
    engine: Engine,
    tables: Vec<String>,
) -> Result<Standing, StoreError> {
    let others = match engine {
        // A schema may have room for others beside us, and functions that were added have tables.
        Engine::Postgres => {
            let ours = |name: &String| OURS.contains(&name.as_str());
            tables.into_iter().filter(ours).collect()
        }
        Engine::Sqlite => {
            let version: i64 = sqlx::query("PRAGMA user_version")
                .fetch_one(&mut *database)
                .await?
                .try_get(0)?;
            if version == 1 && tables == FIRST {
                return Ok(Standing::At(1));
            }
            tables
        }
    };
    if others.is_empty() {
        return Ok(Standing::Empty);
    }
    let shown = others.iter().take(NAMED);
    let shown: Vec<String> = shown
        .map(|name| name.escape_default().to_string())
        .collect();
    let more = others.len().saturating_sub(NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Err(StoreError::Foreign(shown.join(", ") + &more))
}

/// In the order of their names.
async fn tables(database: &mut AnyConnection, engine: Engine) -> Result<Vec<String>, StoreError> {
    let all = match engine {
        Engine::Sqlite => {
            "SELECT name FROM sqlite_master
             WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite^_%' ESCAPE '^'"
        }
        Engine::Postgres => {
            "SELECT CAST(c.relname AS TEXT) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
             AND n.nspname = ANY (current_schemas(false))"
        }
    };
    let rows = sqlx::query(all).fetch_all(database).await?;
    let names = rows.iter().map(|row| row.try_get(0));
    let mut names = names.collect::<Result<Vec<String>, _>>()?;
    names.sort();
    Ok(names)
}
