//! `cloister-snapshotter`: containerd's snapshotter for images that guests pull.
//!
//! containerd asks a snapshotter for a place to unpack each layer that it is about to fetch. This one answers that the
//! layer is there already, so that containerd fetches manifest and configuration and nothing else, and hands the
//! image's name to the shim by the mount of a container. What is not to be pulled by a guest it keeps as overlayfs.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod containerd;
mod filter;
mod frame;
mod glob;
mod image;
mod mounts;
mod record;
mod server;
mod service;
mod status;
mod store;
mod tree;
mod wire;

use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use rustix::fs::Mode;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use config::Config;
use service::Service;
use store::Store;

/// The environment variable that names the level of the log.
const LEVEL_VARIABLE: &str = "CLOISTER_LOG";
/// Where systemd is told that the socket is there (sd_notify(3)).
const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";

/// Serve containerd's snapshots for images that guests pull.
#[derive(Debug, Parser)]
#[command(name = "cloister-snapshotter", version)]
struct Cli {
    /// The configuration file, else /etc/cloister/snapshotter.toml where there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_| "info".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .init();
    match run(cli.config.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloister-snapshotter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(named: Option<&Path>) -> Result<()> {
    let config = Config::load(named)?;
    let store = Store::open(&config.root, config.unpack.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let service = Arc::new(Service::new(store, &config));
    runtime.block_on(async {
        let listener = listen(&config.socket)?;
        let mut ended = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        tracing::info!(socket = %config.socket.display(), root = %config.root.display(), "serving");
        say_ready();
        tokio::select! {
            served = server::serve(listener, service) => served?,
            _ = ended.recv() => {}
            _ = interrupted.recv() => {}
        }
        Ok(())
    })
}

/// A socket for root alone, in the place of one that a death has left: the store's lock is held by now.
fn listen(socket: &Path) -> Result<UnixListener> {
    let told = || format!("socket {socket:?}");
    if let Some(directory) = socket.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .with_context(told)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(told),
        _ => {}
    }
    // From its first moment: nobody else's connection waits in it.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket).with_context(told);
    rustix::process::umask(before);
    listener
}

/// Tells systemd, where it has started us and wants to know.
fn say_ready() {
    let Some(address) = std::env::var_os(NOTIFY_VARIABLE) else {
        return;
    };
    let said = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", address));
    if let Err(error) = said {
        tracing::warn!(%error, "systemd is not told that the socket is there");
    }
}
