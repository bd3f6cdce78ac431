//! `kbs`: the broker, and the owner's commands to it.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    match kbs::command::Command::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kbs: {error:#}");
            ExitCode::FAILURE
        }
    }
}
