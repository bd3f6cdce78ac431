//! What a run has written, so that a run which fails leaves nothing of it.

use std::sync::{Mutex, PoisonError};

use super::RecryptError;
use crate::digest::Digest;
use crate::place::{BlobWriter, Place};

/// The place that is written to, and the blobs that this run has put there. Until the manifest stands they are taken
/// back when the run ends, however it ends.
pub(super) struct Fresh<'a> {
    pub(super) to: &'a Place,
    blobs: Mutex<Vec<Digest>>,
}

impl<'a> Fresh<'a> {
    pub(super) fn new(to: &'a Place) -> Self {
        Self {
            to,
            blobs: Mutex::default(),
        }
    }

    pub(super) async fn finish(
        &self,
        writer: BlobWriter,
        digest: &Digest,
    ) -> Result<(), RecryptError> {
        let was_there = self.to.would_keep(digest);
        writer.finish(digest).await?;
        if !was_there {
            let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            blobs.push(digest.clone());
        }
        Ok(())
    }

    pub(super) fn keep(&self) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.clear();
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        let blobs = self.blobs.get_mut().unwrap_or_else(PoisonError::into_inner);
        for digest in blobs {
            self.to.forget(digest);
        }
    }
}
