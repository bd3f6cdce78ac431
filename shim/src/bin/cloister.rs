//! `cloister`: the command line of owners, who run it where they trust the machine, and of a host's
//! operators. It never runs in a guest.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    match shim::cli::Cli::parse().run().await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cloister: {error:#}");
            ExitCode::FAILURE
        }
    }
}
