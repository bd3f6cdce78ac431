//! An image from one place to another, its layers encrypted or decrypted on the way.
//!
//! Nothing is stored between: each layer streams through the cipher into its upload, which is ended only when its
//! source's digest (and, decrypting, its HMAC) holds. The manifest is written last, so a failure leaves no image; in a
//! layout the blobs have no name before it. Docker schema 2 becomes OCI, because its descriptors have no
//! annotations.

mod error;
mod recipient;
mod way;

pub use error::RecryptError;
pub use recipient::{ProviderRecipient, Recipients};

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use ocicrypt::annotation::{Encryption, PREFIX};
use ocicrypt::cipher::{Nonce, Opener, Sealer};
use ocicrypt::options::{PrivateOptions, PublicOptions};
use ocicrypt::{KeySource, LayerKey, LayerOptions, media_type};
use serde_json::Value;

use crate::digest::{Algorithm, Digest};
use crate::manifest::{CONFIG_BYTES_MAX, Manifest, OCI_CONFIG, OCI_MANIFEST, Platform};
use crate::place::{Found, Place};
use way::{Way, Written};

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

/// The new manifest's digest, to come. In a box, so that who awaits it does not compile all of it anew.
pub type Answer<'a> = BoxFuture<'a, Result<Digest, RecryptError>>;

/// Who is told.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// Reads an image, encrypts every layer and writes it; gives the new manifest's digest.
///
/// # Errors
/// See [`RecryptError`].
pub fn encrypt<'a>(
    from: &'a Place,
    to: &'a Place,
    platform: &'a Platform,
    recipients: &'a Recipients,
    report: &'a Report,
) -> Answer<'a> {
    Box::pin(encrypted(from, to, platform, recipients, report))
}

async fn encrypted(
    from: &Place,
    to: &Place,
    platform: &Platform,
    recipients: &Recipients,
    report: &Report,
) -> Result<Digest, RecryptError> {
    if recipients.is_empty() {
        return Err(RecryptError::NoRecipient);
    }
    to.check_destination()?;
    let found = from.manifest(platform).await?;
    check_plain(&found.manifest)?;
    let to = &to.anew();
    let mut jobs = Vec::new();
    for (index, layer) in found.manifest.layers.iter().enumerate() {
        let way = Way {
            from,
            to,
            index,
            layer,
            report,
            needs_sha512: false,
        };
        jobs.push(async move { seal(&way, recipients).await });
    }
    let layers = stream::iter(jobs)
        .buffered(LAYERS_AT_ONCE)
        .try_collect()
        .await?;
    finish(from, to, &found, layers).await
}

/// Tells whether an image can be encrypted.
///
/// # Errors
/// [`RecryptError::AlreadyEncrypted`] or [`RecryptError::LostType`], which name the first layer that is encrypted.
pub fn check_plain(manifest: &Manifest) -> Result<(), RecryptError> {
    check_types(manifest)?;
    let mut layers = manifest.layers.iter();
    let encrypted = layers.find(|layer| media_type::is_encrypted(&layer.media_type));
    encrypted.map_or(Ok(()), |layer| {
        Err(RecryptError::AlreadyEncrypted(layer.digest.clone()))
    })
}

/// Some tool may have taken the end of an encrypted layer's media type away; what it has is ciphertext all the same.
fn check_types(manifest: &Manifest) -> Result<(), RecryptError> {
    let mut layers = manifest.layers.iter();
    let lost = layers.find(|layer| layer.has_lost_type());
    lost.map_or(Ok(()), |layer| {
        Err(RecryptError::LostType {
            digest: layer.digest.clone(),
            media_type: layer.media_type.clone(),
        })
    })
}

/// Reads an image, decrypts every encrypted layer and writes it; gives the new manifest's digest.
///
/// # Errors
/// See [`RecryptError`].
pub fn decrypt<'a>(
    from: &'a Place,
    to: &'a Place,
    platform: &'a Platform,
    keys: &'a dyn KeySource,
    report: &'a Report,
) -> Answer<'a> {
    Box::pin(decrypted(from, to, platform, keys, report))
}

