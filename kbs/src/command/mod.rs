//! The command line: `init` and `serve` for who runs the broker, the others for who owns secrets.

mod client;
mod config;
mod dev;
mod init;
mod key;
mod log;
mod owner;
mod record;
mod serve;

use clap::{Parser, Subcommand};

pub use client::Connection;

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
        verb: owner::Resource,
    },
    /// Set, show and make policies.
    Policy {
        #[command(flatten)]
        connection: Connection,
        #[command(subcommand)]
        verb: owner::Policy,
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
    /// Make an administrator's token from a private key.
    Token(owner::Token),
}

impl Command {
    /// Does what the command line says.
    ///
    /// # Errors
    /// The step that failed, with its cause.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.verb {
            Verb::Init(init) => init.run(),
            Verb::Serve(serve) => serve.run().await,
            Verb::Config { verb } => verb.run().await,
            Verb::Resource { connection, verb } => verb.run(&connection).await,
            Verb::Policy { connection, verb } => verb.run(&connection).await,
            Verb::Explain {
                connection,
                ticket,
                json,
            } => owner::explain(&connection, &ticket, json).await,
            Verb::Record { connection, verb } => verb.run(&connection).await,
            Verb::Key { connection, verb } => verb.run(&connection).await,
            Verb::Openapi => {
                print!("{}", crate::route::document());
                Ok(())
            }
            Verb::Token(token) => token.run(),
        }
    }
}
