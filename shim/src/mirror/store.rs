//! Blobs in a directory that all shims of a node share.
//!
//! ```text
//!   lock                    flock'ed for every change; holds the size of all blobs as of the last one
//!   blobs/sha256/ab/ab..    whole and verified, mode 0444; the time of change is that of the last use
//!   fill/sha256-ab..        on its way, flock'ed by the one who writes it
//! ```
//!
//! A blob appears by one rename, after its digest held. Who dies leaves a file in `fill` that nobody has locked, and
//! perhaps a size that is not known: the next one to change anything removes the first and counts anew. Readers take
//! no lock: a blob that is removed under them stays whole for them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use image_rs::Digest;

use super::ingest::Ingest;
use super::lock::Locked;
use super::read::Reading;

/// Freed beyond what is needed at once, as a part of the whole, so that not every piece looks at all blobs.
const SLACK: u64 = 64;
/// The part of the disk that is left to others.
const RESERVE: u64 = 32;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system.
    #[error("mirror: {step} {path:?}: {source}")]
    Io {
        /// What was done.
        step: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
    /// Somebody holds the lock, and does not let go.
    #[error("the mirror's lock is held for too long")]
    Locked,
    /// Somebody fills this blob already, or has.
    #[error("{0} is in the mirror, or on its way into it")]
    Taken(Digest),
    /// A blob that does not fit, whatever is removed.
    #[error("the mirror has room for {cap} bytes, which this blob and those on their way exceed")]
    Full {
        /// The size from the configuration.
        cap: u64,
    },
    /// A disk that is nearly full, whatever is removed.
    #[error("the mirror's disk has too little room left")]
    Disk,
    /// Other bytes than those of the digest.
    #[error("the blob is not {expected}: it has the digest {found}")]
    Digest {
        /// What it was to be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
}

/// The store. Clones are the same one, and so are stores of other processes in the same directory.
#[derive(Debug, Clone)]
pub struct Store(Arc<Place>);

#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    /// Bytes of all blobs and of those on their way.
    pub(super) cap: u64,
}

/// A blob that could be removed.
struct Old {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Store {
    /// Opens the store in `directory`, which is made where it is not there, and removes what the dead left.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(directory: &Path, cap: u64) -> Result<Self, StoreError> {
        let place = Place {
            root: directory.to_owned(),
            cap,
        };
        for directory in [place.root.clone(), place.blobs(), place.fill()] {
            make(&directory)?;
        }
        let store = Self(Arc::new(place));
        let mut locked = Locked::take(&store.0)?;
        // Also where the size was made smaller. What is there can be read, however little fits in.
        match store.0.admit(&mut locked, 0) {
            Ok(()) | Err(StoreError::Full { .. } | StoreError::Disk) => {}
            Err(error) => return Err(error),
        }
        drop(locked);
        Ok(store)
    }

    /// A blob to read, from its first byte; also one that is still on its way, as far as it is there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn read(&self, digest: &Digest) -> Result<Option<Reading>, StoreError> {
        // A blob that is published between the two looks is found by the second, under its old name or its new one.
        for path in [
            self.0.blob(digest),
            self.0.filled(digest),
            self.0.blob(digest),
        ] {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(failed("open", &path, source)),
            };
            // Another file system may be read-only for us; then all are as old as they are.
            let _ = touch(&file);
            let reading = Reading::new(self.clone(), digest.clone(), file);
            return reading
                .map(Some)
                .map_err(|source| failed("look at", &path, source));
        }
        Ok(None)
    }

    /// Begins to take a blob in.
    ///
    /// # Errors
    /// [`StoreError::Taken`] where it is there, or another one takes it in.
    pub fn ingest(&self, digest: &Digest) -> Result<Ingest, StoreError> {
        let locked = Locked::take(&self.0)?;
        if self.0.blob(digest).exists() {
            return Err(StoreError::Taken(digest.clone()));
        }
        Ingest::begin(self.0.clone(), digest, &locked)
    }

    /// Removes a blob that went bad where it lies.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.0.blob(digest);
        let mut locked = Locked::take(&self.0)?;
        let Ok(meta) = path.symlink_metadata() else {
            return Ok(());
        };
        let total = locked.total(&self.0)?;
        locked.change()?;
        fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
        locked.changed(total.saturating_sub(meta.len()))
    }
}

