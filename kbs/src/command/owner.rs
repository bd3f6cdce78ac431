//! What the owner does: resources, policies, explanations, tokens.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::{Args, Subcommand, ValueEnum};
use http::Method;
use kbs_protocol::{ResourcePath, limit::RESOURCE_BYTES};
use policies::release::pin_init_data;
use zeroize::Zeroizing;

use super::Connection;
use crate::{admin::make_token, denial::Denial, route::PolicyMessage, store::Metadata};

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

#[derive(Debug, Subcommand)]
pub(super) enum Policy {
    /// Decide by a Rego file from now on.
    Set {
        /// Which one.
        #[arg(long, value_enum, default_value_t = PolicyKind::Release)]
        kind: PolicyKind,
        /// The Rego text; standard input where absent.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Print the Rego text in force.
    Show {
        /// Which one.
        #[arg(long, value_enum, default_value_t = PolicyKind::Release)]
        kind: PolicyKind,
        /// Write it to a file.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Release only to guests of one kind that were launched with one init-data.
    Pin {
        /// Hex of the init-data's digest.
        #[arg(long)]
        init_data_digest: String,
        /// The kind of TEE, by name.
        #[arg(long)]
        tee: String,
        /// Print the policy, and leave the one in force.
        #[arg(long)]
        print: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PolicyKind {
    /// Which secrets go to which guests.
    Release,
    /// What evidence is worth.
    Appraisal,
}

impl PolicyKind {
    fn endpoint(self) -> &'static str {
        match self {
            Self::Release => "resource-policy",
            Self::Appraisal => "attestation-policy",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Release => "resource-policy",
            Self::Appraisal => "default_cpu",
        }
    }
}

impl Policy {
    pub(super) async fn run(self, connection: &Connection) -> anyhow::Result<()> {
        match self {
            Self::Set { kind, file } => {
                let text = read_capped(file.as_deref())?;
                set_policy(connection, kind, &text).await
            }
            Self::Show { kind, file } => {
                let path = format!("{}/{}", kind.endpoint(), kind.id());
                let answer = connection.ask(Method::GET, &path, "").await?;
                let message: PolicyMessage =
                    serde_json::from_slice(&answer).context("read the answer")?;
                let text = BASE64_URL_SAFE_NO_PAD
                    .decode(message.policy)
                    .context("read the answer")?;
                match file {
                    Some(path) => {
                        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
                    }
                    None => Ok(io::stdout().write_all(&text)?),
                }
            }
            Self::Pin {
                init_data_digest,
                tee,
                print,
            } => {
                let text = pin_init_data(&init_data_digest, &tee)?;
                if print {
                    return Ok(io::stdout().write_all(text.as_bytes())?);
                }
                set_policy(connection, PolicyKind::Release, text.as_bytes()).await
            }
        }
    }
}

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
        println!("{}", make_token(&self.admin_key, &self.role, lifetime)?);
        Ok(())
    }
}

pub(super) async fn explain(
    connection: &Connection,
    ticket: &str,
    json: bool,
) -> anyhow::Result<()> {
    if !ticket.bytes().all(|b| b.is_ascii_alphanumeric()) {
        anyhow::bail!("`{ticket}` is no ticket");
    }
    let path = format!("explain/{ticket}");
    let answer = connection.ask(Method::GET, &path, "").await?;
    if json {
        io::stdout().write_all(&answer)?;
        println!();
        return Ok(());
    }
    let denial: Denial = serde_json::from_slice(&answer).context("read the answer")?;
    println!(
        "{} refused at {}: {}",
        denial.step, denial.time, denial.subject
    );
    for reason in &denial.reasons {
        println!("\n  claim     {}", reason.claim);
        println!("  expected  {}", reason.expected);
        println!("  found     {}", reason.found);
        println!("  fix       {}", reason.fix);
    }
    Ok(())
}

async fn set_policy(connection: &Connection, kind: PolicyKind, rego: &[u8]) -> anyhow::Result<()> {
    let message = PolicyMessage {
        policy: BASE64_URL_SAFE_NO_PAD.encode(rego),
        policy_id: Some(kind.id().to_owned()),
        kind: Some("rego".to_owned()),
    };
    let body = serde_json::to_vec(&message).context("make the request")?;
    connection.ask(Method::POST, kind.endpoint(), body).await?;
    Ok(())
}

async fn list(connection: &Connection) -> anyhow::Result<Vec<Metadata>> {
    let answer = connection.ask(Method::GET, "resource", "").await?;
    serde_json::from_slice(&answer).context("read the answer")
}

fn show(metadata: &Metadata) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(metadata)?);
    Ok(())
}

fn read_capped(path: Option<&Path>) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let source: Box<dyn Read> = match path {
        Some(path) => {
            Box::new(fs::File::open(path).with_context(|| format!("read {}", path.display()))?)
        }
        None => Box::new(io::stdin()),
    };
    let cap = u64::try_from(RESOURCE_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Zeroizing::new(Vec::new());
    source
        .take(cap + 1)
        .read_to_end(&mut bytes)
        .context("read the file")?;
    if bytes.len() > RESOURCE_BYTES {
        anyhow::bail!("larger than {RESOURCE_BYTES} bytes");
    }
    Ok(bytes)
}
