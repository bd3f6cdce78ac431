//! The shim of a container that is run without containerd: started, asked and ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use anyhow::{Context as _, Result, anyhow, bail};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::types::mount::Mount;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use ttrpc::context::{self, Context};

use super::SIGKILL;
use super::store::{Record, Run};
use shim::bootstrap::SOCKETS_VARIABLE;
use shim::config::PATH_VARIABLE;
use shim::rootfs::guest_pull_option;
use shim::state_dir::ROOT_VARIABLE;

/// The program.
const PROGRAM: &str = "containerd-shim-cloister-v2";
/// The name that containerd's clients give to a process.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// The shim's environment variable for the address to which events go.
const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";
/// How long the shim may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to answer what it does at once, and to end a guest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to be gone once it was asked, and how often to look.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A running shim. Clones ask the same one.
#[derive(Clone)]
pub(crate) struct Shim {
    tasks: TaskClient,
    program: PathBuf,
    run: Run,
}

/// The streams of a process, as paths of FIFOs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<PathBuf>,
    pub(crate) stdout: PathBuf,
    /// None with a terminal.
    pub(crate) stderr: Option<PathBuf>,
}

/// The shim's program: the named one, the one beside ours, or that in `PATH`.
pub(crate) fn program(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return std::path::absolute(named).context("the shim's program");
    }
    let own = std::env::current_exe().context("find the program itself")?;
    let beside = own.with_file_name(PROGRAM);
    Ok(match beside.exists() {
        true => beside,
        false => PathBuf::from(PROGRAM),
    })
}

impl Shim {
    /// Starts it; returns the address at which it answers, too.
    pub(crate) async fn start(run: &Run, record: &Record) -> Result<(Self, String)> {
        let mut command = verb(&record.shim, run, "start");
        command.env(EVENTS_VARIABLE, run.events_socket());
        if let Some(config) = &record.config {
            command.env(PATH_VARIABLE, config);
        }
        let said = timeout(START_TIMEOUT, command.output())
            .await
            .context("the shim did not start in time")?
            .with_context(|| format!("start {}", record.shim.display()))?;
        if !said.status.success() {
            bail!("{}", String::from_utf8_lossy(&said.stderr).trim_end());
        }
        let address = String::from_utf8(said.stdout).context("the shim's address")?;
        let shim = Self::at(run, &record.shim, &address).await?;
        Ok((shim, address))
    }

    /// The one of a run that is there already.
    pub(crate) async fn of(run: &Run, record: &Record) -> Result<Self> {
        let Some(address) = &record.address else {
            bail!("{} has no shim yet", run.name);
        };
        Self::at(run, &record.shim, address).await
    }

    async fn at(run: &Run, program: &Path, address: &str) -> Result<Self> {
        let client = Client::connect(address)
            .await
            .with_context(|| format!("connect to the shim of {} at {address}", run.name))?;
        Ok(Self {
            tasks: TaskClient::new(client),
            program: program.to_owned(),
            run: run.clone(),
        })
    }

    fn id(&self) -> String {
        self.run.name.clone()
    }

    /// Creates the task from an image that the guest pulls: as long as that takes.
    pub(crate) async fn create(
        &self,
        image: &str,
        streams: &Streams,
        terminal: bool,
    ) -> Result<()> {
        let request = api::CreateTaskRequest {
            id: self.id(),
            bundle: text(&self.run.bundle()),
            rootfs: vec![guest_pull(image)],
            stdin: optional(streams.stdin.as_deref()),
            stdout: text(&streams.stdout),
            stderr: optional(streams.stderr.as_deref()),
            terminal,
            ..Default::default()
        };
        let created = self.tasks.create(Context::default(), &request).await;
        created.map(drop).map_err(|error| plain(&error))
    }

