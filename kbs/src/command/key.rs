//! `kbs key`: a new master key, and which ones are still needed.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use http::Method;

use super::{
    Connection,
    out::{self, say},
};
use crate::{config::Config, master};

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Add a master key to the broker's key file. Brokers that run find it within a second, wrap
    /// with it, and wrap anew what older keys wrap.
    Rotate {
        /// The broker's configuration file.
        #[arg(long, short, env = "KBS_CONFIG_FILE")]
        config: PathBuf,
    },
    /// Show the keys and how much is under each: one with nothing under it may be removed.
    Status,
}

impl Key {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        match self {
            Self::Rotate { config } => {
                let config = Config::read(&config)?;
                let path = config
                    .store
                    .key
                    .context("the keys are in the environment: add one there, behind the others")?;
                let id =
                    master::rotate(&path).with_context(|| format!("rotate {}", path.display()))?;
                say!("{id}");
                Ok(())
            }
            Self::Status => {
                let answer = connection.ask(Method::GET, "key", "").await?;
                out::bytes(&answer)?;
                say!("");
                Ok(())
            }
        }
    }
}
