//! The command line: `init` and `serve` for who runs the broker, the others for who owns secrets.

mod client;
mod collateral;
mod config;
mod dev;
mod directory;
mod explain;
mod init;
mod key;
mod log;
mod out;
mod policy;
mod record;
mod reference;
mod resource;
mod serve;
mod token;

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use anyhow::Context;
use clap::{Parser, Subcommand};

pub use client::Connection;
use kbs_protocol::limit::RESOURCE_BYTES;
use zeroize::Zeroizing;

/// The key broker of Cloister: verifies guests, and releases secrets by the owner's policy.
#[derive(Debug, Parser)]
#[command(name = "kbs", version)]
pub struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a directory with keys, a TLS root and certificate, and a configuration.
    Init(init::Init),
    /// Run the broker.
    Serve(serve::Serve),
    /// Look at a configuration.
    Config {
        #[command(subcommand)]
        verb: config::Config,
    },
    /// Set, list and delete resources.
    Resource {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        verb: resource::Resource,
    },
    /// Set, read, list, delete and make policies.
    Policy {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        verb: policy::Policy,
    },
    /// Register, list and withdraw reference values.
    Reference {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        verb: reference::Reference,
    },
    /// Say why a guest was refused.
    Explain {
        #[command(flatten)]
        connection: Connection,
        /// What the guest was given.
        ticket: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Read the record of decisions and administration.
    Record {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        verb: record::Record,
    },
    /// Look after the master keys.
    Key {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        verb: key::Key,
    },
    /// Print the OpenAPI document of what a broker serves.
    Openapi,
    /// Look after certificates, lists and statements of AMD and Intel.
    Collateral {
        #[command(subcommand)]
        verb: collateral::Collateral,
    },
    /// Make an administrator's token from a private key.
    Token(token::Token),
}

impl Command {
    /// Does what the command line says.
    ///
    /// # Errors
    /// The step that failed, with its cause.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.verb.run().await {
            Err(error) if error.is::<out::Closed>() => Ok(()),
            done => done,
        }
    }
}

impl Verb {
    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Init(init) => init.run(),
            Self::Serve(serve) => serve.run().await,
            Self::Config { verb } => verb.run().await,
            Self::Resource { connection, verb } => verb.run(&connection).await,
            Self::Policy { connection, verb } => verb.run(&connection).await,
            Self::Reference { connection, verb } => verb.run(&connection).await,
            Self::Explain {
                connection,
                ticket,
                json,
            } => explain::explain(&connection, &ticket, json).await,
            Self::Record { connection, verb } => verb.run(&connection).await,
            Self::Key { connection, verb } => verb.run(&connection).await,
            Self::Collateral { verb } => verb.run().await,
            Self::Openapi => out::bytes(crate::route::document().as_bytes()),
            Self::Token(token) => token.run(),
        }
    }
}

/// An error with its causes, each once: most errors here quote their cause already.
#[must_use]
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// A file, or standard input, of no more bytes than a resource has.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("key {name}: {source}")]
        struct Quoting {
            name: &'static str,
            source: io::Error,
        }
        let quoting = |context: &'static str| {
            let source = io::Error::other("no such file");
            let error = Quoting { name: "a", source };
            told(&anyhow::Error::from(error).context(context))
        };
        assert_eq!(quoting("rotate"), "rotate: key a: no such file");
        let plain = anyhow::anyhow!("second").context("first");
        assert_eq!(told(&plain), "first: second");
    }
}
