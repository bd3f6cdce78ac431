//! `cloister keyprovider`: serves ocicrypt's key-provider protocol, for one question or on a socket.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::stat::{Mode, umask};
use ocicrypt::keyprovider::{
    Address, AddressError, DOCUMENT_BYTES_MAX, Listener, Provider, serve_grpc, serve_ttrpc,
};
use ocicrypt::{Key, read_secret};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

use super::key::{KeyId, read_kek};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The broker's name for the key, where the encryption key does not say keyid=.
    #[arg(long)]
    key_id: Option<KeyId>,
    /// The key, 32 raw bytes, where the encryption key does not say keypath=.
    #[arg(long)]
    key_file: Option<PathBuf>,
    /// This provider's name in the client's file, where a client has words for several.
    #[arg(long)]
    name: Option<String>,
    /// Serve gRPC until interrupted: unix:///path, or 127.0.0.1:port, which wraps but does not unwrap.
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    grpc: Option<Address>,
    /// Serve ttRPC until interrupted: unix:///path.
    #[arg(long, value_name = "ADDRESS", value_parser = address, conflicts_with = "grpc")]
    ttrpc: Option<Address>,
}

fn address(text: &str) -> Result<Address, AddressError> {
    Address::parse(text)
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let provider = Provider {
            name: self.name,
            kid: self.key_id.map(|kid| kid.to_string()),
            kek: self.key_file.as_deref().map(read_kek).transpose()?,
            read_key,
        };
        match (self.grpc, self.ttrpc) {
            (None, None) => once(&provider),
            (Some(Address::Tcp(address)), _) => {
                let listener = TcpListener::bind(&address).await;
                let listener = listener.with_context(|| format!("listen on {address}"))?;
                announce(&listener.local_addr()?.to_string())?;
                let serving = serve_grpc(Listener::Tcp(listener), Arc::new(provider));
                until_interrupted(serving).await
            }
            (Some(Address::Unix(path)), _) => {
                let (listener, _socket) = bind(&path)?;
                announce(&format!("unix://{}", path.display()))?;
                let serving = serve_grpc(Listener::Unix(listener), Arc::new(provider));
                until_interrupted(serving).await
            }
            (None, Some(Address::Unix(path))) => {
                let (listener, _socket) = bind(&path)?;
                announce(&format!("unix://{}", path.display()))?;
                until_interrupted(serve_ttrpc(listener, Arc::new(provider))).await
            }
            (None, Some(Address::Tcp(_))) => bail!("ttRPC is served on unix:///path"),
        }
    }
}

/// One question on stdin, one answer on stdout.
fn once(provider: &Provider) -> anyhow::Result<()> {
    let question = read_secret(io::stdin().lock(), DOCUMENT_BYTES_MAX);
    let question = question.context("read the question")?;
    let question = question.with_context(|| {
        format!("the question has more than {DOCUMENT_BYTES_MAX} bytes, the cap of the protocol")
    })?;
    let answer = provider.answer(&question)?;
    let mut out = io::stdout().lock();
    out.write_all(&answer).context("write the answer")?;
    out.flush().context("write the answer")
}

/// Whoever starts the provider waits for this line.
fn announce(address: &str) -> anyhow::Result<()> {
    writeln!(io::stderr(), "listening on {address}").context("write to stderr")
}

/// A socket in the file system, removed when dropped.
pub(super) struct Socket(PathBuf);

impl Socket {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Binds a socket that only its owner may open. One that nobody listens on any more is taken over.
pub(super) fn bind(path: &Path) -> anyhow::Result<(UnixListener, Socket)> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        fs::remove_file(path).with_context(|| format!("remove the old {}", path.display()))?;
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.with_context(|| format!("listen on {}", path.display()))?;
    Ok((listener, Socket(path.to_owned())))
}

async fn until_interrupted(serving: impl Future<Output = io::Result<()>>) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = serving => ended.context("serve key providers' questions"),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminated.recv() => Ok(()),
    }
}

fn read_key(path: &Path) -> Result<Key, String> {
    read_kek(path).map_err(|error| format!("{error:#}"))
}
