//! `kbs config`: what a configuration means, and whether a broker would start with it.

use std::path::PathBuf;

use clap::Subcommand;

use super::out::{self, say};
use crate::{
    check::{Finding, Level, findings},
    config,
};

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Look at everything that it names, and say what is wrong. It fails where `serve` would.
    Check {
        /// The configuration file.
        #[arg(long, short, env = "KBS_CONFIG_FILE")]
        config: PathBuf,
    },
    /// Print it with every default filled in. Keys are in files of their own, and are not printed.
    Show {
        /// The configuration file.
        #[arg(long, short, env = "KBS_CONFIG_FILE")]
        config: PathBuf,
    },
}

impl Config {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Check { config: path } => {
                let config = config::Config::read(&path)?;
                let file = path.display().to_string();
                let mut found = vec![Finding::new(Level::Good, "file", file)];
                found.extend(findings(&config).await);
                for finding in &found {
                    say!("{finding}");
                }
                let faults = found.iter().filter(|one| one.level == Level::Fault).count();
                anyhow::ensure!(faults == 0, "{faults} faults: the broker would not start");
                Ok(())
            }
            Self::Show { config: path } => {
                let text = toml::to_string(&config::Config::read(&path)?)?;
                out::bytes(text.as_bytes())
            }
        }
    }
}
