//! A blob on its way into the store: one writer, and readers that may follow it.
//!
//! The writer has the file locked as long as it lives. What is whole loses its owner's right to write before it gets
//! its name, which is how a follower knows the end from a pause.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use image_rs::Digest;
use image_rs::digest::Hasher;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::lock::Locked;
use super::store::{Place, StoreError, failed, make};

/// The mode of a blob that is whole.
pub(super) const WHOLE: u32 = 0o444;
/// That of one on its way.
const PARTIAL: u32 = 0o600;

/// A blob on its way; dropping it before its end removes it.
#[derive(Debug)]
pub struct Ingest {
    place: Arc<Place>,
    digest: Digest,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
    is_published: bool,
}

impl Ingest {
    pub(super) fn begin(
        place: Arc<Place>,
        digest: &Digest,
        _locked: &Locked,
    ) -> Result<Self, StoreError> {
        let path = place.filled(digest);
        match Self::left_by_the_dead(&path) {
            Ok(false) => return Err(StoreError::Taken(digest.clone())),
            Ok(true) => {
                fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("look at", &path, source)),
        }
        let file = Self::locked_file(&place)?;
        fs::rename(place.fresh(), &path).map_err(|source| failed("name", &path, source))?;
        Ok(Self {
            place,
            digest: digest.clone(),
            path,
            file,
            hasher: digest.hasher(),
            written: 0,
            is_published: false,
        })
    }

    /// Locked before it has the name under which others look for it.
    fn locked_file(place: &Place) -> Result<File, StoreError> {
        let fresh = place.fresh();
        // Ours by the store's lock; one that stands there is of a dead one.
        let _ = fs::remove_file(&fresh);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PARTIAL)
            .open(&fresh)
            .map_err(|source| failed("make", &fresh, source))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| failed("lock", &fresh, errno.into()))?;
        Ok(file)
    }

    /// Whether nobody writes this file any more.
    pub(super) fn left_by_the_dead(path: &Path) -> io::Result<bool> {
        let file = File::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What it is to be.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// How many bytes it has.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Adds bytes. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Full`] where there is no room for them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let length = bytes.len() as u64;
        // Held while it is written, so that the bound holds whoever else writes.
        let mut locked = Locked::take(&self.place)?;
        self.place.admit(&mut locked, length)?;
        let written = self.file.write_all(bytes);
        written.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Disk,
            _ => failed("write", &self.path, source),
        })?;
        drop(locked);
        self.hasher.update(bytes);
        self.written += length;
        Ok(())
    }

    /// Publishes it, if it is what it was to be. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Digest`] where it is not.
    pub fn finish(mut self) -> Result<(), StoreError> {
        let found = self.hasher.clone().finish();
        if found != self.digest {
            let expected = self.digest.clone();
            return Err(StoreError::Digest { expected, found });
        }
        let target = self.place.blob(&self.digest);
        if let Some(parent) = target.parent() {
            make(parent)?;
        }
        let mut locked = Locked::take(&self.place)?;
        let total = locked.total(&self.place)?;
        self.file
            .set_permissions(Permissions::from_mode(WHOLE))
            .map_err(|source| failed("set the mode of", &self.path, source))?;
        // The clock by which later uses are noted.
        let _ = self.file.set_modified(SystemTime::now());
        locked.change()?;
        fs::rename(&self.path, &target).map_err(|source| failed("publish", &target, source))?;
        self.is_published = true;
        locked.changed(total.saturating_add(self.written))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.is_published {
            // Ours: nobody else removes a file that is locked.
            let _ = fs::remove_file(&self.path);
        }
    }
}
