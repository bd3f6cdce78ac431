//! The typed client of the agent: every call of the shim into the guest goes through here.
//!
//! A call ends as soon as the guest is known to be gone, with that cause, however long it would
//! have waited otherwise. Calls share one connection and do not wait for each other.

use std::future::Future;
use std::time::Duration;

use agent_api::agent::{self as api, Storage};
use agent_api::agent_ttrpc::AgentServiceClient;
use agent_api::{ErrorCode, GuestError, limit, oci};
use protobuf::MessageField;
use tokio::sync::watch;
use tokio::time::timeout;
use ttrpc::context::Context;

/// How long a request may take that only changes something inside the guest.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait for the cause after the connection broke: the VMM's end is noticed in
/// milliseconds, its last console lines a little later.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a guest may take to end all its containers before it is ended from outside.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(2);

/// Names one process in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessId {
    /// The container.
    pub container: String,
    /// The further process; empty for the container's first.
    pub exec: String,
}

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a container is created from.
#[derive(Debug, Clone)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// What the agent prepares first, such as the image.
    pub storages: Vec<Storage>,
    /// Its specification.
    pub spec: oci::Spec,
}

/// A connection to the agent of one guest.
#[derive(Clone)]
pub struct Guest {
    client: AgentServiceClient,
    gone: watch::Receiver<Option<GuestError>>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("gone", &*self.gone.borrow())
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// A client over a connection to the agent's port. `gone` gets the cause when the guest ends.
    #[must_use]
    pub fn new(client: ttrpc::r#async::Client, gone: watch::Receiver<Option<GuestError>>) -> Self {
        Self {
            client: AgentServiceClient::new(client),
            gone,
        }
    }

