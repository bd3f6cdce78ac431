//! `kbs serve`: logs on stderr, and a line on stdout when it listens.

use std::{io::Write, net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{dev::Dev, log};
use crate::{Server, config::Config};

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The configuration file.
    #[arg(long, short, env = "KBS_CONFIG_FILE", required_unless_present = "dev")]
    config: Option<PathBuf>,
    /// Run a broker for development: it makes its keys itself, accepts evidence that anybody can
    /// make, and says what to do next.
    #[arg(long, conflicts_with = "config")]
    dev: bool,
    /// With --dev: its directory, made when absent [default: cloister/kbs-dev among the user's data].
    #[arg(long, requires = "dev")]
    dir: Option<PathBuf>,
    /// With --dev: where to listen [default: 127.0.0.1:8080, or as before].
    #[arg(long, requires = "dev")]
    listen: Option<SocketAddr>,
}

impl Serve {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (dev, config) = match &self.config {
            Some(path) => (None, Config::read(path)?),
            None => {
                let (dev, config) = Dev::prepare(self.dir, self.listen)?;
                (Some(dev), config)
            }
        };
        log::start(config.log.format)?;
        let server = Server::bind(&config).await?;
        let address = server.address().context("ask for the port")?;
        let scheme = if config.tls.is_some() {
            "https"
        } else {
            "http"
        };
        if let Some(monitor) = server.monitor_address().context("ask for the port")? {
            tracing::info!(address = %monitor, "metrics");
        }
        tracing::info!(%address, accept = ?config.attestation.accept, "listening");
        let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
        let url = format!("{scheme}://{address}");
        let mut text = format!("listening on {url}\n");
        if let Some(dev) = dev {
            tracing::warn!("for development only: anybody can make the evidence that is accepted");
            text += &dev.instructions(&config, &url)?;
        }
        let mut out = std::io::stdout();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("say that it listens")?;
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
}
