//! One layer's way from the registry to a directory: digest, decryption, decompression, `diff_id`, unpack.
//!
//! ```text
//! task ─► pieces ─► thread: digest, decrypt, decompress ─► chunks ─► thread: diff_id, unpack
//!                                                         ◄─ buffers ◄─
//! ```
//!
//! So one layer keeps more than one core busy. While there are layers for all cores, one thread does both, and what it
//! decompressed is still in its core's cache when it is hashed and written; the last ones part when a core is free. The channels are short and the chunks'
//! buffers come back, so that a layer takes the same small memory however large it is.

mod blob;
mod content;
mod decoder;
mod inflate;

use std::io;

use bytes::Bytes;
use ocicrypt::LayerOptions;
use ocicrypt::cipher::CipherError;
use ocicrypt::media_type::Compression;
use tokio::sync::mpsc::Receiver;

use crate::digest::{BadDigest, Digest};
use crate::place::PlaceError;
use crate::registry::RegistryError;
use crate::shown::shown_list;
use crate::unpack::{Archive, Journal, Options, Root, UnpackError, Usage, unpack};
use blob::Blob;
use content::{Content, Source};
pub(crate) use decoder::Windows;
use decoder::{Decoder, wants_more_window};
use inflate::Inflater;

/// Pieces between the network and the decoder; each has at most what is read from a connection at once.
pub(crate) const PIECES_AHEAD: usize = 3;
/// Places of a foreign layer that an error tells.
const URLS_SHOWN_MAX: usize = 3;

/// Why a layer is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It could not be fetched.
    #[error(transparent)]
    Fetch(#[from] RegistryError),
    /// It could not be read, where the image is in a layout.
    #[error(transparent)]
    Source(Box<PlaceError>),
    /// A foreign layer that the registry does not have.
    #[error(
        "the layer is not distributable, and {source}; what its manifest names instead ({}) is never asked: \
         push the image with its foreign layers",
        shown_list(.urls.iter().map(String::as_str))
    )]
    Foreign {
        /// Where the manifest says it is.
        urls: Vec<String>,
        /// What the registry said.
        source: RegistryError,
    },
    /// The one who fetched it gave up.
    #[error("the layer's transfer was given up")]
    GivenUp,
    /// Its blob has another digest.
    #[error("the blob is not what the manifest names: expected {expected}, found {found}")]
    Digest {
        /// The manifest's.
        expected: Digest,
        /// That of the bytes received.
        found: Digest,
    },
    /// The HMAC.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// The digest that was wrapped with the key is another layer's.
    #[error(
        "the key was wrapped for layer {expected}, but opens one with digest {found} and diff_id {diff_id}"
    )]
    WrappedDigest {
        /// The digest in the private options.
        expected: String,
        /// Digest of the decrypted blob.
        found: Digest,
        /// Digest of the decompressed layer.
        diff_id: Digest,
    },
    /// The digest that was wrapped with the key is none.
    #[error("the private options of the layer: {0}")]
    BadWrappedDigest(#[from] BadDigest),
    /// Not gzip or zstd.
    #[error("the layer cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// Its content has another digest.
    #[error(
        "the layer's content is not what the configuration names: expected diff_id {expected}, found {found}"
    )]
    DiffId {
        /// The configuration's.
        expected: Digest,
        /// That of the decompressed bytes.
        found: Digest,
    },
    /// It cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// What is known of a layer before its first byte.
pub(crate) struct Plan {
    /// The manifest's digest.
    pub(crate) digest: Digest,
    /// The manifest's size, in bytes.
    pub(crate) size: u64,
    /// The configuration's digest.
    pub(crate) diff_id: Digest,
    /// Where a foreign layer is said to be.
    pub(crate) urls: Vec<String>,
    /// How the plain blob is compressed.
    pub(crate) compression: Compression,
    /// How to decrypt, for an encrypted layer.
    pub(crate) decrypt: Option<LayerOptions>,
}

/// What the machine has for a layer.
pub(crate) struct Machine<'a> {
    /// The memory of decoders.
    pub(crate) windows: &'a Windows,
    /// Whether other layers keep its cores busy, which may change while a layer is on its way.
    pub(crate) busy: &'a dyn Fn() -> bool,
}

/// Pieces of a blob on their way to a decoder.
pub(crate) type Pieces = Receiver<Piece>;

/// A piece of a blob.
pub(crate) type Piece = Result<Bytes, LayerError>;

/// Decodes and unpacks a layer into `root`. Blocking.
///
/// # Errors
/// See [`LayerError`]; when it is one, what stands in `root` is to be thrown away.
pub(crate) fn decode(
    plan: &Plan,
    pieces: Pieces,
    root: &Root,
    options: &Options,
    usage: &Usage,
    machine: &Machine<'_>,
) -> Result<Journal, LayerError> {
    decode_blob(plan, pieces, root, options, usage, machine).map_err(|error| match error {
        LayerError::Fetch(source)
            if !plan.urls.is_empty()
                && matches!(source.decisive(), RegistryError::NotFound { .. }) =>
        {
            let urls = plan.urls.iter().take(URLS_SHOWN_MAX).cloned().collect();
            LayerError::Foreign { urls, source }
        }
        other => other,
    })
}

fn decode_blob(
    plan: &Plan,
    pieces: Pieces,
    root: &Root,
    options: &Options,
    usage: &Usage,
    machine: &Machine<'_>,
) -> Result<Journal, LayerError> {
    let blob = Blob::new(plan, pieces)?;
    let (compression, window) = (plan.compression, options.limits.zstd_window_bytes);
    let ratio = plan.size.saturating_mul(options.limits.ratio);
    let cap = ratio.max(options.limits.ratio_floor_bytes);
    let mut lent = machine.windows.lend();
    let decoder = Decoder::new(compression, blob, window, &mut lent);
    let mut inflater = Inflater::new(decoder.map_err(LayerError::Decompress)?, cap);
    let (journal, diff_id) = inflater.feed(machine.busy, |source| {
        read(plan, source, root, options, usage)
    });
    let (blob, bytes) = inflater.into_blob();
    match journal {
        Ok(journal) => {
            blob.accept(&diff_id)?;
            if diff_id != plan.diff_id {
                return Err(LayerError::DiffId {
                    expected: plan.diff_id.clone(),
                    found: diff_id,
                });
            }
            Ok(journal)
        }
        Err(UnpackError::Read(_)) if bytes > cap => Err(UnpackError::Ratio {
            unpacked: bytes,
            compressed: plan.size,
            ratio: options.limits.ratio,
        }
        .into()),
        Err(UnpackError::Read(error)) if wants_more_window(&error) => {
            let (setting, cap) = ("zstd_window_bytes", window);
            Err(UnpackError::Limit { setting, cap }.into())
        }
        Err(error) => Err(blob.explain(error)),
    }
}

/// Unpacks what `source` gives, to its end.
fn read(
    plan: &Plan,
    source: &mut dyn Source,
    root: &Root,
    options: &Options,
    usage: &Usage,
) -> (Result<Journal, UnpackError>, Digest) {
    let mut archive = Archive::new(Content::new(source, plan.diff_id.hasher()));
    let journal = unpack(&mut archive, root, options, usage);
    let mut content = archive.into_inner();
    // What stands behind the archive's end belongs to the digests, too.
    let journal = journal.and_then(|journal| content.finish().map(|()| journal));
    (journal, content.end())
}
