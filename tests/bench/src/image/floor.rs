//! The least that a pull can take: the same cryptography, decompression and files, and nothing around them.
//!
//! ```text
//! blob in memory ─► SHA-256 ─► HMAC, AES-CTR, SHA-256 ─► inflate or zstd ─► SHA-256 ─► mkdir, open, write, close
//! ```
//!
//! The hash behind the cipher is the digest that was wrapped with a layer's key: whoever decrypts has to check it.
//! The blobs are read before, where each file begins is known before, nothing is checked, and no file gets an owner,
//! a mode or a time. Layers are spread over the cores. It runs through the blob in pieces that fit a cache, each of
//! which goes all the way before the next: nothing is faster.

use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use aes::Aes256;
use aes::cipher::{KeyIvInit, StreamCipher};
use anyhow::{Context, Result, anyhow, ensure};
use async_trait::async_trait;
use ctr::Ctr128BE;
use ocicrypt::media_type::{self, Compression};
use ocicrypt::{Key, KeyError, KeySource, LayerOptions};
use ring::{digest, hmac};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;

use super::{Cost, layout};

/// How much goes all the way at once.
const PIECE: usize = 64 * 1024;

/// Unpacks the image of the layout `from` below `target`, and says what it took.
///
/// # Errors
/// When it cannot be done.
pub async fn once(from: &Path, target: &Path, key: Option<Vec<u8>>) -> Result<Cost> {
    let work = prepare(from, key).await?;
    std::fs::create_dir(target)?;
    let root = openat(rustix::fs::CWD, target, OFlags::DIRECTORY, Mode::empty())?;
    let before = Cost::of_this_process(0.0)?;
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let cores = std::thread::available_parallelism()?.get();
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let one = || {
            while let Some(layer) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                layer.run(root.as_fd())?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(one)).collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined
            .map(|result| result.map_err(|_| anyhow!("a thread of the floor panicked"))?)
            .collect()
    });
    let cost = Cost::of_this_process(start.elapsed().as_secs_f64())?;
    results.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(Cost {
        cpu: cost.cpu - before.cpu,
        ..cost
    })
}

/// A layer with all that can be known before.
struct Work {
    blob: Vec<u8>,
    compression: Compression,
    decrypt: Option<LayerOptions>,
    things: Vec<Thing>,
}

/// What stands at which place of the archive.
enum Thing {
    Directory(String),
    Symlink(String, Vec<u8>),
    File(String, usize, usize),
}

async fn prepare(from: &Path, key: Option<Vec<u8>>) -> Result<Vec<Work>> {
    let manifest = layout::manifest(from)?;
    let keys = OneKey(key.map(Key::new));
    let mut work = Vec::new();
    for layer in &manifest.layers {
        let kind = media_type::parse(&layer.media_type).context("a layer")?;
        let mut decrypt = None;
        if kind.encrypted {
            decrypt = ocicrypt::unwrap_layers(&[&layer.annotations], &keys)
                .await?
                .pop();
        }
        let mut layer = Work {
            blob: std::fs::read(layout::blob_file(from, &layer.digest))?,
            compression: kind.compression,
            decrypt,
            things: Vec::new(),
        };
        layer.things = layer.look()?;
        work.push(layer);
    }
    Ok(work)
}

impl Work {
    fn look(&self) -> Result<Vec<Thing>> {
        let mut tar = tar::Archive::new(self.decoder());
        let mut things = Vec::new();
        for entry in tar.entries()? {
            let entry = entry?;
            let name = entry.path()?.to_string_lossy().into_owned();
            let start = usize::try_from(entry.raw_file_position())?;
            let size = usize::try_from(entry.size())?;
            things.push(match entry.header().entry_type() {
                tar::EntryType::Directory => Thing::Directory(name),
                tar::EntryType::Symlink => {
                    let link = entry.link_name_bytes().context("a link's target")?;
                    Thing::Symlink(name, link.into_owned())
                }
                _ => Thing::File(name, start, size),
            });
        }
        Ok(things)
    }

