//! The `cloister` command line: what an owner does before a pod starts. Encrypts images and registers their keys,
//! writes init-data and tells its digest, and serves skopeo as a key provider.

mod broker;
mod image;
mod init_data;
mod key;
mod keyprovider;
mod progress;
mod registry;

use clap::{Parser, Subcommand};

/// Prepare images and init-data for confidential pods.
#[derive(Debug, Parser)]
#[command(name = "cloister", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Encrypt, decrypt and inspect images.
    #[command(subcommand)]
    Image(image::Command),
    /// Write init-data and tell its digest.
    #[command(subcommand)]
    InitData(init_data::Command),
    /// Answer one question of ocicrypt's key-provider protocol, from stdin to stdout.
    ///
    /// For skopeo, buildah and containerd: a file named by OCICRYPT_KEYPROVIDER_CONFIG with
    /// {"key-providers":{"attestation-agent":{"cmd":{"path":"/usr/bin/cloister","args":["keyprovider"]}}}}
    /// and --encryption-key provider:attestation-agent:keyid=kbs:///r/t/tag::keypath=/absolute/key
    #[command(verbatim_doc_comment)]
    Keyprovider(keyprovider::Serve),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// With what went wrong and what to do.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Image(command) => command.run().await,
            Command::InitData(command) => command.run(),
            Command::Keyprovider(serve) => serve.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
