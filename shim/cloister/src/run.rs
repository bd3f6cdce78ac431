//! `cloister run`: one container in a VM of its own, from an image that the guest pulls, without
//! containerd. It does what containerd does: makes a bundle, starts the shim, asks it to create and start
//! the task, copies its output, and takes everything away at the end.
//!
//! ```text
//! bundle ─► shim ─► create (boot, pull: shown) ─► start ─► output, signals ─► exit code
//! ```

mod bundle;
mod runtime;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::AsyncWrite;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::bars::Show;
use super::monitor::Sandbox;
use bundle::Bundle;
use runtime::Shim;

/// How often to look how far the creation is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// What a shell says of a program that a signal ended: 128 and the signal.
const INTERRUPTED: u8 = 130;
const SIGINT: u32 = 2;
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// What to run.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The container's name; one is made up where none is given.
    #[arg(long)]
    name: Option<String>,
    /// The namespace in which the name is looked for, by `cloister progress` and `cloister metrics` too.
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// The shim's configuration file; else as the shim finds it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// An init-data document; cc_init_data must be among the configuration's enable_annotations.
    #[arg(long)]
    init_data: Option<PathBuf>,
    /// Pass standard input on.
    #[arg(long, short)]
    interactive: bool,
    /// Say nothing of how far it is.
    #[arg(long, short)]
    quiet: bool,
    /// The shim's program; else the one beside this one, or that in PATH.
    #[arg(long, hide = true)]
    shim: Option<PathBuf>,
    /// The image, as the guest is to name it.
    image: String,
    /// The program and its arguments in place of the image's own.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Run {
    /// Runs it to its end; returns its exit code.
    pub(super) async fn run(self) -> Result<u8> {
        let bundle = Bundle::write(&bundle::Wanted {
            name: self.name.as_deref(),
            args: &self.args,
            init_data: self.init_data.as_deref(),
            has_input: self.interactive,
        })?;
        let program = runtime::program(self.shim.as_deref())?;
        let shim = Shim::start(&program, &bundle, &self.namespace, self.config.as_deref()).await?;
        let outcome = self.task(&shim, &bundle).await;
        shim.end().await;
        outcome
    }

    async fn task(&self, shim: &Shim, bundle: &Bundle) -> Result<u8> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        // Before there is a writer: it opens only what has a reader.
        let stdout = open(&bundle.stdout())?;
        let stderr = open(&bundle.stderr())?;
        let mut show = Show::on_stderr();
        tokio::select! {
            biased;
            created = shim.create(bundle, &self.image) => created?,
            () = self.look(bundle.id(), &mut show) => {}
            () = either(&mut interrupt, &mut terminate) => {
                show.update(&[]);
                // The shim ends a creation whose container is to be deleted, and the pull with it.
                shim.delete().await?;
                return Ok(INTERRUPTED);
            }
        }
        show.update(&[]);
        shim.start_task().await?;
        let copies = async {
            tokio::join!(
                copy(stdout, tokio::io::stdout()),
                copy(stderr, tokio::io::stderr())
            );
        };
        let input = self.interactive.then(|| bundle.feed_input());
        let ended_input = async {
            if let Some(input) = input
                && input.await.is_ok()
            {
                shim.close_input().await;
            }
            std::future::pending::<()>().await;
        };
        let ended = async { tokio::join!(shim.wait(), copies).0 };
        let mut ended = std::pin::pin!(ended);
        let mut ended_input = std::pin::pin!(ended_input);
        let status = loop {
            tokio::select! {
                status = &mut ended => break status?,
                () = &mut ended_input => {}
                _ = interrupt.recv() => shim.kill(SIGINT).await,
                _ = terminate.recv() => shim.kill(SIGTERM).await,
            }
        };
        shim.delete().await?;
        Ok(u8::try_from(status).unwrap_or(u8::MAX))
    }

    /// Shows how far the creation is, for as long as it is polled.
    async fn look(&self, id: &str, show: &mut Show) {
        let sandbox = Sandbox {
            sandbox: id.to_owned(),
            namespace: self.namespace.clone(),
        };
        let monitor = sandbox.open().ok().filter(|_| !self.quiet);
        while let Some(monitor) = &monitor {
            if let Ok(creations) = monitor.creations().await {
                show.update(&creations);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        std::future::pending().await
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

fn open(fifo: &Path) -> Result<pipe::Receiver> {
    pipe::OpenOptions::new()
        .open_receiver(fifo)
        .with_context(|| format!("open {}", fifo.display()))
}

/// Copies output to its end. Where ours cannot be written to, the rest is read and dropped, so that the
/// process does not wait for ever.
async fn copy(mut from: pipe::Receiver, mut to: impl AsyncWrite + Unpin) {
    if tokio::io::copy(&mut from, &mut to).await.is_err() {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    let _ = tokio::io::AsyncWriteExt::flush(&mut to).await;
}

/// A name that the shim takes.
fn check_name(name: &str) -> Result<()> {
    if !shim::state_dir::is_plain_name(name) {
        bail!("{name:?} is not a name: use A-Z a-z 0-9 . _ -, at most 128 of them");
    }
    Ok(())
}
