//! An image from one place to another, its layers encrypted or decrypted on the way.
//!
//! Nothing is stored between: each layer streams through the cipher into its upload, which is ended only when its
//! source's digest (and, decrypting, its HMAC) holds. The manifest is written last, so a failure leaves no image; a
//! layout in a directory is left without its blobs, too. Docker schema 2 becomes OCI, because its descriptors have no
//! annotations.

mod error;
mod fresh;
mod recipient;

pub use error::RecryptError;
pub use recipient::{ProviderRecipient, Recipients};

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use ocicrypt::annotation::{Encryption, PREFIX};
use ocicrypt::cipher::{CipherError, Nonce, Opener, Sealer};
use ocicrypt::options::{PrivateOptions, PublicOptions};
use ocicrypt::{KeySource, LayerKey, LayerOptions, media_type};
use serde_json::Value;

use crate::digest::{Algorithm, Digest, Hasher};
use crate::manifest::{CONFIG_BYTES_MAX, Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST, Platform};
use crate::place::{BlobWriter, Found, Place};
use fresh::Fresh;

/// Layers on their way at once.
const LAYERS_AT_ONCE: usize = 3;

/// What is told while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A layer begins.
    Start {
        /// Which layer, from 0.
        layer: usize,
        /// Its bytes.
        size: u64,
    },
    /// A layer went on.
    Advance {
        /// Which layer.
        layer: usize,
        /// By so many bytes.
        bytes: u64,
    },
    /// A layer is there.
    Done {
        /// Which layer.
        layer: usize,
    },
}

/// Who is told.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// Reads an image, encrypts every layer and writes it; gives the new manifest's digest.
///
/// # Errors
/// See [`RecryptError`].
pub async fn encrypt(
    from: &Place,
    to: &Place,
    platform: &Platform,
    recipients: &Recipients,
    report: &Report,
) -> Result<Digest, RecryptError> {
    if recipients.is_empty() {
        return Err(RecryptError::NoRecipient);
    }
    let found = from.manifest(platform).await?;
    check_plain(&found.manifest)?;
    let fresh = &Fresh::new(to);
    let layers = found.manifest.layers.iter().enumerate();
    let jobs = layers.map(|(index, layer)| {
        let way = Way {
            from,
            fresh,
            index,
            layer,
            report,
        };
        async move { seal(&way, recipients).await }
    });
    let layers = stream::iter(jobs)
        .buffered(LAYERS_AT_ONCE)
        .try_collect()
        .await?;
    finish(from, fresh, &found, layers).await
}

/// Tells whether an image can be encrypted.
///
/// # Errors
/// [`RecryptError::AlreadyEncrypted`], which names the first layer that is.
pub fn check_plain(manifest: &Manifest) -> Result<(), RecryptError> {
    let mut layers = manifest.layers.iter();
    let encrypted = layers.find(|layer| media_type::is_encrypted(&layer.media_type));
    encrypted.map_or(Ok(()), |layer| {
        Err(RecryptError::AlreadyEncrypted(layer.digest.clone()))
    })
}

/// Reads an image, decrypts every encrypted layer and writes it; gives the new manifest's digest.
///
/// # Errors
/// See [`RecryptError`].
pub async fn decrypt(
    from: &Place,
    to: &Place,
    platform: &Platform,
    keys: &dyn KeySource,
    report: &Report,
) -> Result<Digest, RecryptError> {
    let found = from.manifest(platform).await?;
    let layers = &found.manifest.layers;
    let sealed = layers
        .iter()
        .filter(|layer| media_type::is_encrypted(&layer.media_type));
    let annotations: Vec<&HashMap<String, String>> =
        sealed.map(|layer| &layer.annotations).collect();
    if annotations.is_empty() {
        return Err(RecryptError::NotEncrypted);
    }
    let mut options = ocicrypt::unwrap_layers(&annotations, keys)
        .await?
        .into_iter();
    let config = from
        .small_blob(&found.manifest.config.digest, CONFIG_BYTES_MAX)
        .await?;
    let diff_ids = diff_ids(&config);
    let diff_ids = &diff_ids;
    let fresh = &Fresh::new(to);
    let mut jobs = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let options = if media_type::is_encrypted(&layer.media_type) {
            options.next()
        } else {
            None
        };
        let way = Way {
            from,
            fresh,
            index,
            layer,
            report,
        };
        jobs.push(async move {
            match options {
                Some(options) => open(&way, options, diff_ids).await,
                None => carry(&way).await,
            }
        });
    }
    let written = stream::iter(jobs)
        .buffered(LAYERS_AT_ONCE)
        .try_collect()
        .await?;
    finish(from, fresh, &found, written).await
}

