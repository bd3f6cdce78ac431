//! An image in a directory: the OCI image layout, as `skopeo copy … oci:dir:tag` reads and writes it.
//!
//! Spec: <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>. A blob appears under its digest
//! only when it is whole, and `index.json` is replaced in one step.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::digest::Digest;
use crate::manifest::{MANIFEST_BYTES_MAX, OCI_INDEX};

pub(crate) const MARKER: &str = "oci-layout";
pub(crate) const INDEX: &str = "index.json";
const VERSION: &str = "1.0.0";
const TAG: &str = "org.opencontainers.image.ref.name";
/// How much of a blob is read at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// Why a layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file system.
    #[error("{step} {path:?}: {source}")]
    Io {
        /// Which step.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a layout of this version.
    #[error("{0:?} is not an OCI image layout of version {VERSION}")]
    NotOne(PathBuf),
    /// `index.json` names no such image.
    #[error("layout {path:?} has no image {wanted}; it has: {found}")]
    NoImage {
        /// The layout.
        path: PathBuf,
        /// The tag, or "without a tag".
        wanted: String,
        /// The tags in it.
        found: String,
    },
    /// A cap.
    #[error("{path:?} has more than {cap} bytes")]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The cap, in bytes.
        cap: usize,
    },
    /// Bytes that are not those of their name.
    #[error("blob {path:?} is damaged: expected {expected}, found {found}")]
    Digest {
        /// Which file.
        path: PathBuf,
        /// Its name.
        expected: Digest,
        /// The digest of its bytes.
        found: Digest,
    },
}

/// One image in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    directory: PathBuf,
    tag: Option<String>,
}

impl Layout {
    /// Names an image; nothing is opened.
    #[must_use]
    pub fn new(directory: PathBuf, tag: Option<String>) -> Self {
        Self { directory, tag }
    }

    /// Reads the `dir[:tag]` of skopeo.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.rsplit_once(':') {
            Some((directory, tag)) if !tag.contains('/') => {
                Self::new(directory.into(), Some(tag.to_owned()))
            }
            _ => Self::new(text.into(), None),
        }
    }

    /// The bytes and digest of the image's manifest or index.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn manifest(&self) -> Result<(Bytes, Digest), LayoutError> {
        let index = self
            .read_index()?
            .ok_or_else(|| LayoutError::NotOne(self.directory.clone()))?;
        let digest = select(&index, self.tag.as_deref(), &self.directory)?;
        Ok((self.small_blob(&digest, MANIFEST_BYTES_MAX)?, digest))
    }

    /// A blob of at most `cap` bytes, checked.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn small_blob(&self, digest: &Digest, cap: usize) -> Result<Bytes, LayoutError> {
        let path = self.blob_path(digest);
        let bytes = read_capped(&path, cap)?;
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
        let path = self.blob_path(digest);
        let file = std::fs::File::open(&path).map_err(|source| failed("open", &path, source))?;
        Ok(LayoutBlob { file, path })
    }

    /// Whether a blob is there.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Starts a blob; makes the layout where there is none.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn start_blob(&self) -> Result<LayoutWriter, LayoutError> {
        self.create()?;
        let place = self.directory.join("blobs/sha256");
        let file = NamedTempFile::new_in(&place)
            .map_err(|source| failed("make a file in", &place, source))?;
        Ok(LayoutWriter {
            file,
            layout: self.clone(),
        })
    }

    /// Writes a manifest and lets the tag lead to it.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn write_manifest(&self, media_type: &str, bytes: &[u8]) -> Result<Digest, LayoutError> {
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

    /// Where it is.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes back a blob of an image that was not finished.
    pub(crate) fn forget(&self, digest: &Digest) {
        let _ = std::fs::remove_file(self.blob_path(digest));
    }

    fn create(&self) -> Result<(), LayoutError> {
        let blobs = self.directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)
            .map_err(|source| failed("make directory", &blobs, source))?;
        if self.directory.join(MARKER).exists() {
            return Ok(());
        }
        self.replace(
            MARKER,
            json!({"imageLayoutVersion": VERSION})
                .to_string()
                .as_bytes(),
        )
    }

    /// `None` where there is no layout yet.
    fn read_index(&self) -> Result<Option<Value>, LayoutError> {
        let marker = self.directory.join(MARKER);
        if !marker.exists() {
            return Ok(None);
        }
        let not_one = || LayoutError::NotOne(self.directory.clone());
        let marker: Value =
            serde_json::from_slice(&read_capped(&marker, 4096)?).map_err(|_| not_one())?;
        if !check_marker(&marker) {
            return Err(not_one());
        }
        let index = self.directory.join(INDEX);
        if !index.exists() {
            return Ok(None);
        }
        serde_json::from_slice(&read_capped(&index, MANIFEST_BYTES_MAX)?)
            .map(Some)
            .map_err(|_| not_one())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
        let path = self.directory.join(name);
        let write = || -> std::io::Result<()> {
            let mut file = NamedTempFile::new_in(&self.directory)?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            publish(file, &path)
        };
        write().map_err(|source| failed("write", &path, source))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }
}

