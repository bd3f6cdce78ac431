//! `kbs token`: a token for an administrator.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::out::say;
use crate::admin::make_token;

#[derive(Debug, Args)]
pub(super) struct Token {
    /// The administrator's private key.
    #[arg(long, env = "KBS_ADMIN_KEY")]
    admin_key: PathBuf,
    /// The role that the token gives.
    #[arg(long, default_value = "admin")]
    role: String,
    /// Seconds for which it holds.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..))]
    lifetime_seconds: u32,
}

impl Token {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let lifetime = Duration::from_secs(self.lifetime_seconds.into());
        say!("{}", make_token(&self.admin_key, &self.role, lifetime)?);
        Ok(())
    }
}
