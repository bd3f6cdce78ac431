//! `cloister exec`: a further process in a container that runs. The client speaks to the shim itself.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::attach::{Caught, Input, Signals, show, tell_size};
use super::bundle::{self, make_fifo};
use super::ended::Failure;
use super::runtime::{Shim, Streams};
use super::store::Phase;
use super::terminal::{self, Raw};
use super::wire::MAX_FRAME;
use super::{Named, SIGKILL};

/// What to run beside it.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Pass standard input on.
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(long, short)]
    tty: bool,
    #[command(flatten)]
    process: bundle::Process,
    #[command(flatten)]
    of: Named,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    args: Vec<String>,
}

impl Exec {
    /// Runs it to its end; returns its exit code.
    pub(crate) async fn run(self) -> Result<u8> {
        terminal::check(self.tty && self.interactive)?;
        let run = self.of.find()?;
        let record = run.read()?;
        match run.phase(&record) {
            Phase::Running | Phase::Unkept => {}
            Phase::Creating => bail!("{} is being created: try again when it runs", run.name),
            Phase::Exited | Phase::Lost => bail!("{} does not run any more", run.name),
        }
        let spec = self.process.spec(&self.args, self.tty)?;
        let shim = Shim::of(&run, &record).await?;
        // Gone with the value; its name is the process's.
        let directory = tempfile::Builder::new()
            .prefix("exec-")
            .tempdir_in(run.path())?;
        let name = directory.path().file_name().unwrap_or_default();
        let exec = name.to_string_lossy().into_owned();
        let streams = self.streams(directory.path())?;
        let stdout = open(&streams.stdout)?;
        let stderr = streams.stderr.as_deref().map(open).transpose()?;
        shim.exec(&exec, &spec, &streams, self.tty).await?;
        let outcome = match shim.start_process(&exec).await {
            Ok(()) => self.attend(&shim, &exec, &streams, stdout, stderr).await,
            Err(error) => Err(Failure::of(crate::words(&error)).into()),
        };
        if outcome.is_err() {
            let _ = shim.kill(&exec, SIGKILL).await;
        }
        let _ = shim.delete(&exec).await;
        outcome
    }

    fn streams(&self, directory: &Path) -> Result<Streams> {
        let fifo = |name: &str| {
            let path = directory.join(name);
            make_fifo(&path).map(|()| path)
        };
        Ok(Streams {
            stdin: self.interactive.then(|| fifo("stdin")).transpose()?,
            stdout: fifo("stdout")?,
            stderr: (!self.tty).then(|| fifo("stderr")).transpose()?,
        })
    }

    async fn attend(
        &self,
        shim: &Shim,
        exec: &str,
        streams: &Streams,
        stdout: pipe::Receiver,
        stderr: Option<pipe::Receiver>,
    ) -> Result<u8> {
        let raw = (self.tty && self.interactive)
            .then(Raw::enter)
            .transpose()?;
        let mut signals = Signals::catch()?;
        let feeding = match &streams.stdin {
            Some(fifo) => {
                let fifo = pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(fifo)?;
                Some(tokio::spawn(feed(fifo, shim.clone(), exec.to_owned())))
            }
            None => None,
        };
        tell_size(shim, self.tty, exec);
        let copies = async {
            let err = async {
                if let Some(stderr) = stderr {
                    copy(stderr, tokio::io::stderr()).await;
                }
            };
            tokio::join!(copy(stdout, tokio::io::stdout()), err);
        };
        let ended = async { tokio::join!(shim.wait(exec), copies).0 };
        let mut ended = std::pin::pin!(ended);
        let status = loop {
            tokio::select! {
                status = &mut ended => break status,
                caught = signals.next() => match caught {
                    Caught::Resize => tell_size(shim, self.tty, exec),
                    Caught::Signal(number) => drop(shim.kill(exec, number).await),
                },
            }
        };
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        drop(raw);
        Ok(u8::try_from(status?).unwrap_or(u8::MAX))
    }
}

/// Passes our input on, and its end.
async fn feed(fifo: pipe::Sender, shim: Shim, exec: String) {
    let mut input = Input::start(true);
    while let Some(bytes) = input.next().await {
        if super::hub::write_all(&fifo, &bytes).await.is_err() {
            return;
        }
    }
    drop(fifo);
    shim.close_input(&exec).await;
}

fn open(fifo: &Path) -> Result<pipe::Receiver> {
    pipe::OpenOptions::new()
        .open_receiver(fifo)
        .with_context(|| format!("open {}", fifo.display()))
}

async fn copy(mut from: pipe::Receiver, mut to: impl tokio::io::AsyncWrite + Unpin) {
    let mut buffer = vec![0; MAX_FRAME];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        show(&mut to, buffer.get(..count).unwrap_or_default()).await;
    }
}
