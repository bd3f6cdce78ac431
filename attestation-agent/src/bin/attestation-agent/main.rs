//! The guest's trust services without containers: on a confidential VM it makes evidence, fetches tokens and resources,
//! opens sealed secrets, and serves the same interfaces that containers have. On the owner's machine it seals secrets,
//! and with `--tee sample` shows what a guest would get.
//!
//! The kind of evidence is named, and never guessed.

mod file;
mod guest;
mod seal;
mod serve;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use attestation_agent::api::ServeError;
use attestation_agent::sealed::SealedError;
use attestation_agent::{BrokerError, ConfigError, Detail, EventLogError, HubError};
use clap::{Parser, Subcommand};
use evidence::Tee;
use evidence::init_data::InitDataError;
use evidence::init_data::content::ContentError;

/// Attests to a key broker, and opens what it gives.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write evidence over data of the caller's to standard output, as JSON.
    Evidence(guest::Evidence),
    /// Write the broker's token to standard output.
    Token(guest::Guest),
    /// Write a resource of the broker to standard output.
    #[command(alias = "get-resource")]
    Get(guest::Get),
    /// Write what a sealed secret holds to standard output.
    Unseal(guest::Unseal),
    /// Serve CoCo's sockets and REST to this machine until a signal ends it.
    Serve(serve::Serve),
    /// Make the key with which an owner seals secrets.
    ///
    /// The private key is written to a new file, and the public one to standard output: for the broker, or for
    /// `sealed_secret.verification_keys` in init-data.
    SealKey(seal::MakeKey),
    /// Seal a secret, for an environment variable or a file of a pod.
    #[command(subcommand)]
    Seal(seal::Seal),
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("evidence of `{0}` is made in a guest of this kind only: use `--tee sample` elsewhere")]
    Kind(Tee),
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{path} has more than {cap} bytes")]
    TooLarge { path: PathBuf, cap: usize },
    #[error("{path} is not UTF-8 text")]
    Text { path: PathBuf },
    #[error("this machine was not launched with this init-data: its report has another digest")]
    NotBound,
    #[error("neither `--url` nor init-data names a broker")]
    NoBroker,
    #[error("`{0}` is not something to allow: use resource, token, evidence or all")]
    Allow(String),
    #[error(transparent)]
    InitData(#[from] InitDataError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Seal(#[from] SealedError),
    #[error(transparent)]
    Log(#[from] EventLogError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("standard output: {0}")]
    Write(io::Error),
}

impl Error {
    fn detail(&self) -> Option<&Detail> {
        match self {
            Self::Broker(error) => error.detail(),
            Self::Hub(error) => error.broker()?.detail(),
            _ => None,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Evidence(arguments) => arguments.run().await,
        Command::Token(arguments) => arguments.token().await,
        Command::Get(arguments) => arguments.run().await,
        Command::Unseal(arguments) => arguments.run().await,
        Command::Serve(arguments) => arguments.run().await,
        Command::SealKey(arguments) => arguments.run(),
        Command::Seal(arguments) => arguments.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attestation-agent: {error}");
            // Who runs this on a terminal is no host of another's guest.
            if let Some(detail) = error.detail() {
                eprintln!("the broker says: {}", detail.expose());
            }
            ExitCode::FAILURE
        }
    }
}

fn print(bytes: &[u8]) -> Result<(), Error> {
    let mut output = io::stdout().lock();
    output.write_all(bytes).map_err(Error::Write)?;
    output.flush().map_err(Error::Write)
}
