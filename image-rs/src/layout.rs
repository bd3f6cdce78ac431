//! An image in a directory or in a tar archive: the OCI image layout, as skopeo reads and writes it under `oci:dir:tag`
//! and `oci-archive:file:tag`.
//!
//! Spec: <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>. A blob appears under its digest
//! only when it is whole, and `index.json` is replaced in one step. An archive is written anew or not at all.

mod error;
mod pack;
mod source;

pub use error::LayoutError;

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::digest::Digest;
use crate::manifest::{MANIFEST_BYTES_MAX, OCI_INDEX};
use error::failed;
use pack::NewArchive;
use source::{Part, Source};

const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";
const VERSION: &str = "1.0.0";
/// Cap on the marker, in bytes.
const MARKER_BYTES_MAX: usize = 4096;
const TAG: &str = "org.opencontainers.image.ref.name";
/// How much of a blob is read at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// One image in a layout.
#[derive(Debug, Clone)]
pub struct Layout {
    source: Source,
    tag: Option<String>,
    /// Counts before the tag: the image is this one or none.
    digest: Option<Digest>,
    /// What takes the place of the archive when the image is written.
    new_archive: Option<NewArchive>,
}

impl std::fmt::Display for Layout {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.source.path().display();
        write!(formatter, "{}:{path}", self.source.transport())?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(formatter, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl Layout {
    /// Names an image in a directory; nothing is opened.
    #[must_use]
    pub fn new(directory: PathBuf, tag: Option<String>) -> Self {
        Self {
            source: Source::directory(directory),
            tag,
            digest: None,
            new_archive: None,
        }
    }

    /// Reads the `dir[:tag][@digest]` of a directory.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self::parse_as(text, Source::directory)
    }

    /// Reads the `file[:tag][@digest]` of an archive.
    #[must_use]
    pub fn parse_archive(text: &str) -> Self {
        let mut layout = Self::parse_as(text, Source::archive);
        if layout.digest.is_none() {
            let new = NewArchive::new(layout.path(), layout.tag.clone());
            layout.new_archive = Some(new);
        }
        layout
    }

    fn parse_as(text: &str, source: fn(PathBuf) -> Source) -> Self {
        let pinned = text.rsplit_once('@');
        let pinned = pinned.and_then(|(rest, digest)| Some((rest, digest.parse().ok()?)));
        let (text, digest) = pinned.map_or((text, None), |(rest, digest)| (rest, Some(digest)));
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
            _ => (text, None),
        };
        Self {
            source: source(path.into()),
            tag,
            digest,
            new_archive: None,
        }
    }

    /// The bytes and digest of the image's manifest or index.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn manifest(&self) -> Result<(Bytes, Digest), LayoutError> {
        let index = self
            .read_index()?
            .ok_or_else(|| LayoutError::NotOne(self.path()))?;
        if let Some(digest) = &self.digest {
            let bytes = self.small_blob(digest, MANIFEST_BYTES_MAX)?;
            return Ok((bytes, digest.clone()));
        }
        let entries = index["manifests"].as_array().cloned().unwrap_or_default();
        let tag_of = |entry: &Value| entry["annotations"][TAG].as_str().map(str::to_owned);
        let chosen = match &self.tag {
            Some(tag) => entries
                .iter()
                .find(|entry| tag_of(entry).as_ref() == Some(tag)),
            None if entries.len() == 1 => entries.first(),
            None => None,
        };
        let digest = chosen
            .and_then(|entry| entry["digest"].as_str())
            .and_then(|digest| digest.parse::<Digest>().ok());
        let digest = digest.ok_or_else(|| LayoutError::NoImage {
            path: self.path(),
            wanted: self
                .tag
                .clone()
                .unwrap_or_else(|| "without a tag".to_owned()),
            found: entries
                .iter()
                .filter_map(tag_of)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        Ok((self.small_blob(&digest, MANIFEST_BYTES_MAX)?, digest))
    }

    /// A blob of at most `cap` bytes, checked.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn small_blob(&self, digest: &Digest, cap: usize) -> Result<Bytes, LayoutError> {
        let name = blob_name(digest);
        let path = self.source.path_of(&name);
        let bytes = self.open(&name)?.read_all(&path, cap)?;
        match digest.check(&bytes) {
            Ok(()) => Ok(bytes.into()),
            Err(found) => Err(LayoutError::Digest {
                path,
                expected: digest.clone(),
                found,
            }),
        }
    }

