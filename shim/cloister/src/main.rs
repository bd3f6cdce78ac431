//! `cloister`: the command line. For an owner, where they trust the machine and before a pod starts: encrypts
//! images and registers their keys, writes init-data and tells its digest, predicts what the hardware will
//! report, and serves skopeo as a key provider. For an operator, on the pod's host: checks the host and the
//! shim's configuration, tells what sandboxes count of themselves and how far a creation is. For people without
//! containerd: runs containers and looks after them. It never runs in a guest.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bars;
mod broker;
mod check;
mod collect;
mod config;
mod dev_tee;
mod direct_volume;
mod image;
mod image_set;
mod init_data;
mod key;
mod keyprovider;
mod manual;
mod measure;
mod metrics;
mod monitor;
mod node;
mod policy;
mod progress;
mod recipient;
mod registry;
mod run;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Prepare images and init-data for confidential pods, and look at those that run.
#[derive(Debug, Parser)]
#[command(name = "cloister", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell what this host can do for containers in VMs, why not the rest, and how to get it.
    ///
    /// Exits with 1 where something is missing without which nothing runs.
    Check(check::Check),
    /// Make one archive for a bug report: versions, the check's result, the configuration, where runs and
    /// sandboxes are. No environment, no specification and no secret is in it.
    Collect(collect::Collect),
    /// Print what a shell needs to complete the command line.
    Completions(manual::Completions),
    /// Check a configuration of the shim, Kata's or Cloister's, and show what holds.
    #[command(subcommand)]
    Config(config::Command),
    /// Make a development root, by which pods attest on machines without a TEE.
    #[command(subcommand)]
    DevTee(dev_tee::Command),
    /// Describe volumes that the guest mounts itself, ask how full they are, and make them larger, as storage
    /// drivers do with `kata-runtime direct-volume`.
    #[command(subcommand)]
    DirectVolume(direct_volume::Command),
    /// Encrypt, decrypt and inspect images.
    #[command(subcommand)]
    Image(image::Command),
    /// Sign the guest image, compare two, and let a broker expect an upgrade.
    ImageSet(image_set::ImageSet),
    /// Write init-data and tell its digest.
    #[command(subcommand)]
    InitData(init_data::Command),
    /// Serve ocicrypt's key-provider protocol: one question from stdin to stdout, or a socket of gRPC or ttRPC.
    ///
    /// For skopeo, buildah and containerd: a file named by OCICRYPT_KEYPROVIDER_CONFIG with
    /// {"key-providers":{"attestation-agent":{"cmd":{"path":"/usr/bin/cloister","args":["keyprovider"]}}}}
    /// or {"key-providers":{"attestation-agent":{"grpc":"unix:///run/cloister/keyprovider.sock"}}},
    /// and --encryption-key provider:attestation-agent:keyid=kbs:///r/t/tag::keypath=/absolute/key
    #[command(verbatim_doc_comment)]
    Keyprovider(keyprovider::Serve),
    /// Keep a run: a part of `cloister run`.
    #[command(hide = true)]
    Keep(run::Keep),
    /// Go on with a run that was left to itself: its output from now on, and its input.
    Attach(run::Attach),
    /// Print what happened to runs, as lines of JSON, and what happens.
    Events(run::Events),
    /// Run a further program in a container that runs.
    Exec(run::Exec),
    /// Print what a run's program wrote.
    ///
    /// A run's log has at most 20 MiB; what is older is gone.
    Logs(run::Logs),
    /// List the runs that there are.
    Ps(run::Ps),
    /// Remove runs that have ended, with their logs.
    Rm(run::Rm),
    /// End runs: by a signal, after a grace by SIGKILL, and where the guest does not answer by the end of its VM.
    Stop(run::Stop),
    /// Show what runs use, live on a terminal.
    Top(run::Top),
    /// Write the manual's pages into a directory.
    Man(manual::Man),
    /// Predict what the hardware will report of a guest, before it is launched.
    Measure(Box<measure::Measure>),
    /// Print the metrics of a running sandbox and its guest, in Prometheus' text format.
    ///
    /// The same as `curl --unix-socket <state directory>/shim-monitor.sock http://shim/metrics`. A policy
    /// of the guest's owner may refuse GetMetricsRequest; then the guest's own figures are missing.
    Metrics(metrics::Metrics),
    /// Serve the metrics of all sandboxes of this node to Prometheus, on the paths and with the labels of
    /// kata-monitor.
    ///
    /// It needs the right to read the sandboxes' directories, and asks nobody for a name or a password: listen
    /// where only those come whom the pods' names concern.
    Monitor(node::Monitor),
    /// Ask the owner's policy about requests, without a guest.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Run a container in a VM of its own, without containerd; the guest pulls the image.
    ///
    /// On a terminal the boot and the pull are shown as bars, else as lines. SIGINT and SIGTERM end the
    /// pull, or go to the program; the exit code is the program's, 128 and the number of the signal that
    /// ended it, 127 where the image has no such program, 126 where it cannot be run, and 125 for
    /// everything that went wrong before.
    Run(Box<run::Run>),
    /// Print how far the containers of a sandbox are that are being created: the boot, and the pull by layers.
    ///
    /// A policy of the guest's owner may refuse WatchPullRequest; then no more is known than that it pulls.
    Progress(progress::Progress),
}

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("cloister: {}", words(&error));
            ExitCode::FAILURE
        }
    }
}

