//! One layer's way from the registry to a directory: digest, decryption, decompression, `diff_id`, unpack.
//!
//! Pieces arrive from an asynchronous task through a short channel; all the rest runs on a blocking thread of its
//! own, so that as many layers are decoded at once as there are threads for them.

mod decoder;

use std::io::{self, BufReader, Read};

use bytes::Bytes;
use ocicrypt::LayerOptions;
use ocicrypt::cipher::{CipherError, Opener};
use ocicrypt::media_type::Compression;
use tokio::sync::mpsc::Receiver;

use crate::digest::{BadDigest, Digest, Hasher};
use crate::place::PlaceError;
use crate::registry::RegistryError;
use crate::unpack::{Archive, Journal, Options, Root, UnpackError, Usage, unpack};
use decoder::{Decoder, wants_more_window};

/// What is handed to a decoder at once, and by it.
const BUFFER_BYTES: usize = 128 * 1024;
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
        .urls.join(", ")
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
pub(crate) type Pieces = Receiver<Result<Bytes, LayerError>>;

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
) -> Result<Journal, LayerError> {
    decode_blob(plan, pieces, root, options, usage).map_err(|error| match error {
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
) -> Result<Journal, LayerError> {
    let blob = Blob::new(plan, pieces)?;
    let window = options.limits.zstd_window_bytes;
    let blob = BufReader::with_capacity(BUFFER_BYTES, blob);
    let decoder = Decoder::new(plan.compression, blob, window).map_err(LayerError::Decompress)?;
    let mut archive = Archive::new(BufReader::with_capacity(
        BUFFER_BYTES,
        Content {
            decoder,
            hasher: plan.diff_id.hasher(),
            bytes: 0,
            cap: plan
                .size
                .saturating_mul(options.limits.ratio)
                .max(options.limits.ratio_floor_bytes),
            exceeded: false,
        },
    ));
    let journal = unpack(&mut archive, root, options, usage);
    let mut content = archive.into_inner();
    // What stands behind the archive's end belongs to the digests, too.
    let journal = journal.and_then(|journal| {
        io::copy(&mut content, &mut io::sink()).map_err(UnpackError::Read)?;
        Ok(journal)
    });
    let content = content.into_inner();
    let (unpacked, exceeded) = (content.bytes, content.exceeded);
    let diff_id = content.hasher.finish();
    let blob = content.decoder.into_inner().into_inner();
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
        Err(UnpackError::Read(_)) if exceeded => {
            let (compressed, ratio) = (plan.size, options.limits.ratio);
            Err(UnpackError::Ratio {
                unpacked,
                compressed,
                ratio,
            }
            .into())
        }
        Err(UnpackError::Read(error)) if wants_more_window(&error) => {
            let (setting, cap) = ("zstd_window_bytes", window);
            Err(UnpackError::Limit { setting, cap }.into())
        }
        Err(error) => Err(blob.explain(error)),
    }
}

/// The blob as received: its digest, then, where it is encrypted, decryption in place.
struct Blob {
    pieces: Pieces,
    piece: Vec<u8>,
    position: usize,
    received: u64,
    size: u64,
    expected: Digest,
    /// Until the end, where it is compared.
    digest: Option<Hasher>,
    decrypt: Option<Decrypt>,
    failure: Option<LayerError>,
}

struct Decrypt {
    opener: Option<Opener>,
    hmac: [u8; ocicrypt::cipher::HMAC_BYTES],
    wrapped: Option<Wrapped>,
}

/// The digest inside the private options, and the same hash over the decrypted blob.
struct Wrapped {
    expected: Digest,
    hasher: Hasher,
}

impl Blob {
    fn new(plan: &Plan, pieces: Pieces) -> Result<Self, LayerError> {
        let decrypt = plan.decrypt.as_ref().map(Decrypt::new).transpose()?;
        Ok(Self {
            pieces,
            piece: Vec::new(),
            position: 0,
            received: 0,
            size: plan.size,
            expected: plan.digest.clone(),
            digest: Some(plan.digest.hasher()),
            decrypt,
            failure: None,
        })
    }

    /// Takes the next piece; `false` at the blob's end, which has been checked then.
    fn refill(&mut self) -> Result<bool, LayerError> {
        let Some(piece) = self.pieces.blocking_recv().transpose()? else {
            if self.received != self.size {
                return Err(LayerError::GivenUp);
            }
            // The digest first: where both fail, the blob was altered on its way, whatever the key.
            if let Some(found) = self.digest.take().map(Hasher::finish)
                && found != self.expected
            {
                return Err(LayerError::Digest {
                    expected: self.expected.clone(),
                    found,
                });
            }
            if let Some(decrypt) = &mut self.decrypt {
                decrypt.finish()?;
            }
            return Ok(false);
        };
        self.received += piece.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(&piece);
        }
        self.piece = piece.into();
        self.position = 0;
        if let Some(decrypt) = &mut self.decrypt {
            decrypt.update(&mut self.piece)?;
        }
        Ok(true)
    }

    /// After the last byte: the blob's digest, and the digest that was wrapped with the key.
    fn accept(mut self, diff_id: &Digest) -> Result<(), LayerError> {
        if let Err(error) = io::copy(&mut self, &mut io::sink()) {
            return Err(self.failure.unwrap_or(LayerError::Decompress(error)));
        }
        match self.decrypt.and_then(|decrypt| decrypt.wrapped) {
            Some(wrapped) => wrapped.check(diff_id),
            None => Ok(()),
        }
    }

    /// A blob that was altered mostly shows as a broken archive first; the cause is told, not the consequence.
    fn explain(mut self, error: UnpackError) -> LayerError {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        if error.may_be_damage() {
            // Read to its end, which is where it is checked; the failure stays with the blob.
            let _ = io::copy(&mut self, &mut io::sink());
        }
        match (self.failure, error) {
            (Some(failure), _) => failure,
            (None, UnpackError::Read(source)) => LayerError::Decompress(source),
            (None, error) => LayerError::Unpack(error),
        }
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.piece.len() {
            if self.failure.is_some() {
                return Err(io::Error::other("the layer failed before"));
            }
            match self.refill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    let text = error.to_string();
                    self.failure = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        let count = buffer.len().min(self.piece.len() - self.position);
        buffer[..count].copy_from_slice(&self.piece[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

impl Decrypt {
    fn new(options: &LayerOptions) -> Result<Self, BadDigest> {
        let wrapped = match options.digest.as_str() {
            "" => None,
            text => {
                let expected: Digest = text.parse()?;
                Some(Wrapped {
                    hasher: expected.hasher(),
                    expected,
                })
            }
        };
        Ok(Self {
            opener: Some(Opener::new(&options.key, &options.nonce)),
            hmac: options.hmac,
            wrapped,
        })
    }

    fn update(&mut self, piece: &mut [u8]) -> Result<(), CipherError> {
        if let Some(opener) = &mut self.opener {
            opener.update(piece)?;
        }
        if let Some(wrapped) = &mut self.wrapped {
            wrapped.hasher.update(piece);
        }
        Ok(())
    }

    /// The end of a blob can be asked for more than once; it is checked the first time.
    fn finish(&mut self) -> Result<(), CipherError> {
        self.opener
            .take()
            .map_or(Ok(()), |opener| opener.finish(&self.hmac))
    }
}

impl Wrapped {
    /// The digest of the decrypted blob, or, where the writer compressed while it encrypted, of its content.
    fn check(self, diff_id: &Digest) -> Result<(), LayerError> {
        let found = self.hasher.finish();
        if found == self.expected || *diff_id == self.expected {
            return Ok(());
        }
        let expected = self.expected.to_string();
        Err(LayerError::WrappedDigest {
            expected,
            found,
            diff_id: diff_id.clone(),
        })
    }
}

/// The decompressed layer: hashed for its `diff_id`, and held to the ratio.
struct Content {
    decoder: Decoder<BufReader<Blob>>,
    hasher: Hasher,
    bytes: u64,
    cap: u64,
    exceeded: bool,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        if self.bytes > self.cap {
            self.exceeded = true;
            return Err(io::Error::other("the layer is far larger than its blob"));
        }
        Ok(count)
    }
}
