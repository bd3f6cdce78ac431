//! A blob read from the store: whole and checked once more on its way, or followed while it grows.
//!
//! What lies on a disk can rot. A blob that is read from its first to its last byte is hashed, and where it is no
//! longer what it was, its last bytes are withheld and it is removed, so that the next pull fills it anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use image_rs::Digest;
use image_rs::digest::Hasher;
use rustix::fs::{FlockOperation, flock};

use super::ingest::WHOLE;
use super::store::Store;

/// Bytes read at once.
const PIECE: usize = 128 * 1024;

/// A blob that is read.
#[derive(Debug)]
pub struct Reading {
    store: Store,
    digest: Digest,
    file: File,
    /// `None` while it grows.
    length: Option<u64>,
    position: u64,
    /// As long as every byte went through it.
    hasher: Option<Hasher>,
}

/// What a read finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Bytes(Vec<u8>),
    /// Nothing yet.
    Pause,
    End,
}

impl Reading {
    pub(super) fn new(store: Store, digest: Digest, file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::other("it is no file"));
        }
        let is_whole = meta.permissions().mode() & 0o777 == WHOLE;
        Ok(Self {
            hasher: is_whole.then(|| digest.hasher()),
            store,
            digest,
            file,
            length: is_whole.then_some(meta.len()),
            position: 0,
        })
    }

    /// Its size, where it is whole.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// Goes on at `position`.
    pub(super) fn seek(&mut self, position: u64) {
        if position > 0 {
            self.position = position;
            self.hasher = None;
        }
    }

    /// The next bytes. Blocking.
    pub(super) fn next(&mut self) -> io::Result<Piece> {
        let mut piece = vec![0; PIECE];
        // A file that was whole once and is longer now is not that blob.
        if let Some(length) = self.length {
            let left = usize::try_from(length.saturating_sub(self.position)).unwrap_or(PIECE);
            piece.truncate(left);
            if left == 0 {
                return self.check().map(|()| Piece::End);
            }
        }
        // Asked before the read: what was whole then has nothing more to come.
        let state = match self.length {
            Some(_) => State::Whole,
            None => self.state()?,
        };
        let count = self.file.read_at(&mut piece, self.position)?;
        piece.truncate(count);
        self.position += count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        match state {
            State::Whole if self.length.is_some() => self.checked(piece),
            _ if count > 0 => Ok(Piece::Bytes(piece)),
            State::Whole => Ok(Piece::End),
            State::Growing => Ok(Piece::Pause),
            State::GivenUp => Err(io::Error::other("its writer gave it up")),
        }
    }

    fn checked(&mut self, piece: Vec<u8>) -> io::Result<Piece> {
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.length == Some(self.position) {
            self.check()?;
        }
        Ok(Piece::Bytes(piece))
    }

    /// At the end of a blob that was read whole.
    fn check(&mut self) -> io::Result<()> {
        match self.hasher.take().map(Hasher::finish) {
            Some(found) if found != self.digest => {
                tracing::warn!(digest = %self.digest, "a blob of the mirror went bad and is removed");
                let removed = self.store.remove(&self.digest);
                removed.map_err(io::Error::other)?;
                Err(io::Error::other("it is not what it was"))
            }
            _ => Ok(()),
        }
    }

    fn state(&self) -> io::Result<State> {
        let meta = self.file.metadata()?;
        if meta.permissions().mode() & 0o777 == WHOLE {
            return Ok(State::Whole);
        }
        if meta.nlink() == 0 {
            return Ok(State::GivenUp);
        }
        // Whoever writes it holds the lock; no lock, no writer.
        if flock(&self.file, FlockOperation::NonBlockingLockShared).is_err() {
            return Ok(State::Growing);
        }
        let _ = flock(&self.file, FlockOperation::Unlock);
        // It may have been published since we looked.
        let mode = self.file.metadata()?.permissions().mode();
        Ok(if mode & 0o777 == WHOLE {
            State::Whole
        } else {
            State::GivenUp
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    Growing,
    GivenUp,
}
