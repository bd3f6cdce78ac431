//! A lent secret as it is written: a file that whoever looks after it holds open, and empties.
//!
//! That its name goes is not enough: a container may have moved or linked the file, and a mount of it alone needs no
//! name. Nothing of this is asked, nor room on a disk, where a file that is open becomes shorter.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError, limit};
use attestation_agent::Secret;
use ring::digest::{Digest, SHA256, digest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PHASE;

/// Room for the lent files of a pod: those that are seen, and as many that were a moment ago.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

/// A file with a lent secret. Dropping it empties it.
#[derive(Debug)]
pub(super) struct Written {
    file: File,
    /// Of the secret.
    digest: Digest,
    _place: OwnedSemaphorePermit,
}

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(2 * limit::MAX_LENT_FILES)))
    }
}

impl Room {
    /// Whether one set may have so many.
    pub(super) fn check(files: usize) -> Result<(), GuestError> {
        match files <= limit::MAX_LENT_FILES {
            true => Ok(()),
            false => Err(too_many("a volume", limit::MAX_LENT_FILES)),
        }
    }

    /// A place for one more.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, GuestError> {
        let place = Arc::clone(&self.0).try_acquire_owned();
        place.map_err(|_| too_many("the pod", 2 * limit::MAX_LENT_FILES))
    }
}

fn too_many(whose: &str, most: usize) -> GuestError {
    let message = format!("{whose} would have more than {most} files with a lease");
    GuestError::new(ErrorCode::ResourceExhausted, PHASE, message)
}

impl Written {
    /// Writes a secret into a new file.
    pub(super) fn new(
        file: File,
        secret: &Secret,
        place: OwnedSemaphorePermit,
    ) -> io::Result<Self> {
        let written = Self {
            file,
            digest: digest(&SHA256, secret.expose()),
            _place: place,
        };
        (&written.file).write_all(secret.expose())?;
        Ok(written)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether this secret was written.
    pub(super) fn holds(&self, secret: &Secret) -> bool {
        digest(&SHA256, secret.expose()).as_ref() == self.digest.as_ref()
    }

    /// Takes the secret out of the file, wherever that is by now.
    pub(super) fn empty(&self) -> io::Result<()> {
        self.file.set_len(0)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        if let Err(error) = self.empty() {
            tracing::error!(%error, "a file with a lent secret was not emptied");
        }
    }
}
