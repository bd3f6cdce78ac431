//! `cloister metrics`: what a running sandbox counts of itself.

use anyhow::Result;
use clap::Args;

use super::monitor::Sandbox;
use shim::monitor::METRICS;

/// What to ask for.
#[derive(Debug, Args)]
pub(super) struct Metrics {
    #[command(flatten)]
    of: Sandbox,
}

impl Metrics {
    pub(super) async fn run(self) -> Result<()> {
        print!("{}", self.of.open()?.ask(METRICS).await?);
        Ok(())
    }
}
