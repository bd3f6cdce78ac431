//! One layer's way from the registry to a directory: digest, decryption, decompression, `diff_id`, unpack.
//!
//! ```text
//! task ─► pieces ─► thread: digest, decrypt, decompress ─► chunks ─► thread: diff_id, unpack
//!                                                         ◄─ buffers ◄─
//! ```
//!
//! So one layer keeps more than one core busy, and several layers all of them. Both channels are short and the chunks'
//! buffers come back, so that a layer takes the same small memory however large it is.

mod blob;
mod content;
mod decoder;

use std::io::{self, Read};
use std::sync::mpsc as channel;
use std::thread;

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
use content::{Chunk, Content};
pub(crate) use decoder::Windows;
use decoder::{Decoder, wants_more_window};

/// Pieces between the network and the decoder; each has at most what is read from a connection at once.
pub(crate) const PIECES_AHEAD: usize = 3;
/// Bytes of a chunk on its way from the decoder to the files.
const CHUNK_BYTES: usize = 128 * 1024;
/// Chunks between the decoder and the files.
const CHUNKS_AHEAD: usize = 12;
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
    windows: &Windows,
) -> Result<Journal, LayerError> {
    decode_blob(plan, pieces, root, options, usage, windows).map_err(|error| match error {
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
    windows: &Windows,
) -> Result<Journal, LayerError> {
    let blob = Blob::new(plan, pieces)?;
    let (compression, window) = (plan.compression, options.limits.zstd_window_bytes);
    let ratio = plan.size.saturating_mul(options.limits.ratio);
    let cap = ratio.max(options.limits.ratio_floor_bytes);
    let mut lent = windows.lend();
    let decoder = Decoder::new(compression, blob, window, &mut lent);
    let decoder = decoder.map_err(LayerError::Decompress)?;
    let (send, chunks) = channel::sync_channel(CHUNKS_AHEAD);
    let (give_back, spare) = channel::channel();
    let hasher = plan.diff_id.hasher();
    let mut archive = Archive::new(Content::new(chunks, give_back, hasher));
    thread::scope(|scope| {
        let inflating = scope.spawn(move || inflate(decoder, cap, &send, &spare));
        let journal = unpack(&mut archive, root, options, usage);
        let mut content = archive.into_inner();
        // What stands behind the archive's end belongs to the digests, too.
        let journal = journal.and_then(|journal| content.finish().map(|()| journal));
        let diff_id = content.end();
        // A panic there is one here, as it would be without a second thread.
        let inflated = inflating
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match journal {
            Ok(journal) => {
                inflated.blob.accept(&diff_id)?;
                if diff_id != plan.diff_id {
                    return Err(LayerError::DiffId {
                        expected: plan.diff_id.clone(),
                        found: diff_id,
                    });
                }
                Ok(journal)
            }
            Err(UnpackError::Read(_)) if inflated.bytes > cap => Err(UnpackError::Ratio {
                unpacked: inflated.bytes,
                compressed: plan.size,
                ratio: options.limits.ratio,
            }
            .into()),
            Err(UnpackError::Read(error)) if wants_more_window(&error) => {
                let (setting, cap) = ("zstd_window_bytes", window);
                Err(UnpackError::Limit { setting, cap }.into())
            }
            Err(error) => Err(inflated.blob.explain(error)),
        }
    })
}

/// What is left when all of a layer is decompressed, or nobody wants more of it.
struct Inflated {
    blob: Blob,
    bytes: u64,
}

/// Decompresses into chunks, in buffers that come back, and holds the layer to `cap` bytes.
fn inflate(
    mut decoder: Decoder<'_, Blob>,
    cap: u64,
    send: &channel::SyncSender<Chunk>,
    spare: &channel::Receiver<Vec<u8>>,
) -> Inflated {
    let mut bytes = 0;
    loop {
        let mut chunk = spare.try_recv().unwrap_or_default();
        let more = fill(&mut decoder, &mut chunk);
        bytes += chunk.len() as u64;
        let more = match more {
            _ if bytes > cap => Err(io::Error::other("the layer is far larger than its blob")),
            more => more,
        };
        // Who unpacks needs no more when it has failed.
        let wanted = send.send(Ok(chunk)).is_ok();
        match more {
            Ok(true) if wanted => {}
            Ok(_) => break,
            Err(error) => {
                let _ = send.send(Err(error));
                break;
            }
        }
    }
    Inflated {
        blob: decoder.into_inner(),
        bytes,
    }
}

/// Fills a chunk as far as there is something; whether there may be more.
fn fill(decoder: &mut Decoder<'_, Blob>, chunk: &mut Vec<u8>) -> io::Result<bool> {
    chunk.resize(CHUNK_BYTES, 0);
    let mut filled = 0;
    let mut result = Ok(true);
    while filled < CHUNK_BYTES && matches!(result, Ok(true)) {
        match decoder.read(&mut chunk[filled..]) {
            Ok(0) => result = Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => result = Err(error),
        }
    }
    chunk.truncate(filled);
    result
}
