//! `kbs serve`: logs as JSON lines on stderr, and a line on stdout when it listens.

use std::{io::Write, path::Path};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{Server, config::Config};

pub(super) async fn run(path: &Path) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("KBS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let config = Config::read(path)?;
    let server = Server::bind(&config).await?;
    let address = server.address().context("ask for the port")?;
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    tracing::info!(%address, accept = ?config.attestation.accept, "listening");
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {scheme}://{address}").context("say that it listens")?;
    out.flush().context("say that it listens")?;
    server
        .run(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    Ok(())
}
