//! An image in one file: an OCI layout as a tar archive, as `skopeo copy … oci-archive:file[:tag]` reads and writes it.
//!
//! Reading unpacks nothing: the archive's headers are walked once, and blobs are read where they lie. Writing gathers
//! a layout beside the file and packs it at the end into a file that takes the name in one step, so that an archive
//! which stood there stays until the new one is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use crate::digest::Digest;
use crate::layout::{
    INDEX, Layout, LayoutError, LayoutWriter, MARKER, check_marker, failed, publish, select,
};
use crate::manifest::MANIFEST_BYTES_MAX;

/// Cap on the files of an archive.
const ENTRIES_MAX: usize = 4096;
/// Cap on the marker, in bytes.
const MARKER_BYTES_MAX: usize = 4096;
/// How much of a blob is read at once.
const PIECE_BYTES: u64 = 1024 * 1024;

/// One image in an archive.
#[derive(Debug, Clone)]
pub struct Archive {
    path: PathBuf,
    tag: Option<String>,
    /// Where each file lies; read when it is first asked for.
    entries: Arc<OnceLock<Entries>>,
    /// What is written, until it is packed.
    stage: Arc<OnceLock<TempDir>>,
}

/// Name → where its bytes begin, and how many they are.
type Entries = BTreeMap<String, (u64, u64)>;

impl Archive {
    /// Reads the `file[:tag]` of skopeo; nothing is opened.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
            _ => (text, None),
        };
        Self {
            path: path.into(),
            tag,
            entries: Arc::default(),
            stage: Arc::default(),
        }
    }

    /// The bytes and digest of the image's manifest or index.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn manifest(&self) -> Result<(Bytes, Digest), LayoutError> {
        let not_one = || LayoutError::NotOne(self.path.clone());
        let json = |name: &str, cap| -> Result<Value, LayoutError> {
            let bytes = self.small(name, cap)?.ok_or_else(not_one)?;
            serde_json::from_slice(&bytes).map_err(|_| not_one())
        };
        if !check_marker(&json(MARKER, MARKER_BYTES_MAX)?) {
            return Err(not_one());
        }
        let index = json(INDEX, MANIFEST_BYTES_MAX)?;
        let digest = select(&index, self.tag.as_deref(), &self.path)?;
        Ok((self.small_blob(&digest, MANIFEST_BYTES_MAX)?, digest))
    }

    /// A blob of at most `cap` bytes, checked.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn small_blob(&self, digest: &Digest, cap: usize) -> Result<Bytes, LayoutError> {
        let name = name_of(digest);
        let bytes = self.small(&name, cap)?.ok_or_else(|| self.missing(&name))?;
        match digest.check(&bytes) {
            Ok(()) => Ok(bytes.into()),
            Err(found) => Err(LayoutError::Digest {
                path: self.path.join(name),
                expected: digest.clone(),
                found,
            }),
        }
    }

    /// Opens a blob as a stream; its digest is for the reader to check.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn blob(&self, digest: &Digest) -> Result<ArchiveBlob, LayoutError> {
        let name = name_of(digest);
        self.open(&name)?.ok_or_else(|| self.missing(&name))
    }

    /// Starts a blob of a new archive.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn start_blob(&self) -> Result<LayoutWriter, LayoutError> {
        self.stage()?.start_blob()
    }

    /// Whether the new archive has a blob already.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.stage.get().is_some() && self.stage().is_ok_and(|stage| stage.has_blob(digest))
    }

    /// Writes the manifest, and with it the archive.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn write_manifest(&self, media_type: &str, bytes: &[u8]) -> Result<Digest, LayoutError> {
        let stage = self.stage()?;
        let digest = stage.write_manifest(media_type, bytes)?;
        let pack = || -> std::io::Result<()> {
            let file = NamedTempFile::new_in(parent_of(&self.path))?;
            let mut tar = tar::Builder::new(std::io::BufWriter::new(file));
            tar.mode(tar::HeaderMode::Deterministic);
            for name in [MARKER, INDEX, "blobs"] {
                let path = stage.directory().join(name);
                if path.is_dir() {
                    tar.append_dir_all(name, path)?;
                } else {
                    tar.append_path_with_name(path, name)?;
                }
            }
            let file = tar
                .into_inner()?
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)?;
            file.as_file().sync_all()?;
            publish(file, &self.path)
        };
        pack().map_err(|source| failed("write", &self.path, source))?;
        Ok(digest)
    }

    /// The layout in which a new archive is gathered.
    fn stage(&self) -> Result<Layout, LayoutError> {
        if self.stage.get().is_none() {
            let parent = parent_of(&self.path);
            let made = tempfile::Builder::new()
                .prefix(".archive-")
                .tempdir_in(parent);
            let made = made.map_err(|source| failed("make a directory in", parent, source))?;
            // Where two began at once, the one directory is used and the other removed.
            let _ = self.stage.set(made);
        }
        let directory = self.stage.get().map(|stage| stage.path().to_owned());
        let directory = directory.ok_or_else(|| LayoutError::NotOne(self.path.clone()))?;
        Ok(Layout::new(directory, self.tag.clone()))
    }

    fn entries(&self) -> Result<&Entries, LayoutError> {
        if let Some(entries) = self.entries.get() {
            return Ok(entries);
        }
        let file = File::open(&self.path).map_err(|source| failed("open", &self.path, source))?;
        let entries = walk(&file).map_err(|source| failed("read archive", &self.path, source))?;
        Ok(self.entries.get_or_init(|| entries))
    }

    fn open(&self, name: &str) -> Result<Option<ArchiveBlob>, LayoutError> {
        let Some(&(start, length)) = self.entries()?.get(name) else {
            return Ok(None);
        };
        let open = || -> std::io::Result<File> {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(start))?;
            Ok(file)
        };
        let file = open().map_err(|source| failed("open", &self.path, source))?;
        Ok(Some(ArchiveBlob {
            file: file.take(length),
            path: self.path.join(name),
        }))
    }

    fn small(&self, name: &str, cap: usize) -> Result<Option<Vec<u8>>, LayoutError> {
        let Some(blob) = self.open(name)? else {
            return Ok(None);
        };
        if blob.file.limit() > cap as u64 {
            return Err(LayoutError::TooLarge {
                path: blob.path,
                cap,
            });
        }
        let (mut file, mut bytes) = (blob.file, Vec::new());
        file.read_to_end(&mut bytes)
            .map_err(|source| failed("read", &blob.path, source))?;
        Ok(Some(bytes))
    }

    fn missing(&self, name: &str) -> LayoutError {
        let source = std::io::ErrorKind::NotFound.into();
        failed("open", &self.path.join(name), source)
    }
}