    /// Opens a blob as a stream; its digest is for the reader to check.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn blob(&self, digest: &Digest) -> Result<LayoutBlob, LayoutError> {
        let name = blob_name(digest);
        Ok(LayoutBlob {
            part: self.open(&name)?,
            path: self.source.path_of(&name),
        })
    }

    /// As [`Layout::blob`], when it has so many bytes.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn blob_of_size(&self, digest: &Digest, size: u64) -> Result<LayoutBlob, LayoutError> {
        let LayoutBlob { part, path } = self.blob(digest)?;
        match part.left() {
            found if found == size => Ok(LayoutBlob { part, path }),
            found => Err(LayoutError::Size {
                path,
                expected: size,
                found,
            }),
        }
    }

    fn open(&self, name: &str) -> Result<Part, LayoutError> {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let part = self.source.open(name)?;
        part.ok_or_else(|| failed("open", &self.source.path_of(name), missing()))
    }

    fn path(&self) -> PathBuf {
        self.source.path().to_owned()
    }

    /// Whether a blob is there, where the image is to be written: nothing of an old archive is in a new one.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        if let Some(new) = &self.new_archive {
            return new.begun().is_some_and(|stage| stage.has_blob(digest));
        }
        self.source
            .open(&blob_name(digest))
            .is_ok_and(|part| part.is_some())
    }

    /// Takes back a blob of an image that was not finished.
    pub(crate) fn forget(&self, digest: &Digest) {
        if self.new_archive.is_none() {
            let _ = std::fs::remove_file(self.source.path_of(&blob_name(digest)));
        }
    }

    /// Starts a blob; makes the layout where there is none.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn start_blob(&self) -> Result<LayoutWriter, LayoutError> {
        if let Some(new) = &self.new_archive {
            return new.stage()?.start_blob();
        }
        let directory = self.create()?;
        let place = directory.join("blobs/sha256");
        let file = NamedTempFile::new_in(&place)
            .map_err(|source| failed("make a file in", &place, source))?;
        Ok(LayoutWriter {
            file,
            layout: self.clone(),
        })
    }

    /// Writes a manifest and lets the tag lead to it; an archive is there with it.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn write_manifest(&self, media_type: &str, bytes: &[u8]) -> Result<Digest, LayoutError> {
        if let Some(new) = &self.new_archive {
            let digest = new.stage()?.write_manifest(media_type, bytes)?;
            new.pack()?;
            return Ok(digest);
        }
        let digest = Digest::of(bytes);
        let mut blob = self.start_blob()?;
        blob.write(bytes)?;
        blob.finish(&digest)?;
        let mut index = self
            .read_index()?
            .unwrap_or_else(|| json!({"schemaVersion": 2, "mediaType": OCI_INDEX}));
        let mut entries = index["manifests"].as_array().cloned().unwrap_or_default();
        entries.retain(|entry| entry["annotations"][TAG].as_str() != self.tag.as_deref());
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        if let Some(tag) = &self.tag {
            entry["annotations"] = json!({ TAG: tag });
        }
        entries.push(entry);
        index["manifests"] = entries.into();
        self.replace(INDEX, index.to_string().as_bytes())?;
        Ok(digest)
    }

    fn create(&self) -> Result<PathBuf, LayoutError> {
        let directory = self.source.writable()?;
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)
            .map_err(|source| failed("make directory", &blobs, source))?;
        if !directory.join(MARKER).exists() {
            let marker = json!({"imageLayoutVersion": VERSION});
            self.replace(MARKER, marker.to_string().as_bytes())?;
        }
        Ok(directory.to_owned())
    }

    /// `None` where there is no layout yet.
    fn read_index(&self) -> Result<Option<Value>, LayoutError> {
        let Some(marker) = self.source.open(MARKER)? else {
            return Ok(None);
        };
        let not_one = || LayoutError::NotOne(self.path());
        let marker = marker.read_all(&self.source.path_of(MARKER), MARKER_BYTES_MAX)?;
        let marker: Value = serde_json::from_slice(&marker).map_err(|_| not_one())?;
        if marker["imageLayoutVersion"].as_str() != Some(VERSION) {
            return Err(not_one());
        }
        let Some(index) = self.source.open(INDEX)? else {
            return Ok(None);
        };
        let index = index.read_all(&self.source.path_of(INDEX), MANIFEST_BYTES_MAX)?;
        serde_json::from_slice(&index)
            .map(Some)
            .map_err(|_| not_one())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
        let directory = self.source.writable()?;
        let path = directory.join(name);
        let write = || -> std::io::Result<()> {
            let mut file = NamedTempFile::new_in(directory)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            publish(file, &path)
        };
        write().map_err(|source| failed("write", &path, source))
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// A blob being read.
#[derive(Debug)]
pub struct LayoutBlob {
    part: Part,
    path: PathBuf,
}

impl LayoutBlob {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, LayoutError> {
        let piece = self.part.read(PIECE_BYTES);
        let piece = piece.map_err(|source| failed("read", &self.path, source))?;
        Ok(if piece.is_empty() {
            None
        } else {
            Some(piece.into())
        })
    }
}

/// A blob being written; dropped before its end, it is removed.
#[derive(Debug)]
pub struct LayoutWriter {
    file: NamedTempFile,
    layout: Layout,
}

impl LayoutWriter {
    /// Adds a piece.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn write(&mut self, piece: &[u8]) -> Result<(), LayoutError> {
        self.file
            .write_all(piece)
            .map_err(|source| failed("write", self.file.path(), source))
    }

    /// Puts the blob under its digest.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn finish(self, digest: &Digest) -> Result<(), LayoutError> {
        let path = self.layout.source.path_of(&blob_name(digest));
        publish(self.file, &path).map_err(|source| failed("write", &path, source))
    }
}

