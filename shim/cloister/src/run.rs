//! `cloister run`: one container in a VM of its own, from an image that the guest pulls, without
//! containerd. It does what containerd does: makes a bundle, has the shim create and start the task, takes
//! its output, and takes everything away at the end. A keeper does that beside it, so that a run goes on
//! whatever becomes of its client; the other commands here look at runs and end them.
//!
//! ```text
//! bundle ─► keeper ─► shim ─► create (boot, pull: shown) ─► start ─► output, signals ─► exit code
//! ```

mod attach;
mod bundle;
mod ended;
mod event;
mod exec;
mod hub;
mod keeper;
mod list;
mod log;
mod read;
mod report;
mod runtime;
mod settings;
mod since;
mod stop;
mod store;
mod table;
mod terminal;
mod top;
mod wire;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::bars::Show;
use super::monitor::Sandbox;
use attach::{Client, How, Signals};
use bundle::Bundle;
use runtime::Shim;
use settings::Settings;
use store::{Record, Run as Place};
use terminal::{DETACH_KEYS, Keys};
use wire::Frame;

pub(super) use attach::Attach;
pub(super) use ended::exit_code;
pub(super) use exec::Exec;
pub(super) use keeper::Keep;
pub(super) use list::Ps;
pub(super) use read::{Events, Logs};
pub(super) use report::{log_tails, secrets, states};
pub(super) use stop::{Rm, Stop};
pub(super) use top::Top;

/// How often to look how far the creation is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long the keeper may take to listen.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a keeper that fails says is at most this long.
const MAX_COMPLAINT: u64 = 64 * 1024;
/// What a shell says of a program that a signal ended: 128 and the signal.
const SIGNALLED: u8 = 128;
const SIGHUP: u32 = 1;
const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// The exit code of what was killed with its VM.
const KILLED: u32 = 137;

/// Which run.
#[derive(Debug, Clone, Args)]
pub(super) struct Named {
    /// The run's name.
    name: String,
    /// The namespace in which its name is.
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
}

impl Named {
    fn find(&self) -> Result<Place> {
        Place::find(&self.namespace, &self.name)
    }
}

/// What to run.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The run's name; one is made up where none is given.
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
    /// Leave it to itself once it runs, and print its name.
    #[arg(long, short)]
    detach: bool,
    /// Pass standard input on.
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(long, short)]
    tty: bool,
    /// The keys that leave a program with a terminal to itself; "" for none.
    #[arg(long, default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Remove it when it has ended; else its log and exit code stay until `cloister rm`.
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    process: bundle::Process,
    #[command(flatten)]
    container: bundle::Container,
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
    /// Runs it to its end, or until it is left to itself; returns its exit code.
    pub(super) async fn run(self) -> Result<u8> {
        let keys = Keys::parse(&self.detach_keys)?;
        terminal::check(self.tty && self.interactive && !self.detach)?;
        let shim = runtime::program(self.shim.as_deref())?;
        let config = self.config.as_ref().map(std::path::absolute).transpose()?;
        let settings = Settings::read(config.as_deref(), &self.image)?;
        let wanted = bundle::Wanted {
            args: &self.args,
            process: &self.process,
            container: &self.container,
            init_data: self.init_data.as_deref(),
            is_confidential: settings.is_confidential(),
            terminal: self.tty,
        };
        let spec = bundle::spec(&wanted)?;
        let mut record = Record::new(&self.image, &self.args, &shim);
        record.remove = self.rm;
        record.terminal = self.tty;
        record.interactive = self.interactive;
        let run = Place::create(&self.namespace, self.name.as_deref())?;
        let made = Bundle::write(&run, &spec)
            .and_then(|()| settings.write(&run))
            .and_then(|config| {
                record.config = config;
                run.write(&record)
            });
        let begun = match made {
            Ok(()) => spawn_keeper(&run).await,
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            let _ = run.remove();
            return Err(error);
        }
        let how = How {
            interactive: self.interactive,
            terminal: self.tty,
            keys,
        };
        self.attend(&run, &how).await
    }

    /// Waits for the program to run, and takes part in it unless it is left to itself.
    async fn attend(&self, run: &Place, how: &How) -> Result<u8> {
        let mut signals = Signals::catch()?;
        let mut client = Client::connect(run).await?;
        let mut show = Show::on_stderr();
        let frame = tokio::select! {
            biased;
            frame = client.until_started() => frame?,
            () = self.look(&run.name, &mut show) => bail!("nobody looks"),
            number = signals.end() => {
                show.update(&[]);
                return end_creation(run, client, number).await;
            }
        };
        show.update(&[]);
        match frame {
            Frame::Started if self.detach => {
                client.leave().await;
                println!("{}", run.name);
                Ok(0)
            }
            Frame::Started => {
                let shim = Shim::of(run, &run.read()?).await?;
                client.go_on(&shim, how).await
            }
            Frame::Failed(text) => Err(ended::Failure::of(text).into()),
            _ => bail!("the keeper of {} is of another version", run.name),
        }
    }

    /// Shows how far the creation is, for as long as it is polled.
    async fn look(&self, id: &str, show: &mut Show) {
        let sandbox = Sandbox {
            sandbox: id.to_owned(),
            namespace: self.namespace.clone(),
        };
        if self.quiet {
            return std::future::pending().await;
        }
        loop {
            // There is none before the shim listens.
            if let Ok(monitor) = sandbox.open()
                && let Ok(creations) = monitor.creations().await
            {
                show.update(&creations);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}

/// The shim's program, as runs find it.
pub(super) fn shim_program() -> Result<PathBuf> {
    runtime::program(None)
}

/// Starts the process that keeps a run, and waits until it listens or says why it does not.
async fn spawn_keeper(run: &Place) -> Result<()> {
    let program = std::env::current_exe().context("find the program itself")?;
    let mut keeper = Command::new(program)
        .args(["keep", "--namespace", &run.namespace, &run.name])
        .env(shim::state_dir::ROOT_VARIABLE, run.root())
        .current_dir(run.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start the keeper")?;
    let mut line = String::new();
    if let Some(stdout) = keeper.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        timeout(KEEPER_TIMEOUT, stdout.read_line(&mut line))
            .await
            .context("the keeper did not listen in time")??;
    }
    if line == keeper::READY {
        return Ok(());
    }
    let mut complaint = String::new();
    if let Some(stderr) = keeper.stderr.take() {
        let _ = stderr
            .take(MAX_COMPLAINT)
            .read_to_string(&mut complaint)
            .await;
    }
    bail!("{}", complaint.trim().trim_start_matches("cloister: "))
}

/// Ends a creation: the keeper does so where its client goes away. Returns when nothing is left of it.
async fn end_creation(run: &Place, client: Client, signal: u32) -> Result<u8> {
    drop(client);
    while run.path().exists() {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let keeper = run.read().ok().and_then(|record| record.keeper);
        if !keeper.is_some_and(shim::state_dir::Process::is_alive) {
            run.remove()?;
        }
    }
    Ok(SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or_default()))
}
