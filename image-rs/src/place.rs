//! Where an image is or shall be: a registry, or a layout in a directory or an archive. One face for all.

use bytes::{Bytes, BytesMut};

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::layout::{Layout, LayoutBlob, LayoutError, LayoutWriter, Publication};
use crate::manifest::{self, Document, Manifest, ManifestError, Platform};
use crate::reference::{Reference, ReferenceError};
use crate::registry::{BlobStream, RawManifest, Registry, RegistryError, Upload};

/// What one request of an upload carries.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Layers of an image that is read here; the pull has its own limit.
const LAYERS_MAX: usize = 128;

/// Why an image cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Its name.
    #[error(
        "{text:?} is not a place for images; write docker://registry/repository:tag, oci:directory[:tag] or oci-archive:file[:tag]: {source}"
    )]
    Name {
        /// What was written.
        text: String,
        /// What is wrong.
        source: ReferenceError,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<PlaceError> for LayerError {
    fn from(error: PlaceError) -> Self {
        match error {
            PlaceError::Registry(error) => Self::Fetch(error),
            error => Self::Source(Box::new(error)),
        }
    }
}

/// The place of one image.
#[expect(missing_debug_implementations, reason = "holds credentials")]
#[expect(
    clippy::large_enum_variant,
    reason = "a command has one or two of them"
)]
#[derive(Clone)]
pub enum Place {
    /// In a registry.
    Registry(Registry, Reference),
    /// In a directory or an archive.
    Layout(Layout),
}

/// A manifest with all that is needed to write it anew.
#[derive(Debug, Clone)]
pub struct Found {
    /// The exact bytes.
    pub bytes: Bytes,
    /// Their digest.
    pub digest: Digest,
    /// What they say.
    pub manifest: Manifest,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(_, image) => image.fmt(formatter),
            Self::Layout(layout) => layout.fmt(formatter),
        }
    }
}

impl Place {
    /// Reads `docker://…`, `oci:…`, `oci-archive:…`, or a bare image name.
    ///
    /// # Errors
    /// [`PlaceError::Name`], or [`LayoutError::Name`] in it.
    pub fn parse(text: &str, registry: &Registry) -> Result<Self, PlaceError> {
        if let Some(layout) = text.strip_prefix("oci:") {
            return Ok(Self::Layout(Layout::parse(layout)?));
        }
        if let Some(archive) = text.strip_prefix("oci-archive:") {
            return Ok(Self::Layout(Layout::parse_archive(archive)?));
        }
        let name = text.strip_prefix("docker://").unwrap_or(text);
        let image = name.parse().map_err(|source| PlaceError::Name {
            text: text.to_owned(),
            source,
        })?;
        Ok(Self::Registry(registry.clone(), image))
    }

