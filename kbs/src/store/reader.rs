//! Reads of resources, many at once.
//!
//! One task takes all that wait and asks the database for them in one query, so that the way to the
//! database and back is gone once for all of them. Nothing is remembered: a query begins after the
//! requests that it serves.

use std::{collections::HashMap, sync::Arc};

use sqlx::{AnyPool, Row};
use tokio::sync::{mpsc, oneshot};

use super::{Store, StoreError, TENANT};
use crate::master::Wrapped;

/// Resources of one query.
const BATCH: usize = 64;
/// Queries have one of these numbers of places, so that the database knows them already; what is
/// left over is filled with a path that is there.
const SHAPES: [usize; 4] = [1, 4, 16, BATCH];
/// Requests that wait; further ones wait for a place.
pub(super) const WAITING: usize = 4096;

/// A version of a resource as it is stored.
pub(super) struct Stored {
    pub(super) version: i64,
    pub(super) sealed: Vec<u8>,
    pub(super) wrapped: Wrapped,
}

/// Guests that ask for the same resource share it.
type Found = Option<Arc<Stored>>;

/// A request that waits for its query.
pub(super) struct Waiting {
    path: String,
    done: oneshot::Sender<Result<Found, String>>,
}

impl Store {
    /// The newest version of a path.
    pub(super) async fn stored(&self, path: &str) -> Result<Found, StoreError> {
        let ended = || StoreError::Read("its reader has ended".to_owned());
        let (done, wait) = oneshot::channel();
        let path = path.to_owned();
        let waiting = Waiting { path, done };
        self.reader.send(waiting).await.map_err(|_| ended())?;
        wait.await.map_err(|_| ended())?.map_err(StoreError::Read)
    }
}

/// Reads what waits until the store is dropped.
pub(super) async fn read_batches(pool: AnyPool, mut waiting: mpsc::Receiver<Waiting>) {
    let queries = SHAPES.map(|places| (places, query(places)));
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let mut paths: Vec<&str> = batch.iter().map(|one| one.path.as_str()).collect();
        paths.sort_unstable();
        paths.dedup();
        let found = read(&pool, &queries, &paths).await;
        let found = found.map_err(|error| error.to_string());
        for one in batch.drain(..) {
            let answer = match &found {
                Ok(found) => Ok(found.get(&one.path).cloned()),
                Err(error) => Err(error.clone()),
            };
            // A guest that is gone needs no answer.
            drop(one.done.send(answer));
        }
    }
}

fn query(places: usize) -> String {
    let places: Vec<String> = (2..places + 2).map(|number| format!("${number}")).collect();
    format!(
        "SELECT r.path, v.version, v.sealed, v.wrapped, v.master
         FROM resource r JOIN resource_version v
         ON v.tenant = r.tenant AND v.path = r.path AND v.version = r.version
         WHERE r.tenant = $1 AND r.path IN ({}) AND r.present = 1",
        places.join(", ")
    )
}

async fn read(
    pool: &AnyPool,
    queries: &[(usize, String)],
    paths: &[&str],
) -> Result<HashMap<String, Arc<Stored>>, StoreError> {
    let fits = queries.iter().find(|(places, _)| *places >= paths.len());
    let (Some((places, text)), Some(last)) = (fits, paths.last()) else {
        return Ok(HashMap::new());
    };
    let mut query = sqlx::query(sqlx::AssertSqlSafe(text.as_str())).bind(TENANT);
    for place in 0..*places {
        query = query.bind(*paths.get(place).unwrap_or(last));
    }
    let rows = query.fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            let stored = Stored {
                version: row.try_get(1)?,
                sealed: row.try_get(2)?,
                wrapped: Wrapped {
                    bytes: row.try_get(3)?,
                    master: row.try_get(4)?,
                },
            };
            Ok((row.try_get(0)?, Arc::new(stored)))
        })
        .collect()
}
