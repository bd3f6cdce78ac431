//! A host of somebody who runs containers by hand: the command line, a configuration, an image, and where
//! everything is kept.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::image::Recipe;
use crate::pod::Settings;
use crate::product;
use crate::run::{Finished, Running, Service, with_input};
use crate::stage::Stage;

/// What a command may take that starts no VM.
pub const QUICK: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

/// The host.
#[derive(Debug)]
pub struct ByHand {
    _clear: Service,
    /// The registry, and the directory of it all. Its containerd is only asked what is left behind.
    pub stage: Stage,
    /// The shim's configuration: a plain VM.
    pub config: PathBuf,
    /// An image with a shell, whose own program ends at once.
    pub image: String,
}

impl ByHand {
    /// Sets it up.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn new() -> Result<Self> {
        let stage = Stage::plain()?;
        let image = stage.push(&Recipe::busybox("cli")?, "cli")?;
        // A guest that trusts its host asks a registry on loopback without TLS. The relay is not told of it:
        // `cloister run` does that.
        let (clear, address) = stage.registry.in_the_clear(&stage.state)?;
        let image = image.replace(stage.registry.address(), &address);
        let config = Settings::plain().write(&stage.state, "cli.toml")?;
        Ok(Self {
            _clear: clear,
            stage,
            config,
            image,
        })
    }

    /// The directory of all that is kept of runs.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.stage.containerd.shim_state()
    }

    /// A command of `cloister`.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(product::bin("cloister")?);
        command.env("CLOISTER_STATE_ROOT", self.root()).args(words);
        Ok(command)
    }

    /// Runs one to its end.
    ///
    /// # Errors
    /// When it does not end soon; its exit code is for the caller to judge.
    pub fn say(&self, words: &[&str]) -> Result<Finished> {
        with_input(QUICK, &mut self.command(words)?, b"")
    }

    /// `cloister run` of the image.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn run(&self, flags: &[&str], program: &[&str]) -> Result<Command> {
        let mut command = self.command(&["run", "--config"])?;
        command.arg(&self.config).args(flags).arg(&self.image);
        command.args(program);
        Ok(command)
    }

    /// All runs, as `ps --json` tells them.
    ///
    /// # Errors
    /// When it tells no JSON.
    pub fn rows(&self) -> Result<Vec<Value>> {
        let said = self.say(&["ps", "--all", "--json"])?.ok()?;
        serde_json::from_str(&said.stdout).with_context(|| said.report())
    }

    /// One of them.
    ///
    /// # Errors
    /// When it is not there.
    pub fn row(&self, name: &str) -> Result<Value> {
        let rows = self.rows()?;
        let row = rows.iter().find(|row| row["name"] == name);
        row.cloned()
            .with_context(|| format!("no {name} in {rows:?}"))
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When it does not soon.
    pub fn until(&self, what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
        let since = Instant::now();
        while !holds()? {
            ensure!(since.elapsed() < QUICK, "never: {what}");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until the program of a run runs whose client this is.
    ///
    /// # Errors
    /// When the client ends before: with all that it said.
    pub fn until_started(&self, name: &str, mut client: Running) -> Result<Running> {
        let is_running = |row: &Value| row["name"] == name && row["phase"] == "running";
        while !self.rows()?.iter().any(is_running) {
            if client.has_ended() {
                bail!("{}", client.finish(QUICK)?.report());
            }
            std::thread::sleep(LOOK);
        }
        Ok(client)
    }
}
