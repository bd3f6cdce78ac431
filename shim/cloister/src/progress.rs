//! `cloister progress`: how far the containers of a sandbox are that are being created.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::bars::Show;
use super::monitor::{Monitor, Sandbox};

/// How often to look: the guest tells no more than ten states in a second.
const INTERVAL: Duration = Duration::from_millis(200);

/// What to look at.
#[derive(Debug, Args)]
pub(super) struct Progress {
    #[command(flatten)]
    of: Sandbox,
    /// Look on until no container is being created any more; with bars on a terminal.
    #[arg(long, short)]
    follow: bool,
}

impl Progress {
    pub(super) async fn run(self) -> Result<()> {
        let monitor = self.of.open()?;
        if self.follow {
            return follow(&monitor).await;
        }
        for creation in monitor.creations().await? {
            println!("{creation}");
        }
        Ok(())
    }
}

async fn follow(monitor: &Monitor) -> Result<()> {
    let mut show = Show::on_stderr();
    loop {
        let creations = monitor.creations().await?;
        show.update(&creations);
        if creations.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
