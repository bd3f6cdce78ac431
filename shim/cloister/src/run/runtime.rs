//! The shim of a container that is run without containerd: started, asked and ended.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::types::mount::Mount;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use ttrpc::context::{self, Context};

use super::bundle::Bundle;
use shim::config::PATH_VARIABLE;
use shim::state_dir::StateDir;

/// The program.
const PROGRAM: &str = "containerd-shim-cloister-v2";
/// How long the shim may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long it may take to answer what it does at once, and to end a guest.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to be gone once it was asked, and how often to look.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A running shim.
pub(super) struct Shim {
    tasks: TaskClient,
    program: PathBuf,
    bundle: PathBuf,
    namespace: String,
    id: String,
}

/// The shim's program: the named one, the one beside ours, or that in `PATH`.
pub(super) fn program(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let own = std::env::current_exe().context("find the program itself")?;
    let beside = own.with_file_name(PROGRAM);
    Ok(match beside.exists() {
        true => beside,
        false => PathBuf::from(PROGRAM),
    })
}

impl Shim {
    /// Starts it.
    pub(super) async fn start(
        program: &Path,
        bundle: &Bundle,
        namespace: &str,
        config: Option<&Path>,
    ) -> Result<Self> {
        super::check_name(namespace)?;
        let mut command = verb(program, namespace, bundle.id(), bundle.path(), "start");
        if let Some(config) = config {
            let config = std::path::absolute(config)?;
            command.env(PATH_VARIABLE, config);
        }
        let said = timeout(START_TIMEOUT, command.output())
            .await
            .context("the shim did not start in time")?
            .with_context(|| format!("start {}", program.display()))?;
        if !said.status.success() {
            bail!("{}", String::from_utf8_lossy(&said.stderr).trim_end());
        }
        let address = String::from_utf8(said.stdout).context("the shim's address")?;
        let client = Client::connect(&address)
            .await
            .with_context(|| format!("connect to the shim at {address}"))?;
        Ok(Self {
            tasks: TaskClient::new(client),
            program: program.to_owned(),
            bundle: bundle.path().to_owned(),
            namespace: namespace.to_owned(),
            id: bundle.id().to_owned(),
        })
    }

    /// Creates the task from an image that the guest pulls: as long as that takes.
    pub(super) async fn create(&self, bundle: &Bundle, image: &str) -> Result<()> {
        let text = |path: PathBuf| path.display().to_string();
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: text(bundle.path().to_owned()),
            rootfs: vec![guest_pull(image)],
            stdin: bundle.stdin().map(text).unwrap_or_default(),
            stdout: text(bundle.stdout()),
            stderr: text(bundle.stderr()),
            ..Default::default()
        };
        let created = self.tasks.create(Context::default(), &request).await;
        created.map(drop).map_err(|error| plain(&error))
    }

    /// Lets its process go.
    pub(super) async fn start_task(&self) -> Result<()> {
        let request = api::StartRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let started = self.tasks.start(Context::default(), &request).await;
        started.map(drop).map_err(|error| plain(&error))
    }

    /// Waits for the end of its process.
    pub(super) async fn wait(&self) -> Result<u32> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let ended = self.tasks.wait(Context::default(), &request).await;
        ended
            .map(|ended| ended.exit_status)
            .map_err(|error| plain(&error))
    }

    /// Sends a signal; that the process has ended meanwhile is no error.
    pub(super) async fn kill(&self, signal: u32) {
        let request = api::KillRequest {
            id: self.id.clone(),
            signal,
            ..Default::default()
        };
        let _ = self.tasks.kill(soon(), &request).await;
    }

    /// Tells it that no more input comes.
    pub(super) async fn close_input(&self) {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            stdin: true,
            ..Default::default()
        };
        let _ = self.tasks.close_io(soon(), &request).await;
    }

    /// Takes the container away, also one that is being created; that there is none is no error.
    pub(super) async fn delete(&self) -> Result<()> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let deleted = self.tasks.delete(soon(), &request).await;
        match deleted.as_ref().map_err(GuestError::from) {
            Ok(_) => Ok(()),
            Err(error) if error.code == ErrorCode::NotFound => Ok(()),
            Err(error) => bail!("{error}"),
        }
    }

    /// Ends it, whatever is left: by asking, and then by its own verb for dead ones.
    pub(super) async fn end(self) {
        self.kill(super::SIGKILL).await;
        let _ = self.delete().await;
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let _ = self.tasks.shutdown(soon(), &request).await;
        if !self.is_gone().await {
            let (program, id) = (&self.program, &self.id);
            let mut delete = verb(program, &self.namespace, id, &self.bundle, "delete");
            let _ = timeout(ANSWER_TIMEOUT, delete.output()).await;
        }
    }

    /// Waits a little for the end; returns whether it came.
    async fn is_gone(&self) -> bool {
        let Ok(directory) = StateDir::of(&self.namespace, &self.id) else {
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

fn verb(program: &Path, namespace: &str, id: &str, bundle: &Path, verb: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-namespace", namespace, "-id", id, "-bundle"])
        .arg(bundle)
        .arg(verb)
        .current_dir(bundle)
        .stdin(Stdio::null());
    command
}

/// The mount by which a snapshotter leaves an image to the guest.
fn guest_pull(image: &str) -> Mount {
    let volume = serde_json::json!({"volume_type": "image_guest_pull", "source": image});
    let volume = STANDARD.encode(volume.to_string());
    Mount {
        type_: "overlay".to_owned(),
        source: "none".to_owned(),
        options: vec![format!("io.katacontainers.volume={volume}")],
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
    use std::collections::BTreeMap;

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
