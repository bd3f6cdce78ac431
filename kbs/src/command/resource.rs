//! `kbs resource`: secrets, without ever showing one.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use http::Method;
use kbs_protocol::ResourcePath;

use super::{Connection, read_capped};
use crate::store::Metadata;

#[derive(Debug, Subcommand)]
pub(super) enum Resource {
    /// Keep a secret under a name.
    Set {
        /// `<repository>/<type>/<tag>`.
        path: ResourcePath,
        /// The secret; standard input where absent.
        #[arg(long)]
        file: Option<PathBuf>,
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
    List,
}

impl Resource {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        match self {
            Self::Set { path, file } => {
                let secret = read_capped(file.as_deref())?;
                let bytes = bytes::Bytes::copy_from_slice(&secret);
                let name = format!("resource/{path}");
                connection.ask(Method::POST, &name, bytes).await?;
                Ok(())
            }
            Self::GetMetadata { path } => {
                let all = list(connection).await?;
                let found = all.iter().find(|one| one.path == path);
                show(found.with_context(|| format!("there is no resource {path}"))?)
            }
            Self::History { path } => {
                let name = format!("resource-history/{path}");
                let answer = connection.ask(Method::GET, &name, "").await?;
                let versions: Vec<Metadata> =
                    serde_json::from_slice(&answer).context("read the answer")?;
                versions.iter().try_for_each(show)
            }
            Self::Delete { path } => {
                let name = format!("resource/{path}");
                connection.ask(Method::DELETE, &name, "").await?;
                Ok(())
            }
            Self::List => list(connection).await?.iter().try_for_each(show),
        }
    }
}

async fn list(connection: &Connection) -> anyhow::Result<Vec<Metadata>> {
    let answer = connection.ask(Method::GET, "resource", "").await?;
    serde_json::from_slice(&answer).context("read the answer")
}

fn show(metadata: &Metadata) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(metadata)?);
    Ok(())
}