    /// The manifest for `platform`, through an index where there is one.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn manifest(&self, platform: &Platform) -> Result<Found, PlaceError> {
        let found = |raw: RawManifest, manifest| Found {
            bytes: raw.bytes,
            digest: raw.digest,
            manifest,
        };
        let read =
            |raw: &RawManifest| Document::read(&raw.bytes, raw.content_type.as_deref(), LAYERS_MAX);
        let raw = self.document(None).await?;
        let entries = match read(&raw)? {
            Document::Image(manifest) => return Ok(found(raw, manifest)),
            Document::Index(entries) => entries,
        };
        let wanted = &manifest::select(&entries, platform)?.descriptor.digest;
        let raw = self.document(Some(wanted)).await?;
        match read(&raw)? {
            Document::Image(manifest) => Ok(found(raw, manifest)),
            Document::Index(_) => {
                Err(ManifestError::MediaType("an index in an index".to_owned()).into())
            }
        }
    }

    /// The document that the name leads to, or the one of a digest in the same place.
    pub(crate) async fn document(
        &self,
        digest: Option<&Digest>,
    ) -> Result<RawManifest, PlaceError> {
        match self {
            Self::Registry(registry, image) => {
                let pinned = digest.map(|digest| image.pinned(digest.clone()));
                Ok(registry.manifest(pinned.as_ref().unwrap_or(image)).await?)
            }
            Self::Layout(layout) => {
                let (bytes, digest) = match digest {
                    Some(digest) => (
                        layout.small_blob(digest, manifest::MANIFEST_BYTES_MAX)?,
                        digest.clone(),
                    ),
                    None => layout.manifest()?,
                };
                Ok(RawManifest {
                    bytes,
                    digest,
                    content_type: None,
                })
            }
        }
    }

    /// A blob of at most `cap` bytes, checked.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn small_blob(&self, digest: &Digest, cap: usize) -> Result<Bytes, PlaceError> {
        match self {
            Self::Registry(registry, image) => Ok(registry.small_blob(image, digest, cap).await?),
            Self::Layout(layout) => Ok(layout.small_blob(digest, cap)?),
        }
    }

    /// Opens a blob of `size` bytes as a stream; its digest is for the reader to check.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<BlobReader, PlaceError> {
        match self {
            Self::Registry(registry, image) => Ok(BlobReader::Registry(Box::new(
                registry.blob(image, digest, size),
            ))),
            Self::Layout(layout) => Ok(BlobReader::Layout(layout.blob_of_size(digest, size)?)),
        }
    }

    /// Starts a blob.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn start_blob(&self) -> Result<BlobWriter, PlaceError> {
        match self {
            Self::Registry(registry, image) => {
                let upload = Box::new(registry.start_upload(image).await?);
                Ok(BlobWriter::Registry {
                    upload,
                    chunk: BytesMut::new(),
                })
            }
            Self::Layout(layout) => Ok(BlobWriter::Layout(Box::new(layout.start_blob()?))),
        }
    }

    /// Whether a blob is there.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, PlaceError> {
        match self {
            Self::Registry(registry, image) => Ok(registry.has_blob(image, digest).await?),
            Self::Layout(layout) => Ok(layout.has_blob(digest)),
        }
    }

    /// Whether an image can be written here, as far as that can be told before any work is done for it.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn check_destination(&self) -> Result<(), PlaceError> {
        match self {
            Self::Registry(..) => Ok(()),
            Self::Layout(layout) => Ok(layout.check_destination()?),
        }
    }

    /// The same place for a writer of its own.
    pub(crate) fn anew(&self) -> Self {
        match self {
            Self::Registry(..) => self.clone(),
            Self::Layout(layout) => Self::Layout(layout.anew()),
        }
    }

    /// Whether both are in one directory.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Layout(one), Self::Layout(other)) => one.is_beside(other),
            _ => false,
        }
    }

    /// Writes the manifest, after all that it names; only now is the image there.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn write_manifest(
        &self,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, PlaceError> {
        self.write_manifest_over(media_type, bytes, Vec::new())
            .await
    }

    /// The same for an image that was made of another one beside it: of `origin`, its manifest and its blobs, what
    /// nothing needs any more is removed.
    pub(crate) async fn write_manifest_over(
        &self,
        media_type: &str,
        bytes: Bytes,
        origin: Vec<Digest>,
    ) -> Result<Digest, PlaceError> {
        let layout = match self {
            Self::Registry(registry, image) => {
                return Ok(registry.push_manifest(image, media_type, bytes).await?);
            }
            Self::Layout(layout) => layout,
        };
        let mut publication = Publication::new(layout, media_type, &bytes, origin)?;
        loop {
            if let Some(digest) = publication.step()? {
                return Ok(digest);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// A blob being read.
#[expect(missing_debug_implementations, reason = "holds credentials")]
pub enum BlobReader {
    /// From a registry.
    Registry(Box<BlobStream>),
    /// From a directory.
    Layout(LayoutBlob),
}

impl BlobReader {
    /// The same, of a layer that is encrypted; see [`BlobStream::encrypted`].
    #[must_use]
    pub fn encrypted(self) -> Self {
        match self {
            Self::Registry(blob) => Self::Registry(Box::new(blob.encrypted())),
            layout @ Self::Layout(_) => layout,
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, PlaceError> {
        match self {
            Self::Registry(blob) => Ok(blob.next().await?),
            Self::Layout(blob) => {
                // A file is always ready: without this, whoever waits for an interrupt would not be asked.
                tokio::task::yield_now().await;
                Ok(blob.next_piece()?)
            }
        }
    }
}

/// A blob being written; dropped before its end, it is not there.
#[expect(missing_debug_implementations, reason = "holds credentials")]
pub enum BlobWriter {
    /// To a registry.
    Registry {
        /// The upload.
        upload: Box<Upload>,
        /// What is not sent yet.
        chunk: BytesMut,
    },
    /// To a directory.
    Layout(Box<LayoutWriter>),
}

impl BlobWriter {
    /// Adds a piece.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), PlaceError> {
        match self {
            Self::Registry { upload, chunk } => {
                chunk.extend_from_slice(piece);
                while chunk.len() >= CHUNK_BYTES {
                    upload.send(chunk.split_to(CHUNK_BYTES).freeze()).await?;
                }
                Ok(())
            }
            Self::Layout(writer) => Ok(writer.write(piece)?),
        }
    }

    /// Ends the blob under its digest.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub async fn finish(self, digest: &Digest) -> Result<(), PlaceError> {
        match self {
            Self::Registry { mut upload, chunk } => {
                upload.send(chunk.freeze()).await?;
                Ok(upload.finish(digest).await?)
            }
            Self::Layout(writer) => Ok(writer.finish(digest)?),
        }
    }
}
