//! Uploads of one guest that are under way: few, and none for longer than it takes to stall.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::ingest::Ingest;
use crate::lock::lock;

/// Uploads of one guest at a time. An image's layers are pulled a few at once.
const MAX_UPLOADS: usize = 16;
/// How long an upload may bring nothing. It blocks others of the same digest.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// The uploads. An ingest is out of the table while it is written to.
#[derive(Debug, Clone, Default)]
pub(super) struct Uploads(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    uploads: HashMap<u64, Upload>,
}

#[derive(Debug)]
struct Upload {
    ingest: Option<Ingest>,
    touched: Instant,
}

impl Uploads {
    /// Adds one; `None` where there are too many.
    pub(super) fn add(&self, ingest: Ingest) -> Option<u64> {
        let number = self.with(|table| {
            if table.uploads.len() >= MAX_UPLOADS {
                return None;
            }
            table.next += 1;
            let upload = Upload {
                ingest: Some(ingest),
                touched: Instant::now(),
            };
            table.uploads.insert(table.next, upload);
            Some(table.next)
        })?;
        tokio::spawn(self.clone().expire(number));
        Some(number)
    }

    /// Takes one out to write to it; `None` where there is none, or it is written to.
    pub(super) fn take(&self, number: u64) -> Option<Ingest> {
        self.with(|table| table.uploads.get_mut(&number)?.ingest.take())
    }

    /// Puts it back.
    pub(super) fn put(&self, number: u64, ingest: Ingest) {
        self.with(|table| {
            if let Some(upload) = table.uploads.get_mut(&number) {
                upload.ingest = Some(ingest);
                upload.touched = Instant::now();
            }
        });
    }

    /// It has ended, one way or the other.
    pub(super) fn end(&self, number: u64) {
        let ended = self.with(|table| table.uploads.remove(&number));
        drop(ended);
    }

    async fn expire(self, number: u64) {
        loop {
            let touched = self.with(|table| Some(table.uploads.get(&number)?.touched));
            let Some(left) = touched.map(|touched| IDLE.checked_sub(touched.elapsed())) else {
                return;
            };
            match left {
                Some(left) => tokio::time::sleep(left).await,
                None => return self.end(number),
            }
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Table) -> T) -> T {
        act(&mut lock(&self.0))
    }
}
