//! What outlives the process: resources, policies, reference values and the record, in one SQLite
//! file, or on a PostgreSQL server that many brokers share.
//!
//! What is answered is on the disk. Each row names its tenant; there is one. Resources are sealed, so
//! a copy of the database alone gives none away.

mod address;
mod change;
mod checkpoint;
mod figures;
mod forget;
mod page;
mod policy;
mod probe;
mod reach;
mod reader;
mod record;
mod reference;
mod resource;
mod schema;
mod sealed;
mod search;
mod standing;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor, Transaction, any::AnyPoolOptions};
use tokio::sync::mpsc;

pub(crate) use address::Address;
use address::Engine;
pub(crate) use change::{Change, Mark, REFERENCES};
pub(crate) use figures::Figures;
pub(crate) use forget::Forget;
pub(crate) use page::Page;
pub use policy::PolicyVersion;
pub(crate) use probe::{Found, probe, unknown};
pub(crate) use reference::{Mode, Touched};
pub use reference::{ReferenceState, ReferenceVersion};
pub use resource::{KeyStatus, Metadata};
pub(crate) use sealed::Sealed;

use crate::{master::MasterKeys, seal::SealError};

/// The one tenant.
const TENANT: &str = "default";
/// Connections that read.
const CONNECTIONS: u32 = 4;
/// Connections that write to PostgreSQL. They take turns; each that a frozen broker leaves in the line for
/// one holds up the others for as long as the server lets it, and both together for less than others wait.
const WRITERS: u32 = 2;
/// Connections that look through the record: with one for all, auditors take one processor at most.
const SEARCHES: u32 = 1;
/// How long a request waits for a connection: shorter than its own time.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a server may take for a word on a connection that was idle.
const ANSWER: Duration = Duration::from_secs(2);

/// A broker that is frozen or cut off in the middle of a change holds the turn to write, and all others
/// wait for it: so a server ends, within seconds, a connection that has the turn and does nothing, or
/// that nobody is at the other end of. Who waits for a turn gives up later than that.
const SHORT_TURNS: &str = "SET idle_in_transaction_session_timeout = '3s'; SET lock_timeout = '8s'; \
     SET statement_timeout = '20s'; SET tcp_user_timeout = '5s'; SET tcp_keepalives_idle = 5; \
     SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3;";
/// A change of the tables may take long, and others wait for it.
const LONG_TURN: &str = "SET LOCAL idle_in_transaction_session_timeout = '60s'; \
     SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0;";

/// Brokers on one server write one after the other, as those on one file do: a reader of the record
/// who has seen a number has then seen all the smaller ones.
const WRITE_LOCK: &str = "SELECT pg_advisory_xact_lock(7105882332)";

/// The side that writes. SQLite has one writer at a time, so there is one connection for it.
#[derive(Clone)]
struct Writer {
    pool: AnyPool,
    engine: Engine,
}

impl Writer {
    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let mut change = self.pool.begin_with(self.engine.begin_write()).await?;
        if self.engine == Engine::Postgres {
            sqlx::raw_sql(WRITE_LOCK).execute(&mut *change).await?;
        }
        Ok(change)
    }
}

#[derive(Clone)]
pub(crate) struct Store {
    read: AnyPool,
    /// For who looks through the record: releases do not wait for it.
    search: AnyPool,
    writer: Writer,
    keys: Arc<dyn MasterKeys>,
    reader: mpsc::Sender<reader::Waiting>,
    recorder: mpsc::Sender<record::Waiting>,
    writes: Arc<figures::Writes>,
    seen: Arc<change::Seen>,
}