/// The exit code of a program that was to be run, or the one that says why it was not.
fn own_failure(outcome: anyhow::Result<u8>) -> anyhow::Result<u8> {
    outcome.or_else(|error| {
        eprintln!("cloister: {}", words(&error));
        Ok(run::exit_code(&error))
    })
}

/// An error and its causes, each said once: some tell their cause in their own words. Whoever makes them has escaped
/// what is another's; what was overlooked does not steer the terminal either.
fn words(error: &anyhow::Error) -> String {
    const LINE_SHOWN: usize = 16 * 1024;
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let lines = text
        .lines()
        .map(|line| image_rs::shown_up_to(line, LINE_SHOWN));
    lines.collect::<Vec<_>>().join("\n")
}

impl Cli {
    /// Runs the command; returns the exit code.
    async fn run(self) -> anyhow::Result<u8> {
        match self.command {
            Command::Check(check) => return check.run().await,
            Command::Collect(collect) => collect.run().await?,
            Command::Completions(completions) => completions.run(Cli::command())?,
            Command::Config(command) => return command.run(),
            Command::DevTee(command) => command.run()?,
            Command::DirectVolume(command) => command.run().await?,
            Command::Image(command) => command.run().await?,
            Command::ImageSet(command) => return command.run().await,
            Command::InitData(command) => command.run()?,
            Command::Keyprovider(serve) => serve.run().await?,
            Command::Man(man) => man.run(Cli::command())?,
            Command::Measure(measure) => measure.run()?,
            Command::Metrics(metrics) => metrics.run().await?,
            Command::Monitor(monitor) => monitor.run().await?,
            Command::Policy(command) => return command.run(),
            Command::Attach(attach) => return attach.run().await,
            Command::Events(events) => events.run().await?,
            Command::Exec(exec) => return own_failure(exec.run().await),
            Command::Keep(keep) => return keep.run().await,
            Command::Logs(logs) => logs.run().await?,
            Command::Ps(ps) => ps.run()?,
            Command::Rm(rm) => return rm.run().await,
            Command::Run(run) => return own_failure(run.run().await),
            Command::Stop(stop) => return stop.run().await,
            Command::Top(top) => top.run().await?,
            Command::Progress(progress) => progress.run().await?,
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use clap::CommandFactory as _;

    /// An error that tells its cause in its own words.
    #[derive(Debug)]
    struct Telling(std::io::Error);

    impl std::fmt::Display for Telling {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "write \"x\": {}", self.0)
        }
    }

    impl std::error::Error for Telling {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_cause_is_told_once_and_steers_no_terminal() {
        let full = Telling(std::io::Error::other("no space\u{1b}[2J\u{202e}"));
        let error = Err::<(), _>(full).context("the image was not written");
        assert_eq!(
            super::words(&error.unwrap_err()),
            "the image was not written: write \"x\": no space\\u{1b}[2J\\u{202e}"
        );
    }

    #[test]
    fn the_options_do_not_contradict_each_other() {
        super::Cli::command().debug_assert();
    }
}