impl Place {
    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let place = self.blobs().join(digest.algorithm().name());
        place.join(hex.get(..2).unwrap_or(hex)).join(hex)
    }

    pub(super) fn filled(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        self.fill().join(name)
    }

    /// What is about to be filled, before it is named.
    pub(super) fn fresh(&self) -> PathBuf {
        self.fill().join("new")
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn fill(&self) -> PathBuf {
        self.root.join("fill")
    }

    /// Makes room for `bytes` more of a blob on its way; the lock is held until they are written.
    pub(super) fn admit(&self, locked: &mut Locked, bytes: u64) -> Result<(), StoreError> {
        let coming = self.coming()?.saturating_add(bytes);
        let full = StoreError::Full { cap: self.cap };
        if coming > self.cap {
            return Err(full);
        }
        let over = |total: u64| total.saturating_add(coming).saturating_sub(self.cap);
        let lacking = self.lacking(bytes)?;
        if over(locked.total(self)?).max(lacking) == 0 {
            return Ok(());
        }
        let mut old = self.all()?;
        old.sort_by_key(|blob| blob.used);
        // Counted and not remembered: somebody may have removed files by hand.
        let total = sum(&old);
        let excess = over(total).max(lacking);
        let wanted = excess.saturating_add(self.cap / SLACK);
        let mut freed: u64 = 0;
        locked.change()?;
        for blob in old {
            if excess == 0 || freed >= wanted {
                break;
            }
            fs::remove_file(&blob.path).map_err(|source| failed("remove", &blob.path, source))?;
            tracing::debug!(path = ?blob.path, "the mirror lets go of a blob");
            freed = freed.saturating_add(blob.bytes);
        }
        locked.changed(total.saturating_sub(freed))?;
        match freed {
            freed if freed < over(total) => Err(full),
            freed if freed < lacking => Err(StoreError::Disk),
            _ => Ok(()),
        }
    }

    /// What the disk lacks of `bytes` and of what is left to others.
    fn lacking(&self, bytes: u64) -> Result<u64, StoreError> {
        let disk = rustix::fs::statvfs(&self.root)
            .map_err(|errno| failed("look at", &self.root, errno.into()))?;
        let reserve = disk.f_blocks.saturating_mul(disk.f_frsize) / RESERVE;
        let available = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok(reserve.saturating_add(bytes).saturating_sub(available))
    }

    /// Bytes of all blobs, counted.
    pub(super) fn count(&self) -> Result<u64, StoreError> {
        Ok(sum(&self.all()?))
    }

    /// Bytes on their way; what the dead left is removed.
    fn coming(&self) -> Result<u64, StoreError> {
        let mut bytes: u64 = 0;
        for path in entries(&self.fill())? {
            match Ingest::left_by_the_dead(&path) {
                Ok(true) => {
                    fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
                }
                Ok(false) => {
                    let length = path.symlink_metadata().map_or(0, |meta| meta.len());
                    bytes = bytes.saturating_add(length);
                }
                // It was given up or published meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("look at", &path, source)),
            }
        }
        Ok(bytes)
    }

    fn all(&self) -> Result<Vec<Old>, StoreError> {
        let mut all = Vec::new();
        for algorithm in entries(&self.blobs())? {
            for group in entries(&algorithm)? {
                for path in entries(&group)? {
                    let Ok(meta) = path.symlink_metadata() else {
                        continue;
                    };
                    if let Ok(used) = meta.modified() {
                        let bytes = meta.size();
                        all.push(Old { path, bytes, used });
                    }
                }
            }
        }
        Ok(all)
    }
}

fn sum(blobs: &[Old]) -> u64 {
    let sizes = blobs.iter().map(|blob| blob.bytes);
    sizes.fold(0, u64::saturating_add)
}

/// Notes the use of a blob.
fn touch(file: &File) -> io::Result<()> {
    file.set_modified(SystemTime::now())
}

/// The names in a directory; none where it is not one.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => return Ok(Vec::new()),
            _ => return Err(failed("list", directory, error)),
        },
    };
    let paths = listed.map(|entry| entry.map(|entry| entry.path()));
    paths
        .collect::<io::Result<_>>()
        .map_err(|source| failed("list", directory, source))
}

pub(super) fn make(directory: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| failed("make", directory, source))
}

pub(super) fn failed(step: &'static str, path: &Path, source: io::Error) -> StoreError {
    let path = path.to_owned();
    StoreError::Io { step, path, source }
}