impl Store {
    /// Opens a database, and makes or renews its tables.
    ///
    /// # Errors
    /// Names the file or the server, and what is wrong with it.
    pub(crate) async fn open(
        address: &Address,
        keys: Arc<dyn MasterKeys>,
    ) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        reach::reach(address).await?;
        let opened = Self::open_reached(address, keys).await;
        opened.map_err(|error| address.told(error))
    }

    async fn open_reached(
        address: &Address,
        keys: Arc<dyn MasterKeys>,
    ) -> Result<Self, StoreError> {
        let engine = address.engine;
        let writers = match engine {
            Engine::Sqlite => 1,
            Engine::Postgres => WRITERS,
        };
        let pool = connect(address, writers).await?;
        schema::migrate(&pool, engine, &*keys).await?;
        let masters = probe::masters(&mut *pool.acquire().await?).await?;
        if let Some(unknown) = probe::unknown(masters, &*keys) {
            return Err(unknown);
        }
        let writer = Writer { pool, engine };
        let read = connect(address, CONNECTIONS).await?;
        let search = connect(address, SEARCHES).await?;
        let (recorder, waiting) = mpsc::channel(record::WAITING);
        tokio::spawn(record::write_batches(writer.clone(), waiting));
        let (reader, waiting) = mpsc::channel(reader::WAITING);
        tokio::spawn(reader::read_batches(read.clone(), waiting));
        if engine == Engine::Sqlite {
            tokio::spawn(checkpoint::run(read.clone()));
        }
        Ok(Self {
            read,
            search,
            writer,
            keys,
            reader,
            recorder,
            writes: Arc::default(),
            seen: Arc::default(),
        })
    }

    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.search.close().await;
        self.writer.pool.close().await;
    }

    /// Looks for master keys that were added; those that are known stay where that fails.
    pub(crate) fn reload_keys(&self) {
        if let Err(error) = self.keys.reload() {
            tracing::error!(%error, "the store's key cannot be read again");
        }
    }

    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        self.writer.begin().await
    }
}

/// Settings that are a connection's own.
async fn settle(connection: &mut AnyConnection, engine: Engine) -> Result<(), sqlx::Error> {
    match engine {
        Engine::Sqlite => {
            let settings = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; \
                            PRAGMA synchronous = FULL;";
            connection.execute(settings).await?;
            connection.execute(checkpoint::NOT_BY_WRITERS).await?;
        }
        Engine::Postgres => {
            connection.execute(SHORT_TURNS).await?;
        }
    }
    Ok(())
}

/// Whether a connection that was idle is one still. One whose packets go nowhere would be waited for
/// until the request's own time is over, and the next one after it.
async fn answers(connection: &mut AnyConnection, engine: Engine) -> Result<bool, sqlx::Error> {
    // A file does not go away as a server does.
    if engine == Engine::Sqlite {
        return Ok(true);
    }
    let answered = tokio::time::timeout(ANSWER, connection.ping()).await;
    let silent = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    answered.map_err(silent)??;
    Ok(true)
}

async fn connect(address: &Address, connections: u32) -> Result<AnyPool, StoreError> {
    let engine = address.engine;
    let pool = AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .test_before_acquire(false)
        .before_acquire(move |connection, _| Box::pin(answers(connection, engine)))
        .after_connect(move |connection, _| Box::pin(settle(connection, engine)))
        .connect(&address.url)
        .await?;
    Ok(pool)
}

/// The store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error("store: {0}")]
    Sql(#[from] sqlx::Error),
    /// A database that cannot be used, or not now.
    #[error("store: {place}: {cause}")]
    Unusable {
        /// The file or the server.
        place: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Another program's.
    #[error(
        "it holds tables of another program ({0}), and none by which a broker knows its own: give the broker a database of its own"
    )]
    Foreign(String),
    /// What an older program kept and this one does not.
    #[error("store: the reference value {0}")]
    Reference(String),
    /// A resource does not open.
    #[error("store: {0}: is the store's key the one that it was written with?")]
    Seal(#[from] SealError),
    /// A row that this program did not write.
    #[error("store: a {0} in it cannot be read")]
    Content(&'static str),
    /// Another key file, or one that lost keys.
    #[error("store: resources are under master keys that are not here: {0}")]
    Masters(String),
    /// Another database than before, or an older state of it.
    #[error(
        "store: it is older than what this broker has seen, as after a restore: restart the broker"
    )]
    WentBack,
    /// Written by a newer program.
    #[error("store: written by a newer kbs: start that one")]
    Newer,
    /// The address.
    #[error("store: {0}")]
    Address(String),
    /// More, or more of one thing, than is kept.
    #[error("{0}")]
    Limit(String),
    /// A resource.
    #[error("store: a resource cannot be read: {0}")]
    Read(String),
    /// The record.
    #[error("store: the record cannot be written: {0}")]
    Record(String),
    /// A search of the record that takes too long.
    #[error(
        "there is more on the record than can be looked through in time: narrow it by `since` and `until`, \
         begin `after` a later number, or try again when others have ended theirs"
    )]
    Slow,
    /// A time that is none.
    #[error("not a time in RFC 3339, such as 2030-01-31T12:00:00Z")]
    Time,
}
