//! The end of an image that is written: its blobs get their names, and the tag leads to it.
//!
//! Several may write into one directory. Each reads `index.json`, adds its own and replaces it, so all of this happens
//! under a lock of the directory; so does the removal of what a failure has left, and a blob that another one needs
//! stays. Work is done in steps, between which the caller can be interrupted: a directory's last is the only one that
//! shows, and an archive's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::json;

use super::index::Index;
use super::pack::{Packing, parent_of};
use super::source::Source;
use super::stage::{Staged, Unnamed};
use super::{INDEX, Layout, LayoutError, MARKER, VERSION, blob_name, failed, reach};
use crate::digest::Digest;

/// How long to wait before a lock is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// An image on its way into its layout.
pub(crate) struct Publication<'a> {
    layout: &'a Layout,
    media_type: String,
    digest: Digest,
    size: usize,
    blobs: Vec<Staged>,
    /// What this image was made of in the same layout.
    origin: Vec<Digest>,
    packing: Option<Packing>,
}

impl<'a> Publication<'a> {
    /// Takes the blobs that were written, and adds the manifest to them.
    pub(crate) fn new(
        layout: &'a Layout,
        media_type: &str,
        bytes: &[u8],
        origin: Vec<Digest>,
    ) -> Result<Self, LayoutError> {
        let digest = Digest::of(bytes);
        let mut manifest = layout.start_blob()?;
        manifest.write(bytes)?;
        manifest.finish(&digest)?;
        Ok(Self {
            layout,
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len(),
            blobs: layout.stage.take(),
            origin,
            packing: None,
        })
    }

    /// Goes on; gives the manifest's digest when the image is there.
    pub(crate) fn step(&mut self) -> Result<Option<Digest>, LayoutError> {
        let done = match &self.layout.source {
            Source::Directory(path) => self.write_directory(path)?,
            Source::Archive { path, .. } => self.write_archive(path)?,
        };
        Ok(done.then(|| self.digest.clone()))
    }

    fn write_archive(&mut self, path: &Path) -> Result<bool, LayoutError> {
        let io = |source| failed("write", path, source);
        let mut packing = match self.packing.take() {
            Some(packing) => packing,
            None => {
                let mut index = Index::empty();
                self.put_into(&mut index);
                let blobs = std::mem::take(&mut self.blobs);
                Packing::begin(path, &marker(), &index.into_bytes(), blobs)?
            }
        };
        if packing.step().map_err(io)? {
            self.packing = Some(packing);
            return Ok(false);
        }
        packing.end(path).map_err(io)?;
        Ok(true)
    }

    fn write_directory(&mut self, path: &Path) -> Result<bool, LayoutError> {
        let Some(_lock) = lock(path)? else {
            std::thread::sleep(LOCK_INTERVAL);
            return Ok(false);
        };
        let mut index = self.layout.read_index()?.unwrap_or_else(Index::empty);
        let dropped = self.put_into(&mut index);
        let unused = self.unused(&index, &dropped);
        let mut fresh = Vec::new();
        let shown = self.give_names(&mut fresh).and_then(|()| {
            if !path.join(MARKER).exists() {
                replace(path, MARKER, &marker())?;
            }
            replace(path, INDEX, &index.into_bytes())
        });
        if let Err(error) = shown {
            // The index names none of them, and under the lock nobody else's does.
            for file in fresh {
                let _ = fs::remove_file(file);
            }
            return Err(error);
        }
        for digest in unused {
            let _ = fs::remove_file(path.join(blob_name(&digest)));
        }
        Ok(true)
    }

    fn put_into(&self, index: &mut Index) -> Vec<Digest> {
        let (tag, size) = (self.layout.tag.as_deref(), self.size);
        index.put(tag, &self.media_type, &self.digest, size)
    }

    /// What the image was made of and what nothing in the layout needs any more, now that its tag leads elsewhere.
    /// Nothing, where that cannot be told.
    fn unused(&self, index: &Index, dropped: &[Digest]) -> Vec<Digest> {
        if self.origin.is_empty() {
            return Vec::new();
        }
        let reach = |from: Vec<Digest>| reach::from(from, self.layout);
        let (Some(old), Some(mut kept)) = (reach(dropped.to_vec()), reach(index.digests())) else {
            return Vec::new();
        };
        kept.extend(self.blobs.iter().map(|blob| blob.digest.clone()));
        let origin = self.origin.iter();
        let unused = origin.filter(|digest| old.contains(digest) && !kept.contains(digest));
        unused.cloned().collect()
    }

    fn give_names(&mut self, fresh: &mut Vec<PathBuf>) -> Result<(), LayoutError> {
        for Staged { digest, file } in std::mem::take(&mut self.blobs) {
            let path = self.layout.source.path_of(&blob_name(&digest));
            let directory = parent_of(&path);
            fs::create_dir_all(directory)
                .map_err(|source| failed("make directory", directory, source))?;
            let was_there = fs::symlink_metadata(&path).is_ok();
            file.name(&path)
                .map_err(|source| failed("write", &path, source))?;
            if !was_there {
                fresh.push(path);
            }
        }
        Ok(())
    }
}

/// Locks a directory as long as the file lives; `None` while another one has it. A file system without locks has none.
fn lock(path: &Path) -> Result<Option<File>, LayoutError> {
    let failed = |source: io::Error| failed("lock", path, source);
    fs::create_dir_all(path).map_err(failed)?;
    let directory = File::open(path).map_err(failed)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::BADF | Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => {
            Ok(Some(directory))
        }
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn marker() -> Vec<u8> {
    json!({"imageLayoutVersion": VERSION}).to_string().into()
}

fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
    let path = directory.join(name);
    let mut file = Unnamed::new_in(directory)?;
    let written = (file.file().write_all(bytes))
        .and_then(|()| file.file().sync_all())
        .and_then(|()| file.name(&path));
    written.map_err(|source| failed("write", &path, source))
}