    fn decoder(&self) -> Box<dyn Read + '_> {
        let blob = BufReader::with_capacity(PIECE, Plain::new(self));
        match self.compression {
            Compression::None => Box::new(blob),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
            Compression::Zstd => match zstd::Decoder::with_buffer(blob) {
                Ok(decoder) => Box::new(decoder),
                Err(_) => Box::new(std::io::empty()),
            },
        }
    }

    fn run(&self, root: BorrowedFd<'_>) -> Result<()> {
        let mut decoder = self.decoder();
        let mut diff_id = digest::Context::new(&digest::SHA256);
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        let mut things = self.things.iter().peekable();
        let mut open: Option<(OwnedFd, usize)> = None;
        loop {
            let count = decoder.read(&mut piece)?;
            diff_id.update(&piece[..count]);
            let end = at + count;
            open = write_on(open.take(), &piece[..count], at)?;
            while open.is_none() {
                open = match things.peek() {
                    Some(Thing::File(_, start, _)) if *start >= end && count > 0 => break,
                    None => break,
                    Some(thing) => begin(root, thing, &piece[..count], at)?,
                };
                things.next();
            }
            if count == 0 {
                std::hint::black_box(diff_id.finish());
                return Ok(());
            }
            at = end;
        }
    }
}

/// Writes what this piece, which begins at `at`, has of an open file; gives it back while more is to come.
fn write_on(
    open: Option<(OwnedFd, usize)>,
    piece: &[u8],
    at: usize,
) -> Result<Option<(OwnedFd, usize)>> {
    let Some((file, until)) = open else {
        return Ok(None);
    };
    let end = (until - at).min(piece.len());
    write_all(&file, &piece[..end])?;
    Ok((until > at + piece.len()).then_some((file, until)))
}

/// Makes one thing; gives back a file of which this piece has not all.
fn begin(
    root: BorrowedFd<'_>,
    thing: &Thing,
    piece: &[u8],
    at: usize,
) -> Result<Option<(OwnedFd, usize)>> {
    match thing {
        Thing::Directory(name) => match mkdirat(root, name.as_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => Ok(None),
            Err(errno) => Err(errno.into()),
        },
        Thing::Symlink(name, target) => {
            symlinkat(target.as_slice(), root, name.as_str())?;
            Ok(None)
        }
        Thing::File(name, start, size) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file = openat(root, name.as_str(), flags, Mode::from_raw_mode(0o644))?;
            let until = start + size;
            let end = (until - at).min(piece.len());
            write_all(&file, piece.get(start - at..end).unwrap_or_default())?;
            Ok((until > at + piece.len()).then_some((file, until)))
        }
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::write(file, bytes)?;
        ensure!(count > 0, "nothing more can be written");
        bytes = &bytes[count..];
    }
    Ok(())
}

/// The blob, hashed and decrypted piece by piece.
struct Plain<'a> {
    blob: &'a [u8],
    digest: digest::Context,
    cipher: Option<Cipher>,
}

/// What an encrypted blob goes through besides.
struct Cipher {
    mac: hmac::Context,
    stream: Ctr128BE<Aes256>,
    wrapped: digest::Context,
}

impl<'a> Plain<'a> {
    fn new(work: &'a Work) -> Self {
        let cipher = work.decrypt.as_ref().map(|options| {
            let key = options.key.expose();
            Cipher {
                mac: hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key)),
                stream: Ctr128BE::<Aes256>::new(key.into(), (&options.nonce.0).into()),
                wrapped: digest::Context::new(&digest::SHA256),
            }
        });
        Self {
            blob: &work.blob,
            digest: digest::Context::new(&digest::SHA256),
            cipher,
        }
    }
}

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(self.blob.len());
        let (piece, rest) = self.blob.split_at(count);
        self.blob = rest;
        self.digest.update(piece);
        buffer[..count].copy_from_slice(piece);
        if let Some(cipher) = &mut self.cipher {
            cipher.mac.update(piece);
            cipher.stream.apply_keystream(&mut buffer[..count]);
            cipher.wrapped.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// The key that the image was encrypted for.
pub struct OneKey(pub Option<Key>);

impl std::fmt::Debug for OneKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OneKey")
    }
}

#[async_trait]
impl KeySource for OneKey {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        let key = self.0.clone().filter(|_| kid == super::KID);
        key.ok_or_else(|| KeyError::NotFound {
            kid: kid.to_owned(),
        })
    }
}
