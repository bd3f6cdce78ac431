//! The record in the database: entries are added; only retention removes any.
//!
//! Decisions arrive by the thousand, and each has to be on the disk before its guest is answered.
//! One task takes all that wait and writes them as one transaction, so that the disk is waited for
//! once for all of them. Where several came at once, it lets a moment pass for their siblings: what
//! a commit costs is then shared by many, and a guest that is alone waits for nobody.

use std::{sync::LazyLock, time::Duration};

use sqlx::AnyConnection;
use tokio::sync::{mpsc, oneshot};

use super::{Engine, Store, StoreError, TENANT, Writer};
use crate::record::{Entry, millis, word};

/// Of how many that wait the entries are written at once, and entries of one statement.
const BATCH: usize = 64;
/// Statements add one of these numbers of rows, so that the database knows them already.
const SHAPES: [usize; 5] = [1, 2, 4, 16, BATCH];
/// How long a batch waits for siblings: no longer than a disk takes for a commit.
const GATHER: Duration = Duration::from_millis(2);
/// Requests whose entries wait; further ones wait for a place.
pub(super) const WAITING: usize = 4096;
const COLUMNS: [&str; 12] = [
    "tenant",
    TIME,
    "kind",
    "subject",
    "resource",
    "result",
    "ticket",
    "evidence",
    "versions",
    "claims",
    "attestation",
    MINOR,
];
/// Those that are numbers.
const TIME: &str = "time";
const MINOR: &str = "minor";

/// A request's entries, which wait for their batch.
pub(super) struct Waiting {
    entries: Vec<Entry>,
    done: oneshot::Sender<Result<(), String>>,
}

impl Store {
    /// Returns when the entries are on the disk, in this order. The disk is waited for once for all of them.
    pub(crate) async fn record(
        &self,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Result<(), StoreError> {
        let (done, wait) = oneshot::channel();
        let ended = |()| StoreError::Record("its writer has ended".to_owned());
        let entries = entries.into_iter().map(Entry::cut).collect();
        let waiting = Waiting { entries, done };
        self.recorder.send(waiting).await.map_err(|_| ended(()))?;
        wait.await
            .map_err(|_| ended(()))?
            .map_err(StoreError::Record)
    }
}

/// Writes what waits until the store is dropped.
pub(super) async fn write_batches(writer: Writer, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut crowded = false;
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        if crowded && batch.len() < BATCH {
            tokio::time::sleep(GATHER).await;
            while batch.len() < BATCH {
                // What is taken out must go in: whoever sent it waits.
                let Ok(one) = waiting.try_recv() else { break };
                batch.push(one);
            }
        }
        crowded = batch.len() > 1;
        let entries: Vec<&Entry> = batch.iter().flat_map(|one| &one.entries).collect();
        let written = write(&writer, &entries).await;
        if let Err(error) = &written {
            tracing::error!(%error, count = entries.len(), "the record cannot be written");
        }
        let written = written.map_err(|error| error.to_string());
        for one in batch.drain(..) {
            // A guest that is gone needs no answer.
            drop(one.done.send(written.clone()));
        }
    }
}

async fn write(writer: &Writer, entries: &[&Entry]) -> Result<(), StoreError> {
    if writer.engine == Engine::Sqlite {
        // One statement is a transaction by itself.
        return insert(&mut *writer.pool.acquire().await?, entries).await;
    }
    let mut change = writer.begin().await?;
    insert(&mut change, entries).await?;
    Ok(change.commit().await?)
}

/// A value of a row.
enum Value {
    Number(i64),
    Text(String),
}

/// Adds entries as a part of a transaction; up to [`BATCH`] of them are one statement.
pub(super) async fn insert(
    connection: &mut AnyConnection,
    entries: &[&Entry],
) -> Result<(), StoreError> {
    for some in entries.chunks(BATCH) {
        let shape = SHAPES.partition_point(|rows| *rows < some.len());
        let text = statements(connection.backend_name())[shape].as_str();
        let mut query = sqlx::query(sqlx::AssertSqlSafe(text));
        for entry in some {
            for value in row_of(entry)? {
                query = match value {
                    Value::Number(number) => query.bind(number),
                    Value::Text(text) => query.bind(text),
                };
            }
        }
        for _ in some.len()..SHAPES[shape] {
            for column in COLUMNS {
                query = match column {
                    TIME | MINOR => query.bind(None::<i64>),
                    _ => query.bind(None::<&str>),
                };
            }
        }
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// The text for each shape: a row whose values are all absent is none.
fn statements(database: &str) -> &'static [String; SHAPES.len()] {
    type Texts = LazyLock<[String; SHAPES.len()]>;
    // SQLite looks a numbered place up in a list of all, each time.
    static BARE: Texts = LazyLock::new(|| SHAPES.map(|rows| statement(rows, |_| "?".to_owned())));
    static NUMBERED: Texts =
        LazyLock::new(|| SHAPES.map(|rows| statement(rows, |number| format!("${number}"))));
    match database {
        "SQLite" => &BARE,
        _ => &NUMBERED,
    }
}

fn statement(rows: usize, place: impl Fn(usize) -> String) -> String {
    let row = |row: usize| {
        let places = (1..=COLUMNS.len()).map(|column| place(row * COLUMNS.len() + column));
        format!("({})", places.collect::<Vec<_>>().join(", "))
    };
    let values: Vec<String> = (0..rows).map(row).collect();
    format!(
        "INSERT INTO record ({}) SELECT * FROM (VALUES {}) AS entry WHERE column1 IS NOT NULL",
        COLUMNS.join(", "),
        values.join(", "),
    )
}

fn row_of(entry: &Entry) -> Result<[Value; COLUMNS.len()], StoreError> {
    let json = |text: Result<String, _>| {
        text.map(Value::Text)
            .map_err(|_| StoreError::Content("entry"))
    };
    let text = |text: &str| Value::Text(storable(text));
    Ok([
        text(TENANT),
        Value::Number(millis(&entry.time).ok_or(StoreError::Time)?),
        Value::Text(word(&entry.kind)),
        text(&entry.subject),
        text(&entry.resource),
        Value::Text(word(&entry.result)),
        text(&entry.ticket),
        text(&entry.evidence),
        json(serde_json::to_string(&entry.versions))?,
        json(serde_json::to_string(&entry.claims))?,
        text(&entry.attestation),
        Value::Number(i64::from(entry.is_minor())),
    ])
}

/// PostgreSQL keeps no zero in a text.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
