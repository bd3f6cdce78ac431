//! `cloister`: the owner's command line. It runs where the owner trusts the machine, never in a guest.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    match shim::cli::Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloister: {error:#}");
            ExitCode::FAILURE
        }
    }
}