    /// Opens the pod in the guest.
    ///
    /// # Errors
    /// What the agent answers, or why it is gone. This holds for every method.
    pub async fn create_sandbox(
        &self,
        id: &str,
        hostname: &str,
        storages: Vec<Storage>,
    ) -> Result<(), GuestError> {
        let request = api::CreateSandboxRequest {
            sandbox_id: id.to_owned(),
            hostname: hostname.to_owned(),
            storages,
            ..Default::default()
        };
        let call = self.client.create_sandbox(Context::default(), &request);
        self.call("agent", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Asks the guest to end its containers and power off.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn destroy_sandbox(&self) -> Result<(), GuestError> {
        let request = api::DestroySandboxRequest::new();
        let call = self.client.destroy_sandbox(Context::default(), &request);
        self.call("stop", DESTROY_TIMEOUT, call).await.map(drop)
    }

    /// Creates a container, with the pull of its image.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn create_container(
        &self,
        new: NewContainer,
        within: Duration,
    ) -> Result<(), GuestError> {
        let request = api::CreateContainerRequest {
            container_id: new.id,
            storages: new.storages,
            OCI: MessageField::some(new.spec),
            ..Default::default()
        };
        let call = self.client.create_container(Context::default(), &request);
        self.call("create", within, call).await.map(drop)
    }

    /// Lets a container's first process run.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn start_container(&self, id: &str) -> Result<(), GuestError> {
        let request = api::StartContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.start_container(Context::default(), &request);
        self.call("start", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Kills what is left of a container and forgets it.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn remove_container(&self, id: &str) -> Result<(), GuestError> {
        let request = api::RemoveContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.remove_container(Context::default(), &request);
        self.call("delete", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Starts a further process in a container.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn exec_process(
        &self,
        id: &ProcessId,
        process: oci::Process,
    ) -> Result<(), GuestError> {
        let request = api::ExecProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            process: MessageField::some(process),
            ..Default::default()
        };
        let call = self.client.exec_process(Context::default(), &request);
        self.call("exec", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn signal_process(&self, id: &ProcessId, signal: u32) -> Result<(), GuestError> {
        let request = api::SignalProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            signal,
            ..Default::default()
        };
        let call = self.client.signal_process(Context::default(), &request);
        self.call("kill", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Waits for the end of a process, without limit.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn wait_process(&self, id: &ProcessId) -> Result<i32, GuestError> {
        let request = api::WaitProcessRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        };
        let call = self.client.wait_process(Context::default(), &request);
        self.unlimited("wait", call)
            .await
            .map(|response| response.status)
    }

    /// Waits for output, without limit. `None` is the end of it; no bytes are output that the
    /// owner's policy does not show.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn read_output(
        &self,
        id: &ProcessId,
        output: Output,
    ) -> Result<Option<Vec<u8>>, GuestError> {
        let request = api::ReadStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            len: u32::try_from(limit::MAX_STREAM_READ).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let context = Context::default();
        let answer = match output {
            Output::Stdout => {
                self.unlimited("stdout", self.client.read_stdout(context, &request))
                    .await
            }
            Output::Stderr => {
                self.unlimited("stderr", self.client.read_stderr(context, &request))
                    .await
            }
        };
        match answer {
            Ok(response) => Ok(Some(response.data)),
            Err(error) if error.code == ErrorCode::EndOfStream => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes to a process's standard input; returns how many bytes it took. Waits without limit
    /// for a process that does not read.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn write_stdin(&self, id: &ProcessId, data: &[u8]) -> Result<usize, GuestError> {
        let request = api::WriteStreamRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            data: data.to_vec(),
            ..Default::default()
        };
        let call = self.client.write_stdin(Context::default(), &request);
        let response = self.unlimited("stdin", call).await?;
        Ok(usize::try_from(response.len)
            .unwrap_or(usize::MAX)
            .min(data.len()))
    }

    /// Ends a process's standard input.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn close_stdin(&self, id: &ProcessId) -> Result<(), GuestError> {
        let request = api::CloseStdinRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            ..Default::default()
        };
        let call = self.client.close_stdin(Context::default(), &request);
        self.call("stdin", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Tells a terminal its size in characters.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn resize_terminal(
        &self,
        id: &ProcessId,
        columns: u32,
        rows: u32,
    ) -> Result<(), GuestError> {
        let request = api::TtyWinResizeRequest {
            container_id: id.container.clone(),
            exec_id: id.exec.clone(),
            row: rows,
            column: columns,
            ..Default::default()
        };
        let call = self.client.tty_win_resize(Context::default(), &request);
        self.call("resize", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn update_container(
        &self,
        id: &str,
        resources: oci::LinuxResources,
    ) -> Result<(), GuestError> {
        let request = api::UpdateContainerRequest {
            container_id: id.to_owned(),
            resources: MessageField::some(resources),
            ..Default::default()
        };
        let call = self.client.update_container(Context::default(), &request);
        self.call("update", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Freezes a container's processes.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn pause_container(&self, id: &str) -> Result<(), GuestError> {
        let request = api::PauseContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.pause_container(Context::default(), &request);
        self.call("pause", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Thaws them.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn resume_container(&self, id: &str) -> Result<(), GuestError> {
        let request = api::ResumeContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.resume_container(Context::default(), &request);
        self.call("resume", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn stats_container(
        &self,
        id: &str,
    ) -> Result<api::StatsContainerResponse, GuestError> {
        let request = api::StatsContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.stats_container(Context::default(), &request);
        self.call("stats", REQUEST_TIMEOUT, call).await
    }

    /// Waits for a container to run out of memory, without limit; returns its id.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn oom_event(&self) -> Result<String, GuestError> {
        let request = api::GetOOMEventRequest::new();
        let call = self.client.get_oom_event(Context::default(), &request);
        self.unlimited("oom", call)
            .await
            .map(|event| event.container_id)
    }

    /// Waits for the end of the guest, and returns its cause.
    pub async fn gone(&self) -> GuestError {
        cause(self.gone.clone()).await
    }

    async fn call<T>(
        &self,
        phase: &'static str,
        within: Duration,
        request: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, GuestError> {
        match timeout(within, self.unlimited(phase, request)).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("the agent did not answer in {} s", within.as_secs());
                Err(GuestError::new(ErrorCode::DeadlineExceeded, phase, text))
            }
        }
    }

    async fn unlimited<T>(
        &self,
        phase: &'static str,
        request: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, GuestError> {
        tokio::select! {
            biased;
            answer = request => match answer {
                Ok(answer) => Ok(answer),
                Err(error) => Err(self.explain(phase, &error).await),
            },
            cause = cause(self.gone.clone()) => Err(during(phase, cause)),
        }
    }

    /// The agent's error, or the cause of a broken connection where it becomes known.
    async fn explain(&self, phase: &'static str, error: &ttrpc::Error) -> GuestError {
        let mut error = GuestError::from(error);
        if error.code == ErrorCode::AgentUnreachable {
            if let Ok(cause) = timeout(CAUSE_TIMEOUT, cause(self.gone.clone())).await {
                return during(phase, cause);
            }
            phase.clone_into(&mut error.phase);
        }
        error
    }
}

/// The cause of the guest's end, with the phase that it cut short.
fn during(phase: &'static str, mut cause: GuestError) -> GuestError {
    phase.clone_into(&mut cause.phase);
    cause
}

async fn cause(mut gone: watch::Receiver<Option<GuestError>>) -> GuestError {
    match gone.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(cause)) => cause.clone(),
        // The driver went without a word: the shim is ending.
        Ok(None) | Err(_) => GuestError::new(
            ErrorCode::AgentUnreachable,
            "sandbox",
            "the sandbox is gone",
        ),
    }
}
