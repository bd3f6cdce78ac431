//! What is written of an image before all of it is there: files without a name.
//!
//! A run that ends early, however it ends, leaves nothing of them: the kernel takes a file away that no name leads to
//! when its last descriptor is closed. That matters most for what was decrypted. A file system that has no such files
//! gets hidden ones, which only a killed process leaves.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::pack::parent_of;
use super::{LayoutError, failed};
use crate::digest::Digest;

/// A file that nobody finds yet.
#[derive(Debug)]
pub(super) enum Unnamed {
    Open(File),
    Hidden(NamedTempFile),
}

impl Unnamed {
    /// On the file system of `directory`.
    pub(super) fn new_in(directory: &Path) -> Result<Self, LayoutError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let made = match openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self::Open(file.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
                NamedTempFile::new_in(directory).map(Self::Hidden)
            }
            Err(errno) => Err(errno.into()),
        };
        made.map_err(|source| failed("make a file in", directory, source))
    }

    pub(super) fn file(&mut self) -> &mut File {
        match self {
            Self::Open(file) => file,
            Self::Hidden(file) => file.as_file_mut(),
        }
    }

    /// Gives it its name, which it takes from whatever stands there. What stands in a layout is for every reader.
    pub(super) fn name(mut self, path: &Path) -> io::Result<()> {
        self.file().set_permissions(Permissions::from_mode(0o644))?;
        let file = match self {
            Self::Hidden(file) => {
                return file.persist(path).map(drop).map_err(|error| error.error);
            }
            Self::Open(file) => file,
        };
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = |path: &Path| -> io::Result<()> {
            Ok(linkat(CWD, &from, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
        };
        match link(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => return linked,
        }
        let beside = tempfile::Builder::new().make_in(parent_of(path), link)?;
        beside.persist(path).map_err(|error| error.error)
    }
}

/// The whole blobs of an image whose manifest is not written yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Stage(Arc<Mutex<Vec<Staged>>>);

/// A blob without its name.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) digest: Digest,
    pub(super) file: Unnamed,
}

impl Stage {
    pub(super) fn has(&self, digest: &Digest) -> bool {
        let blobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.iter().any(|blob| blob.digest == *digest)
    }

    fn add(&self, blob: Staged) {
        let mut blobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.retain(|other| other.digest != blob.digest);
        blobs.push(blob);
    }

    pub(super) fn take(&self) -> Vec<Staged> {
        let mut blobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut blobs)
    }
}

/// A blob being written; dropped before its end, it is gone.
#[derive(Debug)]
pub struct LayoutWriter {
    file: Unnamed,
    stage: Stage,
}

impl LayoutWriter {
    pub(super) fn new(file: Unnamed, stage: Stage) -> Self {
        Self { file, stage }
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn write(&mut self, piece: &[u8]) -> Result<(), LayoutError> {
        let written = self.file.file().write_all(piece);
        written.map_err(|source| failed("write", Path::new("a blob"), source))
    }

    /// Ends the blob; it gets its name with the manifest.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn finish(self, digest: &Digest) -> Result<(), LayoutError> {
        let Self { file, stage } = self;
        stage.add(Staged {
            digest: digest.clone(),
            file,
        });
        Ok(())
    }
}

impl Staged {
    /// Its bytes from the first on, and how many.
    pub(super) fn rewind(&mut self) -> io::Result<u64> {
        let file = self.file.file();
        file.rewind()?;
        Ok(file.metadata()?.len())
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.file().read(buffer)
    }
}