    /// Asks for a further process, which is not started yet.
    pub(crate) async fn exec(
        &self,
        exec: &str,
        process: &serde_json::Value,
        streams: &Streams,
        terminal: bool,
    ) -> Result<()> {
        let request = api::ExecProcessRequest {
            id: self.id(),
            exec_id: exec.to_owned(),
            stdin: optional(streams.stdin.as_deref()),
            stdout: text(&streams.stdout),
            stderr: optional(streams.stderr.as_deref()),
            terminal,
            spec: MessageField::some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: process.to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let asked = self.tasks.exec(soon(), &request).await;
        asked.map(drop).map_err(|error| plain(&error))
    }

    /// Lets a process go: the first, or the further one of this id.
    pub(crate) async fn start_process(&self, exec: &str) -> Result<()> {
        let request = api::StartRequest {
            id: self.id(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let started = self.tasks.start(Context::default(), &request).await;
        started.map(drop).map_err(|error| plain(&error))
    }

    /// Waits for the end of a process.
    pub(crate) async fn wait(&self, exec: &str) -> Result<u32> {
        let request = api::WaitRequest {
            id: self.id(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let ended = self.tasks.wait(Context::default(), &request).await;
        ended
            .map(|ended| ended.exit_status)
            .map_err(|error| plain(&error))
    }

    /// Sends a signal; returns whether there was a process for it.
    pub(crate) async fn kill(&self, exec: &str, signal: u32) -> Result<bool> {
        let request = api::KillRequest {
            id: self.id(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        found(&self.tasks.kill(soon(), &request).await)
    }

    /// Tells the size of a terminal; that the process has ended meanwhile is no error.
    pub(crate) async fn resize(&self, exec: &str, (columns, rows): (u16, u16)) {
        let request = api::ResizePtyRequest {
            id: self.id(),
            exec_id: exec.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        let _ = self.tasks.resize_pty(soon(), &request).await;
    }

    /// Tells it that no more input comes.
    pub(crate) async fn close_input(&self, exec: &str) {
        let request = api::CloseIORequest {
            id: self.id(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        let _ = self.tasks.close_io(soon(), &request).await;
    }

    /// What the container uses, as the guest counts it.
    pub(crate) async fn stats(&self) -> Result<Any> {
        let request = api::StatsRequest {
            id: self.id(),
            ..Default::default()
        };
        let said = self.tasks.stats(soon(), &request).await;
        let said = said.map_err(|error| plain(&error))?;
        said.stats.into_option().context("the shim tells nothing")
    }

    /// Takes a process away, or the container, also one that is being created; returns whether there
    /// was one.
    pub(crate) async fn delete(&self, exec: &str) -> Result<bool> {
        let request = api::DeleteRequest {
            id: self.id(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        found(&self.tasks.delete(soon(), &request).await)
    }

    /// Ends it, whatever is left: by asking, and then by its own verb for dead ones.
    pub(crate) async fn end(&self) {
        let _ = self.kill("", SIGKILL).await;
        let _ = self.delete("").await;
        let request = api::ShutdownRequest {
            id: self.id(),
            ..Default::default()
        };
        let _ = self.tasks.shutdown(soon(), &request).await;
        if !self.is_gone().await {
            clean(&self.program, &self.run).await;
        }
    }

    /// Waits a little for the end; returns whether it came.
    async fn is_gone(&self) -> bool {
        let Ok(directory) = self.run.sandbox() else {
            return true;
        };
        let gone = async {
            while directory.path().exists() {
                sleep(LOOK_INTERVAL).await;
            }
        };
        timeout(END_TIMEOUT, gone).await.is_ok()
    }
}

/// Kills whatever there is of a run's sandbox, by the verb that the shim has for shims that died.
pub(crate) async fn clean(program: &Path, run: &Run) {
    let _ = timeout(ANSWER_TIMEOUT, verb(program, run, "delete").output()).await;
}

fn verb(program: &Path, run: &Run, verb: &str) -> Command {
    let bundle = run.bundle();
    let mut command = Command::new(program);
    command
        .args(["-namespace", &run.namespace, "-id", &run.name, "-bundle"])
        .arg(&bundle)
        .arg(verb)
        .env(ROOT_VARIABLE, run.root())
        .stdin(Stdio::null());
    if bundle.exists() {
        command.current_dir(bundle);
    }
    if !rustix::process::geteuid().is_root() {
        command.env(SOCKETS_VARIABLE, run.shim_sockets());
    }
    command
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn optional(path: Option<&Path>) -> String {
    path.map(text).unwrap_or_default()
}

/// That there is nothing any more is an answer too.
fn found<T>(answer: &ttrpc::Result<T>) -> Result<bool> {
    match answer.as_ref().map_err(GuestError::from) {
        Ok(_) => Ok(true),
        Err(error) if error.code == ErrorCode::NotFound => Ok(false),
        Err(error) => Err(anyhow!("{error}")),
    }
}

/// The mount by which a snapshotter leaves an image to the guest.
fn guest_pull(image: &str) -> Mount {
    Mount {
        type_: "overlay".to_owned(),
        source: "none".to_owned(),
        options: vec![guest_pull_option(image, &BTreeMap::new())],
        ..Default::default()
    }
}

fn soon() -> Context {
    context::with_duration(ANSWER_TIMEOUT)
}

/// The shim's error without what ttRPC puts around it.
fn plain(error: &ttrpc::Error) -> anyhow::Error {
    anyhow!("{}", GuestError::from(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shim::config::Config;
    use shim::rootfs::{Source, choose};
    use shim::spec::group::Role;

    #[test]
    fn the_image_is_pulled_by_the_guest_whatever_the_configuration_says() {
        let mounts = [guest_pull("a.example/b:1")];
        let source = choose(&Config::default(), &Role::Single, &BTreeMap::new(), &mounts);
        let Source::GuestPull { image, .. } = source.unwrap() else {
            panic!("the host's files");
        };
        assert_eq!(image, "a.example/b:1");
    }
}