/// A blob being read.
#[derive(Debug)]
pub struct ArchiveBlob {
    file: std::io::Take<File>,
    path: PathBuf,
}

impl ArchiveBlob {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, LayoutError> {
        let mut piece = Vec::new();
        let read = (&mut self.file).take(PIECE_BYTES).read_to_end(&mut piece);
        read.map_err(|source| failed("read", &self.path, source))?;
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}

/// Where every file lies. Links and names that are twice there are refused: two readers could see two images.
fn walk(file: &File) -> std::io::Result<Entries> {
    let bad = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
    let mut entries = Entries::new();
    for entry in tar::Archive::new(file).entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.to_str().unwrap_or_default();
        let name = name.strip_prefix("./").unwrap_or(name).to_owned();
        match entry.header().entry_type() {
            tar::EntryType::Directory => continue,
            tar::EntryType::Regular | tar::EntryType::Continuous => {}
            other => return Err(bad(format!("{name:?} is no file: {other:?}"))),
        }
        let place = (entry.raw_file_position(), entry.size());
        if entries.insert(name.clone(), place).is_some() {
            return Err(bad(format!("{name:?} is there twice")));
        }
        if entries.len() > ENTRIES_MAX {
            return Err(bad(format!("more than {ENTRIES_MAX} files")));
        }
    }
    Ok(entries)
}

fn name_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
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

    fn written(directory: &TempDir) -> (Archive, Digest) {
        let archive = Archive::parse(&format!("{}:t", directory.path().join("a.tar").display()));
        let mut blob = archive.start_blob().unwrap();
        blob.write(b"blob").unwrap();
        blob.finish(&Digest::of(b"blob")).unwrap();
        let digest = archive.write_manifest("x", b"{}").unwrap();
        (archive, digest)
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let (archive, digest) = written(&directory);
        let text = format!("{}:t", archive.path.display());
        drop(archive);
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let again = Archive::parse(&text);
        assert_eq!(
            again.manifest().unwrap(),
            (Bytes::from_static(b"{}"), digest)
        );
        let mut blob = again.blob(&Digest::of(b"blob")).unwrap();
        assert_eq!(blob.next_piece().unwrap().unwrap(), b"blob".as_slice());
        assert!(blob.next_piece().unwrap().is_none());
        assert!(again.blob(&Digest::of(b"other")).is_err());
        assert!(
            Archive::parse(&text.replace(":t", ":u"))
                .manifest()
                .is_err()
        );
    }

    #[test]
    fn an_archive_with_two_faces_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("two.tar");
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        for _ in 0..2 {
            let mut header = tar::Header::new_ustar();
            header.set_size(2);
            tar.append_data(&mut header, "index.json", &b"{}"[..])
                .unwrap();
        }
        tar.finish().unwrap();
        let error = Archive::parse(path.to_str().unwrap())
            .manifest()
            .unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }
}
