//! The first connection to a database: where there will be none, what is wrong with which file or
//! server is said within seconds. A pool would try again for longer, and forget why it failed.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use sqlx::{
    AnyConnection, ConnectOptions, Connection, Executor, any::AnyConnectOptions,
    error::DatabaseError,
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Address, Engine, StoreError};

/// For a server to let us in, and for others who start beside us: a server may start itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a file: after a crash, its log is read through first. Who finds it held knows it earlier.
const RECOVERY: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);
const PRIVATE: u32 = 0o600;
/// SQLite's numbers, in the lowest byte of a code.
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const CORRUPT: u32 = 11;
const CANNOT_OPEN: u32 = 14;
const NOT_A_DATABASE: u32 = 26;

/// Makes the file where there is none, for nobody else to read: what SQLite puts beside it is as open
/// as the file is. Then opens and closes a connection.
///
/// # Errors
/// Names the file or the server, and what is wrong with it.
pub(super) async fn reach(address: &Address) -> Result<(), StoreError> {
    if let Some(file) = &address.file {
        make(file).map_err(|cause| address.unusable(cause))?;
    }
    let database = connect(address, &address.url, true).await?;
    // Whether it closes is no matter: it answered.
    drop(database.close().await);
    Ok(())
}

/// A connection that changes nothing.
///
/// # Errors
/// As [`reach`].
pub(super) async fn look(address: &Address) -> Result<AnyConnection, StoreError> {
    if let Some(file) = &address.file {
        writable(file).map_err(|cause| address.unusable(cause))?;
    }
    let url = address.url.replace("?mode=rwc", "?mode=ro");
    connect(address, &url, false).await
}

async fn connect(address: &Address, url: &str, writes: bool) -> Result<AnyConnection, StoreError> {
    let options: AnyConnectOptions = url.parse().map_err(StoreError::Sql)?;
    let options = options.disable_statement_logging();
    let start = Instant::now();
    let longest = match address.engine {
        Engine::Sqlite => RECOVERY,
        Engine::Postgres => PATIENCE,
    };
    let once = async || {
        let mut connection = options.connect().await?;
        if writes && address.engine == Engine::Sqlite {
            connection.execute("PRAGMA journal_mode = WAL").await?;
        }
        Ok::<_, sqlx::Error>(connection)
    };
    loop {
        let Ok(connected) = timeout_at(start + longest, once()).await else {
            let text = format!("it does not answer within {} seconds", longest.as_secs());
            return Err(address.unusable(text));
        };
        let again = start.elapsed() + PAUSE < PATIENCE;
        match connected {
            Ok(connection) => return Ok(connection),
            Err(error) if again && passes(address.engine, &error) => sleep(PAUSE).await,
            Err(error) => return Err(address.told(error.into())),
        }
    }
}

/// Whether it may be over in a moment.
fn passes(engine: Engine, error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() == io::ErrorKind::ConnectionRefused,
        sqlx::Error::Database(cause) => {
            cause.is_transient_in_connect_phase()
                || matches!(sqlite_code(engine, &**cause), Some(BUSY | LOCKED))
        }
        _ => false,
    }
}

fn sqlite_code(engine: Engine, error: &dyn DatabaseError) -> Option<u32> {
    let code = error.code().filter(|_| engine == Engine::Sqlite)?;
    Some(code.parse::<u32>().ok()? & 0xff)
}

fn make(file: &Path) -> Result<(), String> {
    let place = file.parent().filter(|place| place.is_dir());
    if place.is_none() {
        return Err("its directory does not exist: make it".to_owned());
    }
    if !file.exists() {
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .open(file);
        made.map_err(|error| format!("it cannot be made: {error}"))?;
    }
    writable(file)
}

fn writable(file: &Path) -> Result<(), String> {
    let cannot = |error: io::Error| format!("it cannot be opened: {error}");
    if fs::metadata(file).map_err(cannot)?.is_dir() {
        return Err("it is a directory: [store] `database` names a file".to_owned());
    }
    let opened = OpenOptions::new().read(true).write(true).open(file);
    opened.map(drop).map_err(cannot)
}

/// An error of a database in words for who runs it.
pub(super) fn words(engine: Engine, error: &sqlx::Error) -> String {
    let database = match error {
        sqlx::Error::Io(cause) => return format!("it cannot be reached: {cause}"),
        sqlx::Error::PoolTimedOut => return "it does not answer".to_owned(),
        sqlx::Error::Database(database) => database,
        other => return other.to_string(),
    };
    match sqlite_code(engine, &**database) {
        Some(NOT_A_DATABASE) => {
            "it is no database of SQLite, or is damaged: restore it from a backup".to_owned()
        }
        Some(CORRUPT) => "it is damaged: restore it from a backup".to_owned(),
        Some(BUSY | LOCKED) => "another program holds it: end that one".to_owned(),
        Some(CANNOT_OPEN) => {
            "it cannot be opened: may the broker write to its directory?".to_owned()
        }
        _ => database.to_string(),
    }
}
