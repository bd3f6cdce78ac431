//! The lock of the store, and what is known while it is held: how many bytes all blobs have.
//!
//! The number stands in the lock's own file, after the host's boot it was counted in. It is taken out before a change
//! and written after it, so a death in between leaves none, and a power cut that loses files leaves one of another
//! boot: in both cases blobs are counted anew.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::store::{Place, StoreError, failed};

/// How long another one may hold the lock. It is held for moments; one that was stopped must not stop the others.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(3);
/// The host's boot, in 36 characters.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Cap on the lock's text, in bytes.
const TEXT_MAX: usize = 128;

/// The lock, until it is dropped.
pub(super) struct Locked {
    file: File,
    path: PathBuf,
    boot: String,
    total: Option<u64>,
}

impl Locked {
    /// Blocking.
    pub(super) fn take(place: &Place) -> Result<Self, StoreError> {
        let path = place.lock();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|source| failed("open", &path, source))?;
        let since = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed("lock", &path, errno.into())),
            }
            if since.elapsed() > PATIENCE {
                return Err(StoreError::Locked);
            }
            std::thread::sleep(PAUSE);
        }
        let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        let mut locked = Self {
            file,
            path,
            boot: boot.trim().to_owned(),
            total: None,
        };
        locked.total = locked.noted();
        Ok(locked)
    }

    /// Bytes of all blobs.
    pub(super) fn total(&mut self, place: &Place) -> Result<u64, StoreError> {
        if let Some(total) = self.total {
            return Ok(total);
        }
        let total = place.count()?;
        // A disk that is full cannot note it, and is about to be relieved; then it is counted once more.
        let _ = self.changed(total);
        self.total = Some(total);
        Ok(total)
    }

    /// From here on the number is not true.
    pub(super) fn change(&mut self) -> Result<(), StoreError> {
        self.total = None;
        self.file.set_len(0).map_err(|source| self.failed(source))
    }

    /// The change is made.
    pub(super) fn changed(&mut self, total: u64) -> Result<(), StoreError> {
        let text = format!("{} {total}\n", self.boot);
        let written = self.file.set_len(0);
        let written = written.and_then(|()| self.file.write_all_at(text.as_bytes(), 0));
        written.map_err(|source| self.failed(source))?;
        self.total = Some(total);
        Ok(())
    }

    fn noted(&self) -> Option<u64> {
        let mut text = [0; TEXT_MAX];
        let length = self.file.read_at(&mut text, 0).ok()?;
        let line = std::str::from_utf8(text.get(..length)?).ok()?;
        let (boot, total) = line.strip_suffix('\n')?.split_once(' ')?;
        (boot == self.boot && !boot.is_empty()).then(|| total.parse().ok())?
    }

    fn failed(&self, source: io::Error) -> StoreError {
        failed("write", &self.path, source)
    }
}
