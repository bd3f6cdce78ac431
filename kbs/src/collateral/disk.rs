//! The cache on disk: a file for each document, named after it.
//!
//! Files are replaced whole, so that a kill leaves the old one or the new one. What is found there may
//! be anything; what cannot be read counts as absent and is fetched anew.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    document::Document,
    stored::{FILE_BYTES, Held},
};
use crate::file;

/// Files in the cache; beyond it the oldest certificates of chips go.
pub(super) const FILES: usize = 16 * 1024;
/// Bytes of all files.
const ALL_BYTES: u64 = 256 * 1024 * 1024;
const SUFFIX: &str = ".json";
const PRIVATE_DIRECTORY: u32 = 0o700;

/// A directory that is ours. It is made with the first file.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    directory: PathBuf,
}

/// A file of the cache.
pub(super) struct Entry {
    pub(super) document: Document,
    pub(super) held: Result<Held, String>,
}

impl Disk {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn path(&self, document: &Document) -> PathBuf {
        self.directory.join(format!("{document}{SUFFIX}"))
    }

    /// The document, if it is there and its form is right.
    pub(super) fn read(&self, document: &Document) -> Option<Held> {
        match read(&self.path(document), document) {
            Ok(held) => held,
            Err(cause) => {
                tracing::warn!(%document, cause, "a file of the cache is not usable");
                None
            }
        }
    }

    /// Every file with a document's name.
    pub(super) fn list(&self) -> io::Result<Vec<Entry>> {
        let entry = |document: Document| {
            let held = read(&self.path(&document), &document).transpose()?;
            Some(Entry { document, held })
        };
        Ok(self.documents()?.into_iter().filter_map(entry).collect())
    }

    /// The names alone.
    pub(super) fn documents(&self) -> io::Result<Vec<Document>> {
        let mut documents = Vec::new();
        for entry in self.entries()? {
            documents.extend(name(&entry?));
        }
        documents.sort();
        Ok(documents)
    }

    /// Keeps a document in place of what was there.
    pub(super) fn write(&self, held: &Held) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE_DIRECTORY)
            .create(&self.directory)?;
        let path = self.path(held.document());
        let text = serde_json::to_vec(&held.stored).map_err(io::Error::other)?;
        if text.len() > FILE_BYTES {
            return Err(io::Error::other("the document is too long"));
        }
        file::replace(&path, &text)?;
        self.make_room()
    }

    fn entries(&self) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>>> {
        match fs::read_dir(&self.directory) {
            Ok(entries) => Ok(Some(entries).into_iter().flatten()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
            Err(error) => Err(error),
        }
    }

    /// Removes the certificates of chips that were written first; they can be had again.
    fn make_room(&self) -> io::Result<()> {
        let (mut files, mut bytes, mut chips) = (0, 0, Vec::new());
        for entry in self.entries()? {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if is_left_over(&entry, &metadata) {
                fs::remove_file(entry.path())?;
                continue;
            }
            files += 1;
            bytes += metadata.len();
            if name(&entry).is_some_and(|document| !document.is_reissued()) {
                chips.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        chips.sort();
        for (_, length, path) in chips {
            if files <= FILES && bytes <= ALL_BYTES {
                break;
            }
            fs::remove_file(&path)?;
            files -= 1;
            bytes -= length;
        }
        Ok(())
    }
}

/// Whether a kill left it behind while it was written.
fn is_left_over(entry: &fs::DirEntry, metadata: &fs::Metadata) -> bool {
    const LONGEST_WRITE: Duration = Duration::from_secs(3600);
    let age = metadata.modified().ok().and_then(|at| at.elapsed().ok());
    entry.file_name().to_string_lossy().contains(file::NEW)
        && age.is_some_and(|age| age > LONGEST_WRITE)
}

fn name(entry: &fs::DirEntry) -> Option<Document> {
    let name = entry.file_name();
    name.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

fn read(path: &Path, document: &Document) -> Result<Option<Held>, String> {
    let cause = |error: io::Error| error.to_string();
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err("it is not a file".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cause(error)),
    }
    let text = file::read(path, FILE_BYTES).map_err(cause)?;
    let held = Held::read(&text)?;
    if held.document() != document {
        return Err(format!("it is {}", held.document()));
    }
    Ok(Some(held))
}