/// One layer on its way.
struct Way<'a> {
    from: &'a Place,
    fresh: &'a Fresh<'a>,
    index: usize,
    layer: &'a Descriptor,
    report: &'a Report,
}

/// What a layer has become.
struct Written {
    media_type: String,
    digest: Digest,
    size: u64,
    annotations: Vec<(String, String)>,
    /// Whether its bytes are others than they were.
    is_changed: bool,
}

impl Way<'_> {
    /// Streams the layer through `change`, and gives the digest of what came out and the writer, not ended yet.
    async fn stream(
        &self,
        mut change: impl FnMut(&mut [u8]) -> Result<(), CipherError>,
    ) -> Result<(BlobWriter, Digest, u64), RecryptError> {
        let layer = self.index;
        (self.report)(Progress::Start {
            layer,
            size: self.layer.size,
        });
        let mut source = self.from.blob(&self.layer.digest, self.layer.size)?;
        let mut writer = self.fresh.to.start_blob().await?;
        let mut before = self.layer.digest.hasher();
        let mut after = Hasher::new(Algorithm::Sha256);
        let mut size = 0;
        while let Some(piece) = source.next().await? {
            before.update(&piece);
            let mut piece: Vec<u8> = piece.into();
            change(&mut piece)?;
            after.update(&piece);
            writer.write(&piece).await?;
            size += piece.len() as u64;
            (self.report)(Progress::Advance {
                layer,
                bytes: piece.len() as u64,
            });
        }
        let found = before.finish();
        if found != self.layer.digest {
            return Err(RecryptError::Digest {
                expected: self.layer.digest.clone(),
                found,
            });
        }
        Ok((writer, after.finish(), size))
    }

    fn done(&self) {
        (self.report)(Progress::Done { layer: self.index });
    }

    fn plain_type(&self) -> Result<String, RecryptError> {
        media_type::oci(&self.layer.media_type).ok_or_else(|| RecryptError::LayerType {
            digest: self.layer.digest.clone(),
            media_type: self.layer.media_type.clone(),
        })
    }
}

async fn seal(way: &Way<'_>, recipients: &Recipients) -> Result<Written, RecryptError> {
    let plain_type = way.plain_type()?;
    let (key, nonce) = (LayerKey::generate()?, Nonce::generate()?);
    let mut sealer = Sealer::new(&key, &nonce);
    let (writer, digest, size) = way.stream(|piece| sealer.update(piece)).await?;
    let private = PrivateOptions {
        key,
        digest: way.layer.digest.to_string(),
        nonce: Some(nonce),
    }
    .to_json();
    let encryption = Encryption {
        public: PublicOptions::new(sealer.finish()),
        keys: recipients.wrap(&private).await?,
    };
    // What a provider answered may be more than a reader takes: told now, not when the image is pulled.
    let annotations: HashMap<_, _> = encryption.write().into_iter().collect();
    Encryption::read(&annotations)?;
    way.fresh.finish(writer, &digest).await?;
    way.done();
    Ok(Written {
        media_type: media_type::encrypted(&plain_type),
        digest,
        size,
        annotations: encryption.write(),
        is_changed: true,
    })
}