/// Temporary files are private; what stands in a layout is for every reader.
fn publish(file: NamedTempFile, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.persist(path).map_err(|error| error.error).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_leads_to_the_last_manifest_written_under_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |tag: &str| Layout::new(directory.path().join("new"), Some(tag.to_owned()));
        for (tag, bytes) in [("a", b"1".as_slice()), ("b", b"2"), ("a", b"3")] {
            at(tag).write_manifest("x", bytes).unwrap();
        }
        assert_eq!(at("a").manifest().unwrap().0, b"3".as_slice());
        assert_eq!(at("b").manifest().unwrap().0, b"2".as_slice());
        let error = at("c").manifest().unwrap_err().to_string();
        assert!(
            error.contains("no image c") && error.contains("b, a"),
            "{error}"
        );
    }

    #[test]
    fn names_are_read_and_written_the_same() {
        let digest = Digest::of(b"x");
        for text in ["oci:/a/b", "oci:/a/b:t", "oci-archive:/a.tar:t"] {
            for text in [text.to_owned(), format!("{text}@{digest}")] {
                let layout = match text.split_once(':').unwrap() {
                    ("oci", rest) => Layout::parse(rest),
                    (_, rest) => Layout::parse_archive(rest),
                };
                assert_eq!(layout.to_string(), text);
            }
        }
    }

    #[test]
    fn an_archive_is_read_as_its_directory_is() {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path().join("layout");
        let digest = Layout::new(layout.clone(), Some("t".to_owned()))
            .write_manifest("x", b"1")
            .unwrap();
        for prefix in ["", "./"] {
            let path = directory.path().join("layout.tar");
            let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
            for name in ["oci-layout", "index.json", &blob_name(&digest)] {
                let mut file = std::fs::File::open(layout.join(name)).unwrap();
                tar.append_file(format!("{prefix}{name}"), &mut file)
                    .unwrap();
            }
            tar.into_inner().unwrap();
            let archive = Layout::parse_archive(&format!("{}:t", path.display()));
            assert_eq!(
                archive.manifest().unwrap(),
                (b"1".as_slice().into(), digest.clone())
            );
            let pinned = Layout::parse_archive(&format!("{}@{digest}", path.display()));
            assert!(matches!(pinned.start_blob(), Err(LayoutError::ReadOnly(_))));
            assert!(matches!(
                archive.blob_of_size(&digest, 2),
                Err(LayoutError::Size {
                    expected: 2,
                    found: 1,
                    ..
                })
            ));
            // Cut off within its last member.
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(512 * 5).unwrap();
            let archive = Layout::parse_archive(&format!("{}:t", path.display()));
            assert!(matches!(
                archive.manifest(),
                Err(LayoutError::Archive { .. })
            ));
        }
    }

    #[test]
    fn a_pinned_digest_counts_before_the_tag() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let first = Layout::parse(&format!("{path}:t"))
            .write_manifest("x", b"1")
            .unwrap();
        Layout::parse(&format!("{path}:t"))
            .write_manifest("x", b"2")
            .unwrap();
        let pinned = Layout::parse(&format!("{path}:t@{first}"));
        assert_eq!(pinned.manifest().unwrap().0, b"1".as_slice());
        let absent = Layout::parse(&format!("{path}:t@{}", Digest::of(b"3")));
        assert!(matches!(absent.manifest(), Err(LayoutError::Io { .. })));
    }

    #[test]
    fn a_blob_leads_nowhere_else_and_is_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, b"1").unwrap();
        let layout = Layout::parse(&directory.path().join("layout").display().to_string());
        let digest = layout.write_manifest("x", b"1").unwrap();
        let blob = layout.source.path_of(&blob_name(&digest));
        std::fs::remove_file(&blob).unwrap();
        std::os::unix::fs::symlink(&secret, &blob).unwrap();
        assert!(matches!(layout.manifest(), Err(LayoutError::Io { .. })));
        std::fs::remove_file(&blob).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &blob, fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(layout.manifest(), Err(LayoutError::Io { .. })));
    }

    #[test]
    fn a_damaged_blob_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::parse(&format!("{}:t", directory.path().display()));
        let digest = layout.write_manifest("x", b"1").unwrap();
        std::fs::write(layout.source.path_of(&blob_name(&digest)), b"2").unwrap();
        assert!(matches!(layout.manifest(), Err(LayoutError::Digest { .. })));
    }
}
