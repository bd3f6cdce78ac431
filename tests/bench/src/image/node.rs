//! The node's mirror as the shim has it, in the bench's own process, and a guest's way to it.
//!
//! ```text
//! pull (child) ─► socket ─► host port of a shim ─► its mirror
//! ```
//!
//! A socket of the host stands in for vsock; whatever is behind it is the product's.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_api::{DialAnswer, HOST_KEY_BYTES, HostKey, HostLine};
use anyhow::{Result, ensure};
use async_trait::async_trait;
use shim::mirror::Mirror;
use shim::relay::HostPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use transport::{BoxedStream, Dial};

/// Of the one guest.
const KEY: HostKey = HostKey::from_bytes([0; HOST_KEY_BYTES]);
/// More than the images of all variants.
const CAP: u64 = 8 << 30;
/// How long the last blob may be on its way into the mirror when its pull has ended.
const ARRIVAL: Duration = Duration::from_secs(30);

/// A mirror that is empty at first. It ends with the value, and its blobs go.
#[derive(Debug)]
pub struct Node {
    directory: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Node {
    /// Starts it, with its blobs in `place`.
    ///
    /// # Errors
    /// When nothing can be listened on.
    pub fn start(place: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("node-").tempdir_in(place)?;
        let listener = UnixListener::bind(socket(directory.path()))?;
        let mirror = Mirror::new(blobs(directory.path()), CAP);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A guest that pulls tells nothing else.
                let (notices, _) = mpsc::channel(1);
                let port = HostPort::new(&[], notices)
                    .with_key(KEY)
                    .with_mirror(Some(mirror.clone()));
                tokio::spawn(port.serve(stream));
            }
        });
        Ok(Self { directory, task })
    }

    /// Where it is, for [`NodeDial`] and [`settled`].
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Waits until nothing is on its way into the mirror any more.
///
/// # Errors
/// When that takes too long.
pub async fn settled(node: &Path) -> Result<()> {
    let fill = blobs(node).join("fill");
    let since = Instant::now();
    while std::fs::read_dir(&fill).is_ok_and(|mut files| files.next().is_some()) {
        ensure!(
            since.elapsed() < ARRIVAL,
            "the mirror is still being filled"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn socket(node: &Path) -> PathBuf {
    node.join("socket")
}

fn blobs(node: &Path) -> PathBuf {
    node.join("mirror")
}

/// A guest's dialler of the mirror, which looks at no name.
#[derive(Debug)]
pub struct NodeDial(pub PathBuf);

#[async_trait]
impl Dial for NodeDial {
    async fn dial(&self, _host: &str, _port: u16) -> io::Result<BoxedStream> {
        let mut stream = UnixStream::connect(socket(&self.0)).await?;
        let line = format!("{}\n", HostLine::Mirror(KEY));
        stream.write_all(line.as_bytes()).await?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            answer.push(stream.read_u8().await?);
        }
        match DialAnswer::parse(&answer).map_err(io::Error::other)? {
            DialAnswer::Ok => Ok(Box::new(stream)),
            DialAnswer::Err(_, text) => Err(io::Error::other(text)),
        }
    }
}