async fn open(
    way: &Way<'_>,
    options: LayerOptions,
    diff_ids: &[String],
) -> Result<Written, RecryptError> {
    let plain_type = way.plain_type()?;
    let mut opener = Opener::new(&options.key, &options.nonce);
    let (writer, digest, size) = way.stream(|piece| opener.update(piece)).await?;
    // The upload is given up when the ciphertext was not authentic.
    opener.finish(&options.hmac)?;
    // A writer that compresses while it encrypts names the uncompressed layer.
    let expected = &options.digest;
    if !expected.is_empty()
        && *expected != digest.to_string()
        && diff_ids.get(way.index) != Some(expected)
    {
        return Err(RecryptError::WrappedDigest {
            layer: way.layer.digest.clone(),
            wrapped: expected.clone(),
        });
    }
    way.fresh.finish(writer, &digest).await?;
    way.done();
    let media_type = media_type::decrypted(&plain_type).to_owned();
    Ok(Written {
        media_type,
        digest,
        size,
        annotations: Vec::new(),
        is_changed: true,
    })
}

/// A layer that is not encrypted goes over as it is.
async fn carry(way: &Way<'_>) -> Result<Written, RecryptError> {
    let media_type = way.plain_type()?;
    let (writer, digest, size) = way.stream(|_| Ok(())).await?;
    way.fresh.finish(writer, &digest).await?;
    way.done();
    Ok(Written {
        media_type,
        digest,
        size,
        annotations: Vec::new(),
        is_changed: false,
    })
}

/// The configuration, then the manifest: every member that we do not change stays as it was.
async fn finish(
    from: &Place,
    fresh: &Fresh<'_>,
    found: &Found,
    layers: Vec<Written>,
) -> Result<Digest, RecryptError> {
    let to = fresh.to;
    let config = &found.manifest.config.digest;
    if !to.has_blob(config).await? {
        let bytes = from.small_blob(config, CONFIG_BYTES_MAX).await?;
        let mut writer = to.start_blob().await?;
        writer.write(&bytes).await?;
        fresh.finish(writer, config).await?;
    }
    let mut document: Value =
        serde_json::from_slice(&found.bytes).map_err(|_| RecryptError::Manifest)?;
    document["mediaType"] = OCI_MANIFEST.into();
    if found.manifest.media_type != OCI_MANIFEST {
        document["config"]["mediaType"] = OCI_CONFIG.into();
    }
    let entries = document["layers"]
        .as_array_mut()
        .ok_or(RecryptError::Manifest)?;
    for (entry, written) in entries.iter_mut().zip(layers) {
        let entry = entry.as_object_mut().ok_or(RecryptError::Manifest)?;
        entry.insert("mediaType".to_owned(), written.media_type.into());
        entry.insert("digest".to_owned(), written.digest.to_string().into());
        entry.insert("size".to_owned(), written.size.into());
        if written.is_changed {
            // Elsewhere there is only what the layer was.
            entry.remove("urls");
        }
        let mut annotations = entry
            .remove("annotations")
            .and_then(|old| old.as_object().cloned())
            .unwrap_or_default();
        annotations.retain(|name, _| !name.starts_with(PREFIX));
        annotations.extend(
            written
                .annotations
                .into_iter()
                .map(|(name, value)| (name, value.into())),
        );
        if !annotations.is_empty() {
            entry.insert("annotations".to_owned(), annotations.into());
        }
    }
    let document = Bytes::from(document.to_string());
    let digest = to.write_manifest(OCI_MANIFEST, document).await?;
    fresh.keep();
    Ok(digest)
}

fn diff_ids(config: &[u8]) -> Vec<String> {
    let config: Value = serde_json::from_slice(config).unwrap_or_default();
    let list = config["rootfs"]["diff_ids"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.into_iter()
        .map(|item| item.as_str().unwrap_or_default().to_owned())
        .collect()
}
