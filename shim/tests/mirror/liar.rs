//! A host whose mirror does what it wants.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use image_rs::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use transport::{BoxedStream, Dial};

/// How it answers a request for a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// One bit is another, at the blob's end.
    Flipped,
    /// The same at its beginning.
    FlippedFirst,
    /// Another blob of the same length.
    Swapped,
    /// It ends early, and says so.
    Shortened,
    /// It says that it is whole, and breaks off.
    BrokenOff,
    /// It goes on behind its end.
    Lengthened,
    /// Nothing comes.
    Stalled,
    /// The head comes, and a part of the rest.
    StalledWithin,
    /// It leads elsewhere.
    Redirect,
    /// It wants credentials.
    Challenge,
    /// It is no HTTP.
    Noise,
}

pub const LIES: [Lie; 11] = [
    Lie::Flipped,
    Lie::FlippedFirst,
    Lie::Swapped,
    Lie::Shortened,
    Lie::BrokenOff,
    Lie::Lengthened,
    Lie::Stalled,
    Lie::StalledWithin,
    Lie::Redirect,
    Lie::Challenge,
    Lie::Noise,
];

/// The host.
#[derive(Clone)]
pub struct Liar {
    pub lie: Lie,
    blob: Arc<Vec<u8>>,
    digest: Digest,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Liar {
    pub fn new(lie: Lie, blob: &[u8]) -> Self {
        Self {
            lie,
            blob: Arc::new(blob.to_vec()),
            digest: Digest::of(blob),
            asked: Arc::default(),
        }
    }

    /// The heads of all requests to read.
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn serve(self, mut stream: DuplexStream) -> Option<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.ok()?);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            self.asked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(head.clone());
            // Of other blobs it knows nothing, so that it is asked for this one.
            let (headers, body, is_open) = if head.contains(&self.digest.to_string()) {
                self.answer()
            } else {
                let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
                (missing.to_owned(), Vec::new(), Some(true))
            };
            stream.write_all(headers.as_bytes()).await.ok()?;
            stream.write_all(&body).await.ok()?;
            match is_open {
                Some(true) => {}
                Some(false) => return None,
                None => std::future::pending().await,
            }
        }
    }

    /// Head, body, and whether the connection stays open for another; `None` is a stall.
    fn answer(&self) -> (String, Vec<u8>, Option<bool>) {
        let blob = self.blob.as_slice();
        let (length, half) = (blob.len(), blob.len() / 2);
        let ok = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let flipped = |at: usize| {
            let mut bytes = blob.to_vec();
            bytes[at] ^= 1;
            bytes
        };
        match self.lie {
            // In the padding behind the last file, where only the digest sees it.
            Lie::Flipped => (ok(length), flipped(length - 1), Some(true)),
            Lie::FlippedFirst => (ok(length), flipped(0), Some(true)),
            Lie::Swapped => (ok(length), vec![0; length], Some(true)),
            Lie::Shortened => (ok(half), blob[..half].to_vec(), Some(true)),
            Lie::BrokenOff => (ok(length), blob[..half].to_vec(), Some(false)),
            Lie::Lengthened => {
                let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_owned();
                (head, [blob, blob].concat(), Some(false))
            }
            Lie::Stalled => (String::new(), Vec::new(), None),
            Lie::StalledWithin => (ok(length), blob[..half].to_vec(), None),
            Lie::Redirect => {
                let place = "location: http://169.254.169.254/latest/";
                let head = format!("HTTP/1.1 302 Found\r\n{place}\r\ncontent-length: 0\r\n\r\n");
                (head, Vec::new(), Some(true))
            }
            Lie::Challenge => {
                let challenge = "www-authenticate: Basic realm=\"x\"\r\ncontent-length: 0";
                let head = format!("HTTP/1.1 401 Unauthorized\r\n{challenge}\r\n\r\n");
                (head, Vec::new(), Some(true))
            }
            Lie::Noise => ("\0\0\0\r\n\r\n".to_owned(), Vec::new(), Some(false)),
        }
    }
}

#[async_trait]
impl Dial for Liar {
    async fn dial(&self, _host: &str, _port: u16) -> io::Result<BoxedStream> {
        let (guest, host) = duplex(64 * 1024);
        tokio::spawn(self.clone().serve(host));
        Ok(Box::new(guest))
    }
}
