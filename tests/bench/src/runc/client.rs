//! The shim's client, as containerd is: ttRPC on the shim's socket, FIFOs for streams. Events go from the shim to
//! the real containerd meanwhile.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::{Client as Connection, TaskClient};
use nix::sys::stat::Mode;
use ttrpc::context::{Context, with_duration};

use super::timer::Timer;

const PATIENCE: Duration = Duration::from_secs(60);
const KILL: u32 = 9;

/// A connection to a pod's shim.
pub(super) struct Client {
    task: TaskClient,
    fifos: tempfile::TempDir,
}

impl Client {
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let address = format!("unix://{}", socket.display());
        let connection = Connection::connect(&address).await;
        let connection = connection.with_context(|| address.clone())?;
        Ok(Self {
            task: TaskClient::new(connection),
            fifos: tempfile::tempdir()?,
        })
    }

    /// Makes and starts a container without streams; the milliseconds until both are answered.
    pub(super) async fn start(&self, id: &str, bundle: &Path) -> Result<f64> {
        self.begin(id, bundle, [String::new(), String::new()]).await
    }

    async fn begin(&self, id: &str, bundle: &Path, streams: [String; 2]) -> Result<f64> {
        let [stdin, stdout] = streams;
        let create = api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            stdin,
            stdout,
            ..Default::default()
        };
        let start = api::StartRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let since = Instant::now();
        self.task.create(context(), &create).await?;
        self.task.start(context(), &start).await?;
        Ok(ms(since))
    }

    /// Makes and starts the container in which the timer is.
    pub(super) async fn timer(&self, id: &str, bundle: &Path) -> Result<Timer> {
        let (stdin, stdout) = (self.fifo("stdin")?, self.fifo("stdout")?);
        // Open for both, so that no end of ours or the shim's has to come first, and none is the last.
        let open = |path: &PathBuf| {
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(true).open(path)
        };
        let timer = Timer {
            stdin: open(&stdin)?.into(),
            stdout: tokio::io::BufReader::new(open(&stdout)?.into()),
        };
        let streams = [stdin, stdout].map(|path| path.display().to_string());
        self.begin(id, bundle, streams).await?;
        Ok(timer)
    }

    /// Runs a further process to its end: the milliseconds until its end is known and its output read, and that
    /// output.
    pub(super) async fn exec(&self, id: &str, exec: &str, process: &[u8]) -> Result<(f64, String)> {
        let stdout = self.fifo(exec)?;
        let request = api::ExecProcessRequest {
            id: id.to_owned(),
            exec_id: exec.to_owned(),
            stdout: stdout.display().to_string(),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: process.to_vec(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let (id, exec_id) = (id.to_owned(), exec.to_owned());
        let start = api::StartRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            ..Default::default()
        };
        let wait = api::WaitRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            ..Default::default()
        };
        let since = Instant::now();
        let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(stdout));
        self.task.exec(context(), &request).await?;
        self.task.start(context(), &start).await?;
        let ended = self.task.wait(context(), &wait).await?;
        let said = read.await??;
        let took = ms(since);
        ensure!(ended.exit_status == 0, "our exec: {ended:?} {said}");
        let delete = api::DeleteRequest {
            id,
            exec_id,
            ..Default::default()
        };
        self.task.delete(context(), &delete).await?;
        Ok((took, said))
    }

    /// Kills and deletes a container.
    pub(super) async fn remove(&self, id: &str) -> Result<()> {
        let kill = api::KillRequest {
            id: id.to_owned(),
            signal: KILL,
            all: true,
            ..Default::default()
        };
        self.task.kill(context(), &kill).await?;
        let wait = api::WaitRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.task.wait(context(), &wait).await?;
        let delete = api::DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        self.task.delete(context(), &delete).await?;
        Ok(())
    }

    fn fifo(&self, name: &str) -> Result<PathBuf> {
        let path = self.fifos.path().join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(path)
    }
}

fn context() -> Context {
    with_duration(PATIENCE)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
