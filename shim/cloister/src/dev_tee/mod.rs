//! `cloister dev-tee`: what stands for the firmware of a TEE where there is none, for development.
//!
//! ```text
//! guest ── host port ──► shim ── stdin, stdout ──► cloister dev-tee serve ── signs with this machine's own root
//! ```
//!
//! It is to a pod what a security processor or a quoting enclave is: it knows how the pod was launched, and
//! signs reports in the hardware's formats that say so. Its root is this machine's alone. A broker believes
//! it only where its owner names that root in the broker's configuration, and then as `sim-snp` or
//! `sim-tdx`, which are no hardware.

mod directory;
mod firmware;
mod launch;
mod serve;
mod settings;
mod snp;
#[cfg(test)]
#[path = "../../../../attestation-agent/measure/tests/tdvf/mod.rs"]
mod tdvf;
mod tdx;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(crate) use self::directory::FIRMWARE;

/// Where it is unless somebody says otherwise.
const DIRECTORY: &str = shim::dev_tee::DIRECTORY;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make this machine's development root, and say what a broker must be told of it. It takes some seconds.
    Init(Init),
    /// Stand for the firmware of one pod: a part of the shim.
    #[command(hide = true)]
    Serve(Serve),
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Where to make it; it must not be there yet.
    #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// What `init` made.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Init(init) => directory::init(&init.dir),
            Self::Serve(serve) => serve::serve(&serve.dir),
        }
    }
}
