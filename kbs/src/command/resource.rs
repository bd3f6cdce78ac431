//! `kbs resource`: secrets, without ever showing one.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use http::Method;
use kbs_protocol::ResourcePath;

use super::{Connection, out::say, read_capped};
use crate::store::{Metadata, Page};

#[derive(Debug, Subcommand)]
pub(super) enum Resource {
    /// Keep a secret under a name.
    Set {
        /// `<repository>/<type>/<tag>`.
        path: ResourcePath,
        /// The secret; standard input where absent.
        #[arg(long)]
        file: Option<PathBuf>,
        /// It may be empty: else an empty secret is refused, since a command that failed before this
        /// one gives such.
        #[arg(long)]
        empty: bool,
    },
    /// Show size, version and age of a secret.
    GetMetadata {
        /// `<repository>/<type>/<tag>`.
        path: ResourcePath,
    },
    /// Show the versions that are kept of a secret, the oldest first.
    History {
        /// `<repository>/<type>/<tag>`.
        path: ResourcePath,
    },
    /// Delete a secret.
    Delete {
        /// `<repository>/<type>/<tag>`.
        path: ResourcePath,
    },
    /// List secrets.
    List {
        /// Those whose names begin with this.
        #[arg(long, default_value = "")]
        prefix: String,
    },
}

impl Resource {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        match self {
            Self::Set { path, file, empty } => {
                let secret = read_capped(file.as_deref())?;
                anyhow::ensure!(
                    empty || !secret.is_empty(),
                    "the secret is empty: say --empty where it has to be"
                );
                let bytes = bytes::Bytes::copy_from_slice(&secret);
                let name = format!("resource/{path}");
                connection.ask(Method::POST, &name, bytes).await?;
                Ok(())
            }
            Self::GetMetadata { path } => {
                let versions = history(connection, &path).await?;
                let newest = versions.last();
                show(newest.with_context(|| format!("there is no resource {path}"))?)
            }
            Self::History { path } => {
                let versions = history(connection, &path).await?;
                versions.iter().try_for_each(show)
            }
            Self::Delete { path } => {
                let name = format!("resource/{path}");
                connection.ask(Method::DELETE, &name, "").await?;
                Ok(())
            }
            Self::List { prefix } => list(connection, prefix).await,
        }
    }
}

async fn history(connection: &Connection, path: &ResourcePath) -> anyhow::Result<Vec<Metadata>> {
    let name = format!("resource-history/{path}");
    let answer = connection.ask(Method::GET, &name, "").await?;
    serde_json::from_slice(&answer).context("read the answer")
}

async fn list(connection: &Connection, prefix: String) -> anyhow::Result<()> {
    let mut page = Page {
        prefix,
        ..Page::default()
    };
    loop {
        let path = format!("resource?{}", serde_urlencoded::to_string(&page)?);
        let answer = connection.ask(Method::GET, &path, "").await?;
        let found: Vec<Metadata> = serde_json::from_slice(&answer).context("read the answer")?;
        let Some(last) = found.last() else {
            return Ok(());
        };
        page.after = last.path.to_string();
        found.iter().try_for_each(show)?;
    }
}

fn show(metadata: &Metadata) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string(metadata)?);
    Ok(())
}
