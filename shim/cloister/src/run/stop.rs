//! `cloister stop` and `cloister rm`: the end of a run, by asking and then not, in bounded time.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use tokio::time::{sleep, timeout};

use super::event::Event;
use super::runtime::{self, Shim};
use super::store::{Phase, Record, Run};
use super::{KILLED, SIGKILL, keeper};

/// How long a keeper may take to write down an end that it was told of: the guest powers off meanwhile.
const WRITTEN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a guest may take to kill a process.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The longest grace, in seconds.
const MAX_GRACE: u64 = 24 * 3600;

/// What to end.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// The runs' names.
    #[arg(required = true)]
    names: Vec<String>,
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Seconds that the program has to end by itself; then it is killed, and then its VM.
    #[arg(long, short, default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=MAX_GRACE))]
    time: u64,
    /// The signal by which it is asked: a name or a number.
    #[arg(long, short, default_value = "TERM")]
    signal: String,
}

/// What to remove.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The runs' names.
    #[arg(required_unless_present = "stopped")]
    names: Vec<String>,
    #[arg(long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Also one that runs: it is killed.
    #[arg(long, short)]
    force: bool,
    /// All that have ended.
    #[arg(long, conflicts_with = "names")]
    stopped: bool,
}

/// What was done to end a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Nothing,
    Signalled,
    Killed,
    VmKilled,
    /// Nobody kept it, and what there was of it was killed.
    Buried,
}

impl Stop {
    pub(crate) async fn run(self) -> Result<u8> {
        let signal = signal_number(&self.signal)?;
        let grace = Duration::from_secs(self.time);
        each(&self.names, async |name| {
            let run = Run::find(&self.namespace, name)?;
            let done = end(&run, signal, grace).await?;
            println!("{}", words(&run, done));
            Ok(())
        })
        .await
    }
}

impl Rm {
    pub(crate) async fn run(self) -> Result<u8> {
        let mut names = self.names.clone();
        if self.stopped {
            for run in Run::all(Some(&self.namespace))? {
                if run
                    .read()
                    .is_ok_and(|record| !run.phase(&record).is_alive())
                {
                    names.push(run.name);
                }
            }
        }
        each(&names, async |name| self.remove(name).await).await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let found = Run::find(&self.namespace, name);
        let run = match (found, self.force) {
            (Ok(run), _) => run,
            // What is to be gone is.
            (Err(_), true) => return Ok(()),
            (Err(error), false) => return Err(error),
        };
        let record = run.read();
        let phase = record
            .as_ref()
            .map_or(Phase::Lost, |record| run.phase(record));
        if phase.is_alive() {
            if !self.force {
                bail!("{name} runs: `cloister stop {name}` ends it, or use --force");
            }
            end(&run, SIGKILL, Duration::ZERO).await?;
        } else if phase == Phase::Lost {
            let shim = record.map_or_else(|_| runtime::program(None), |record| Ok(record.shim))?;
            runtime::clean(&shim, &run).await;
        }
        run.remove()?;
        let _ = Event::now(&run, "remove").append(run.root());
        println!("{name}");
        Ok(())
    }
}

/// Does it for each; says what went wrong with one, and goes on.
async fn each(names: &[String], act: impl AsyncFn(&str) -> Result<()>) -> Result<u8> {
    let mut code = 0;
    for name in names {
        if let Err(error) = act(name).await {
            eprintln!("cloister: {}", crate::words(&error));
            code = 1;
        }
    }
    Ok(code)
}

/// Ends a run: asks, kills the program, and at last the VM. What has ended stays as it is.
async fn end(run: &Run, signal: u32, grace: Duration) -> Result<Done> {
    let mut record = run.read()?;
    let phase = run.phase(&record);
    if !phase.is_alive() {
        if phase == Phase::Lost {
            keeper::bury(run, &mut record).await?;
            return Ok(Done::Buried);
        }
        return Ok(Done::Nothing);
    }
    let mut done = Done::Killed;
    if let Ok(shim) = Shim::of(run, &record).await {
        if signal != SIGKILL {
            let _ = timeout(KILL_TIMEOUT, shim.kill("", signal)).await;
            if is_over(&shim, grace).await {
                done = Done::Signalled;
            }
        }
        if done == Done::Killed {
            let _ = timeout(KILL_TIMEOUT, shim.kill("", SIGKILL)).await;
            if !is_over(&shim, KILL_TIMEOUT).await {
                runtime::clean(&record.shim, run).await;
                done = Done::VmKilled;
            }
        }
    } else {
        runtime::clean(&record.shim, run).await;
        done = Done::VmKilled;
    }
    settle(run, &mut record, phase, done).await
}

/// Waits until the end is written down, or does so.
async fn settle(run: &Run, record: &mut Record, phase: Phase, done: Done) -> Result<Done> {
    if phase == Phase::Unkept {
        keeper::bury(run, record).await?;
        return Ok(Done::Buried);
    }
    let written = async {
        while run.read().is_ok_and(|record| run.phase(&record).is_alive()) {
            sleep(LOOK_INTERVAL).await;
        }
    };
    if timeout(WRITTEN_TIMEOUT, written).await.is_err() {
        // The keeper stands still: it is ended too.
        if let Some(keeper) = record.keeper {
            keeper.kill();
        }
        keeper::bury(run, record).await?;
        return Ok(Done::VmKilled);
    }
    if let Ok(mut record) = run.read()
        && run.phase(&record) == Phase::Lost
    {
        keeper::bury(run, &mut record).await?;
    }
    Ok(done)
}

/// Whether the program ends within a time. A shim that goes meanwhile has none any more.
async fn is_over(shim: &Shim, within: Duration) -> bool {
    timeout(within, shim.wait("")).await.is_ok()
}

fn words(run: &Run, done: Done) -> String {
    let code = run
        .read()
        .ok()
        .and_then(|record| record.ended)
        .map_or(KILLED, |it| it.code);
    let name = &run.name;
    match done {
        Done::Nothing => format!("{name}: has ended before, with exit code {code}"),
        Done::Signalled => format!("{name}: ended when it was asked, with exit code {code}"),
        Done::Killed => format!("{name}: killed, exit code {code}"),
        Done::VmKilled => {
            format!("{name}: the guest did not answer; its VM was killed, exit code {code}")
        }
        Done::Buried => format!("{name}: nobody kept it any more; what was left of it was killed"),
    }
}

/// A signal by its name or number.
pub(crate) fn signal_number(text: &str) -> Result<u32> {
    use std::str::FromStr;
    let name = text.to_ascii_uppercase();
    let name = match name.strip_prefix("SIG") {
        Some(_) => name.clone(),
        None => format!("SIG{name}"),
    };
    let named = nix::sys::signal::Signal::from_str(&name).ok();
    let number = named
        .map(|signal| signal as i32)
        .or_else(|| text.parse().ok());
    match number.and_then(|number| u32::try_from(number).ok()) {
        Some(number @ 1..=64) => Ok(number),
        _ => bail!("{text:?} is not a signal: use a name such as TERM, or a number from 1 to 64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("sigint", 2), ("9", 9), ("34", 34)] {
            assert_eq!(signal_number(text).unwrap(), number);
        }
        for bad in ["", "0", "65", "-1", "NOSUCH"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }
}
