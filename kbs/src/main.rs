//! `kbs`: the broker, and the owner's commands to it.

use std::process::ExitCode;

use clap::Parser;

/// A decision is thousands of small allocations, made in one thread and freed in another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match kbs::command::Command::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kbs: {}", kbs::command::told(&error));
            ExitCode::FAILURE
        }
    }
}