async fn decrypted(
    from: &Place,
    to: &Place,
    platform: &Platform,
    keys: &dyn KeySource,
    report: &Report,
) -> Result<Digest, RecryptError> {
    to.check_destination()?;
    let found = from.manifest(platform).await?;
    check_types(&found.manifest)?;
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
    let to = &to.anew();
    let mut jobs = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let options = if media_type::is_encrypted(&layer.media_type) {
            options.next()
        } else {
            None
        };
        let way = Way {
            from,
            to,
            index,
            layer,
            report,
            needs_sha512: [diff_ids.get(index), options.as_ref().map(|it| &it.digest)]
                .into_iter()
                .flatten()
                .any(|digest| digest.starts_with(Algorithm::Sha512.name())),
        };
        jobs.push(async move {
            match options {
                Some(options) => open(&way, options, diff_ids).await,
                None => carry(&way, diff_ids).await,
            }
        });
    }
    let written = stream::iter(jobs)
        .buffered(LAYERS_AT_ONCE)
        .try_collect()
        .await?;
    finish(from, to, &found, written).await
}

async fn seal(way: &Way<'_>, recipients: &Recipients) -> Result<Written, RecryptError> {
    let plain_type = way.plain_type()?;
    let (key, nonce) = (LayerKey::generate()?, Nonce::generate()?);
    let mut sealer = Sealer::new(&key, &nonce);
    let (writer, digests) = way.stream(|piece| sealer.update(piece)).await?;
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
    writer.finish(&digests.sha256).await?;
    way.done();
    let media_type = media_type::encrypted(&plain_type);
    Ok(digests.written(media_type, encryption.write(), true))
}

async fn open(
    way: &Way<'_>,
    options: LayerOptions,
    diff_ids: &[String],
) -> Result<Written, RecryptError> {
    let plain_type = way.plain_type()?;
    let media_type = media_type::decrypted(&plain_type).to_owned();
    let mut opener = Opener::new(&options.key, &options.nonce);
    let (writer, digests) = way.stream(|piece| opener.update(piece)).await?;
    // The upload is given up when the ciphertext was not authentic.
    opener.finish(&options.hmac)?;
    // A writer that compresses while it encrypts names the uncompressed layer.
    let expected = &options.digest;
    if !expected.is_empty() && !digests.have(expected) && diff_ids.get(way.index) != Some(expected)
    {
        return Err(RecryptError::WrappedDigest {
            layer: way.layer.digest.clone(),
            wrapped: expected.clone(),
        });
    }
    way.check_content(&media_type, &digests, diff_ids)?;
    writer.finish(&digests.sha256).await?;
    way.done();
    Ok(digests.written(media_type, Vec::new(), true))
}

/// A layer that is not encrypted goes over as it is.
async fn carry(way: &Way<'_>, diff_ids: &[String]) -> Result<Written, RecryptError> {
    let media_type = way.plain_type()?;
    let (writer, digests) = way.stream(|_| Ok(())).await?;
    way.check_content(&media_type, &digests, diff_ids)?;
    writer.finish(&digests.sha256).await?;
    way.done();
    Ok(digests.written(media_type, Vec::new(), false))
}

/// The configuration, then the manifest: every member that we do not change stays as it was.
async fn finish(
    from: &Place,
    to: &Place,
    found: &Found,
    layers: Vec<Written>,
) -> Result<Digest, RecryptError> {
    let config = &found.manifest.config.digest;
    if !to.has_blob(config).await? {
        let bytes = from.small_blob(config, CONFIG_BYTES_MAX).await?;
        let mut writer = to.start_blob().await?;
        writer.write(&bytes).await?;
        writer.finish(config).await?;
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
    let origin = match from.is_beside(to) {
        true => [&found.digest, config].into_iter().cloned(),
        false => return Ok(to.write_manifest(OCI_MANIFEST, document).await?),
    };
    let layers = found.manifest.layers.iter();
    let origin = origin.chain(layers.map(|layer| layer.digest.clone()));
    Ok(to
        .write_manifest_over(OCI_MANIFEST, document, origin.collect())
        .await?)
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
