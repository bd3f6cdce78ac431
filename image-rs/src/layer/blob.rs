//! The blob as received, piece by piece: its digest, then, where it is encrypted, decryption.

use std::io::{self, BufRead, Read};

use bytes::Bytes;
use ocicrypt::LayerOptions;
use ocicrypt::cipher::{CipherError, Opener};

use super::{LayerError, Pieces, Plan};
use crate::digest::{BadDigest, Digest, Hasher};
use crate::unpack::UnpackError;

/// What goes through all digests and the cipher at once, so that it is still near when it is decompressed.
const SLICE_BYTES: usize = 64 * 1024;

/// The blob as received: its digest, then, where it is encrypted, decryption.
pub(super) struct Blob {
    pieces: Pieces,
    /// What of the newest piece was not looked at yet.
    rest: Bytes,
    /// What was looked at, and is being read.
    slice: Bytes,
    /// The same slice decrypted; nothing where there is nothing to decrypt.
    plain: Vec<u8>,
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
    pub(super) fn new(plan: &Plan, pieces: Pieces) -> Result<Self, LayerError> {
        let decrypt = plan.decrypt.as_ref().map(Decrypt::new).transpose()?;
        Ok(Self {
            pieces,
            rest: Bytes::new(),
            slice: Bytes::new(),
            plain: Vec::new(),
            position: 0,
            received: 0,
            size: plan.size,
            expected: plan.digest.clone(),
            digest: Some(plan.digest.hasher()),
            decrypt,
            failure: None,
        })
    }

    /// Takes the next slice; `false` at the blob's end, which has been checked then.
    fn refill(&mut self) -> Result<bool, LayerError> {
        if self.rest.is_empty() {
            let Some(piece) = self.pieces.blocking_recv().transpose()? else {
                return self.end().map(|()| false);
            };
            self.rest = piece;
        }
        self.slice = self.rest.split_to(self.rest.len().min(SLICE_BYTES));
        self.position = 0;
        self.received += self.slice.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.update(&self.slice);
        }
        if let Some(decrypt) = &mut self.decrypt {
            self.plain.clear();
            self.plain.extend_from_slice(&self.slice);
            decrypt.update(&mut self.plain)?;
        }
        Ok(true)
    }

    /// No more pieces come.
    fn end(&mut self) -> Result<(), LayerError> {
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
        match &mut self.decrypt {
            Some(decrypt) => Ok(decrypt.finish()?),
            None => Ok(()),
        }
    }

    /// After the last byte: the blob's digest, and the digest that was wrapped with the key.
    pub(super) fn accept(mut self, diff_id: &Digest) -> Result<(), LayerError> {
        if let Err(error) = io::copy(&mut self, &mut io::sink()) {
            return Err(self.failure.unwrap_or(LayerError::Decompress(error)));
        }
        match self.decrypt.and_then(|decrypt| decrypt.wrapped) {
            Some(wrapped) => wrapped.check(diff_id),
            None => Ok(()),
        }
    }

    /// A blob that was altered mostly shows as a broken archive first; the cause is told, not the consequence.
    pub(super) fn explain(mut self, error: UnpackError) -> LayerError {
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

impl BufRead for Blob {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.failure.is_some() {
            return Err(io::Error::other("the layer failed before"));
        }
        while self.position == self.slice.len() {
            match self.refill() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let text = error.to_string();
                    self.failure = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        let plain = match self.decrypt {
            Some(_) => self.plain.as_slice(),
            None => &self.slice,
        };
        // Both are equally long; past the end there is nothing.
        Ok(plain.get(self.position..).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.position += count;
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = buffer.len().min(available.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
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
