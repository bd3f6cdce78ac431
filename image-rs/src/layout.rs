//! An image in a directory or in a tar archive: the OCI image layout, as skopeo reads and writes it under `oci:dir:tag`
//! and `oci-archive:file:tag`.
//!
//! Spec: <https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md>. What is written has no name until
//! the whole image is there, and `index.json` is replaced in one step, as an archive is.

mod error;
mod index;
mod name;
mod pack;
mod publish;
mod reach;
mod source;
mod stage;

pub use error::LayoutError;
pub use stage::LayoutWriter;

pub(crate) use publish::Publication;

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::Value;

use crate::digest::Digest;
use crate::manifest::MANIFEST_BYTES_MAX;
use crate::shown::shown_list;
use error::failed;
use index::Index;
use source::{Part, Source};
use stage::{Stage, Unnamed};

const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";
const VERSION: &str = "1.0.0";
/// Cap on the marker, in bytes.
const MARKER_BYTES_MAX: usize = 4096;
/// How much of a blob is read at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// One image in a layout.
#[derive(Debug, Clone)]
pub struct Layout {
    source: Source,
    tag: Option<String>,
    /// Counts before the tag: the image is this one or none.
    digest: Option<Digest>,
    /// The blobs of an image that is being written.
    stage: Stage,
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
        Self::named(Source::directory(directory), tag, None)
    }

    /// Reads the `dir[:tag][@digest]` of a directory.
    ///
    /// # Errors
    /// [`LayoutError::Name`].
    pub fn parse(text: &str) -> Result<Self, LayoutError> {
        let (path, tag, digest) = name::parse(text)?;
        Ok(Self::named(Source::directory(path), tag, digest))
    }

    /// Reads the `file[:tag][@digest]` of an archive.
    ///
    /// # Errors
    /// [`LayoutError::Name`].
    pub fn parse_archive(text: &str) -> Result<Self, LayoutError> {
        let (path, tag, digest) = name::parse(text)?;
        Ok(Self::named(Source::archive(path), tag, digest))
    }

    fn named(source: Source, tag: Option<String>, digest: Option<Digest>) -> Self {
        Self {
            source,
            tag,
            digest,
            stage: Stage::default(),
        }
    }

    /// The same image for a writer of its own: what another one has not finished is not this one's.
    pub(crate) fn anew(&self) -> Self {
        Self::named(self.source.clone(), self.tag.clone(), self.digest.clone())
    }

    /// Whether an image can be written here, told before any work is done for it.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn check_destination(&self) -> Result<(), LayoutError> {
        if self.digest.is_some() {
            return Err(LayoutError::Pinned(self.to_string()));
        }
        match &self.source {
            Source::Directory(_) => self.read_index().map(drop),
            Source::Archive { path, .. } => match std::fs::metadata(path) {
                Ok(found) if found.is_dir() => {
                    let kind = std::io::ErrorKind::IsADirectory;
                    Err(failed("write", path, kind.into()))
                }
                _ => Unnamed::new_in(pack::parent_of(path)).map(drop),
            },
        }
    }

    /// Whether both are in the same directory.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        match (&self.source, &other.source) {
            (Source::Directory(one), Source::Directory(other)) => {
                let real = [one, other].map(|path| path.canonicalize().ok());
                one == other || (real[0].is_some() && real[0] == real[1])
            }
            _ => false,
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
        let digest = index
            .find(self.tag.as_deref())
            .and_then(|entry| entry["digest"].as_str())
            .and_then(|digest| digest.parse::<Digest>().ok());
        let digest = digest.ok_or_else(|| LayoutError::NoImage {
            path: self.path(),
            wanted: self
                .tag
                .clone()
                .unwrap_or_else(|| "without a tag".to_owned()),
            found: shown_list(index.tags()),
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

    /// Whether a blob of the image that is being written is there.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.stage.has(digest)
    }

    /// Starts a blob; makes the directory where there is none.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn start_blob(&self) -> Result<LayoutWriter, LayoutError> {
        let file = match &self.source {
            Source::Directory(path) => {
                std::fs::create_dir_all(path)
                    .map_err(|source| failed("make directory", path, source))?;
                Unnamed::new_in(path)?
            }
            Source::Archive { path, .. } => Unnamed::new_in(pack::parent_of(path))?,
        };
        Ok(LayoutWriter::new(file, self.stage.clone()))
    }

    /// Writes a manifest, gives the blobs their names and lets the tag lead to it; an archive is made now.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn write_manifest(&self, media_type: &str, bytes: &[u8]) -> Result<Digest, LayoutError> {
        let mut publication = Publication::new(self, media_type, bytes, Vec::new())?;
        loop {
            if let Some(digest) = publication.step()? {
                return Ok(digest);
            }
        }
    }

    /// `None` where there is no layout yet.
    fn read_index(&self) -> Result<Option<Index>, LayoutError> {
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
        let path = self.source.path_of(INDEX);
        let index = index.read_all(&path, MANIFEST_BYTES_MAX)?;
        Index::read(&index, &path).map(Some)
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
                    ("oci", rest) => Layout::parse(rest).unwrap(),
                    (_, rest) => Layout::parse_archive(rest).unwrap(),
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
            let archive = Layout::parse_archive(&format!("{}:t", path.display())).unwrap();
            assert_eq!(
                archive.manifest().unwrap(),
                (b"1".as_slice().into(), digest.clone())
            );
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
            let archive = Layout::parse_archive(&format!("{}:t", path.display())).unwrap();
            assert!(matches!(
                archive.manifest(),
                Err(LayoutError::Archive { .. })
            ));
        }
    }

    #[test]
    fn an_archive_is_written_in_one_step_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let place = format!("{}:t", directory.path().join("a.tar").display());
        let write = |content: &[u8]| {
            let archive = Layout::parse_archive(&place).unwrap();
            let mut blob = archive.start_blob().unwrap();
            blob.write(content).unwrap();
            blob.finish(&Digest::of(content)).unwrap();
            archive
        };
        let digest = write(b"blob").write_manifest("x", b"{}").unwrap();
        // Given up before its manifest, a second one leaves the first as it was.
        assert!(!write(b"other").has_blob(&Digest::of(b"blob")));
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let again = Layout::parse_archive(&place).unwrap();
        let manifest = again.manifest().unwrap();
        assert_eq!(manifest, (b"{}".as_slice().into(), digest));
        let mut blob = again.blob(&Digest::of(b"blob")).unwrap();
        assert_eq!(blob.next_piece().unwrap().unwrap(), b"blob".as_slice());
        assert!(blob.next_piece().unwrap().is_none());
        assert!(again.blob(&Digest::of(b"other")).is_err());
    }

    #[test]
    fn an_archive_with_two_faces_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("two.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
        for _ in 0..2 {
            let mut header = tar::Header::new_ustar();
            header.set_size(2);
            tar.append_data(&mut header, INDEX, &b"{}"[..]).unwrap();
        }
        tar.finish().unwrap();
        let error = Layout::parse_archive(path.to_str().unwrap())
            .unwrap()
            .manifest();
        let LayoutError::Archive { source, .. } = error.unwrap_err() else {
            panic!("not refused as an archive");
        };
        assert!(source.to_string().contains("twice"), "{source}");
    }

    #[test]
    fn a_pinned_digest_counts_before_the_tag() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let first = Layout::parse(&format!("{path}:t"))
            .unwrap()
            .write_manifest("x", b"1")
            .unwrap();
        Layout::parse(&format!("{path}:t"))
            .unwrap()
            .write_manifest("x", b"2")
            .unwrap();
        let pinned = Layout::parse(&format!("{path}:t@{first}")).unwrap();
        assert_eq!(pinned.manifest().unwrap().0, b"1".as_slice());
        let absent = Layout::parse(&format!("{path}:t@{}", Digest::of(b"3"))).unwrap();
        assert!(matches!(absent.manifest(), Err(LayoutError::Io { .. })));
    }

    #[test]
    fn a_blob_leads_nowhere_else_and_is_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, b"1").unwrap();
        let layout = Layout::parse(&directory.path().join("layout").display().to_string()).unwrap();
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
        let layout = Layout::parse(&format!("{}:t", directory.path().display())).unwrap();
        let digest = layout.write_manifest("x", b"1").unwrap();
        std::fs::write(layout.source.path_of(&blob_name(&digest)), b"2").unwrap();
        assert!(matches!(layout.manifest(), Err(LayoutError::Digest { .. })));
    }
}