/// Whether a marker is that of this version.
pub(crate) fn check_marker(marker: &Value) -> bool {
    marker["imageLayoutVersion"].as_str() == Some(VERSION)
}

/// The image of a layout's index that a tag leads to, or the only one.
pub(crate) fn select(index: &Value, tag: Option<&str>, path: &Path) -> Result<Digest, LayoutError> {
    let entries = index["manifests"].as_array().cloned().unwrap_or_default();
    let tag_of = |entry: &Value| entry["annotations"][TAG].as_str().map(str::to_owned);
    let chosen = match tag {
        Some(tag) => entries
            .iter()
            .find(|entry| tag_of(entry).as_deref() == Some(tag)),
        None if entries.len() == 1 => entries.first(),
        None => None,
    };
    let digest = chosen
        .and_then(|entry| entry["digest"].as_str())
        .and_then(|digest| digest.parse::<Digest>().ok());
    digest.ok_or_else(|| LayoutError::NoImage {
        path: path.to_owned(),
        wanted: tag.unwrap_or("without a tag").to_owned(),
        found: entries
            .iter()
            .filter_map(tag_of)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// A blob being read.
#[derive(Debug)]
pub struct LayoutBlob {
    file: std::fs::File,
    path: PathBuf,
}

impl LayoutBlob {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, LayoutError> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = (&self.file)
            .take(PIECE_BYTES as u64)
            .read_to_end(&mut piece);
        read.map_err(|source| failed("read", &self.path, source))?;
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
        let path = self.layout.blob_path(digest);
        publish(self.file, &path).map_err(|source| failed("write", &path, source))
    }
}

/// Temporary files are private; what stands in a layout is for every reader.
pub(crate) fn publish(file: NamedTempFile, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.persist(path).map_err(|error| error.error).map(|_| ())
}

fn read_capped(path: &Path, cap: usize) -> Result<Vec<u8>, LayoutError> {
    let file = std::fs::File::open(path).map_err(|source| failed("open", path, source))?;
    let mut bytes = Vec::new();
    file.take(cap as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| failed("read", path, source))?;
    if bytes.len() > cap {
        Err(LayoutError::TooLarge {
            path: path.to_owned(),
            cap,
        })
    } else {
        Ok(bytes)
    }
}

pub(crate) fn failed(step: &'static str, path: &Path, source: std::io::Error) -> LayoutError {
    LayoutError::Io {
        step,
        path: path.to_owned(),
        source,
    }
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
    fn a_damaged_blob_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::parse(&format!("{}:t", directory.path().display()));
        let digest = layout.write_manifest("x", b"1").unwrap();
        std::fs::write(layout.blob_path(&digest), b"2").unwrap();
        assert!(matches!(layout.manifest(), Err(LayoutError::Digest { .. })));
    }
}
