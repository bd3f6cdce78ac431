//! A new archive: gathered as a layout beside its file, and packed at the end into a file that takes the name in one
//! step. So an archive which stood there stays until the new one is whole, and a run that fails leaves nothing.

use std::io::{BufWriter, IntoInnerError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tempfile::{NamedTempFile, TempDir};

use super::{INDEX, Layout, LayoutError, MARKER, failed, publish};

/// An archive in the making; clones make the same one.
#[derive(Debug, Clone)]
pub(super) struct NewArchive {
    path: PathBuf,
    tag: Option<String>,
    /// Made with the first blob.
    stage: Arc<OnceLock<TempDir>>,
}

impl NewArchive {
    pub(super) fn new(path: PathBuf, tag: Option<String>) -> Self {
        let stage = Arc::default();
        Self { path, tag, stage }
    }

    /// The layout that is gathered.
    pub(super) fn stage(&self) -> Result<Layout, LayoutError> {
        if self.stage.get().is_none() {
            let parent = parent_of(&self.path);
            let made = tempfile::Builder::new()
                .prefix(".archive-")
                .tempdir_in(parent);
            let made = made.map_err(|source| failed("make a directory in", parent, source))?;
            // Where two began at once, one directory is used and the other removed.
            let _ = self.stage.set(made);
        }
        self.begun()
            .ok_or_else(|| LayoutError::ReadOnly(self.path.clone()))
    }

    /// The same where something was gathered.
    pub(super) fn begun(&self) -> Option<Layout> {
        let stage = self.stage.get()?;
        Some(Layout::new(stage.path().to_owned(), self.tag.clone()))
    }

    /// Packs what was gathered.
    pub(super) fn pack(&self) -> Result<(), LayoutError> {
        let pack = |stage: &TempDir| -> std::io::Result<()> {
            let file = NamedTempFile::new_in(parent_of(&self.path))?;
            let mut tar = tar::Builder::new(BufWriter::new(file));
            tar.mode(tar::HeaderMode::Deterministic);
            for name in [MARKER, INDEX] {
                tar.append_path_with_name(stage.path().join(name), name)?;
            }
            tar.append_dir_all("blobs", stage.path().join("blobs"))?;
            let file = tar.into_inner()?.into_inner();
            let file = file.map_err(IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            publish(file, &self.path)
        };
        let stage = self.stage.get();
        stage
            .map_or(Ok(()), pack)
            .map_err(|source| failed("write", &self.path, source))
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn what_was_packed_is_read_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("{}:t", directory.path().join("a.tar").display());
        for content in [b"1", b"2"] {
            let archive = Layout::parse_archive(&text);
            let mut blob = archive.start_blob().unwrap();
            blob.write(content).unwrap();
            blob.finish(&Digest::of(content)).unwrap();
            assert!(archive.has_blob(&Digest::of(content)));
            let digest = archive.write_manifest("x", b"{}").unwrap();
            drop(archive);
            let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
            assert_eq!(names.len(), 1, "{names:?}");
            let again = Layout::parse_archive(&text);
            assert_eq!(again.manifest().unwrap(), (b"{}".as_slice().into(), digest));
            let mut blob = again.blob(&Digest::of(content)).unwrap();
            assert_eq!(blob.next_piece().unwrap().unwrap(), content.as_slice());
            // What the old one has is not in a new one.
            assert!(!again.has_blob(&Digest::of(content)));
        }
    }
}
