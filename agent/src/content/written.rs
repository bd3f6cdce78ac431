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

/// Room for the lent files of a pod.
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
        Self(Arc::new(Semaphore::new(limit::MAX_LENT_FILES)))
    }
}

impl Room {
    /// A place for one more.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, GuestError> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            let most = limit::MAX_LENT_FILES;
            let message = format!("the pod would have more than {most} files with a lease");
            GuestError::new(ErrorCode::ResourceExhausted, PHASE, message)
        })
    }
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
