//! The typed client of the agent: every call of the shim into the guest goes through here. The pod's
//! own calls are in this file, those for a container and a process in the files below.
//!
//! A call ends as soon as the guest is known to be gone, with that cause, however long it would
//! have waited otherwise. Calls share one connection and do not wait for each other; each stream of a
//! process has a connection of its own.

mod container;
mod network;
mod process;
mod size;

use std::future::Future;
use std::io;
use std::time::Duration;

use agent_api::agent::{self as api, Storage};
use agent_api::agent_ttrpc::AgentServiceClient;
use agent_api::content_ttrpc::ContentServiceClient;
use agent_api::csi::VolumeStatsResponse;
use agent_api::health::CheckRequest;
use agent_api::health_ttrpc::HealthClient;
use agent_api::pull_ttrpc::PullServiceClient;
use agent_api::{ErrorCode, GuestError};
use hypervisor::{Connector, VsockStream};
use tokio::sync::watch;
use tokio::time::timeout;
use ttrpc::context::Context;

use crate::disk::described::RESIZE_TIMEOUT;

pub use container::NewContainer;
pub use process::{ProcessId, Stream};

/// How long a request may take that only changes something inside the guest.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the guest may take to count itself: Prometheus gives up after ten seconds, and the node's monitor
/// before it.
const METRICS_TIMEOUT: Duration = Duration::from_secs(4);
/// How long to wait for the cause after the connection broke: the VMM's end is noticed in
/// milliseconds, its last console lines a little later.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the guest may take to end a container, and to write what the container wrote to its disks.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a guest may take to end all its containers before it is ended from outside.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to the agent of one guest.
#[derive(Clone)]
pub struct Guest {
    client: AgentServiceClient,
    pulls: PullServiceClient,
    content: ContentServiceClient,
    health: HealthClient,
    ports: Option<Connector>,
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
            pulls: PullServiceClient::new(client.clone()),
            content: ContentServiceClient::new(client.clone()),
            health: HealthClient::new(client.clone()),
            client: AgentServiceClient::new(client),
            ports: None,
            gone,
        }
    }

    /// The same, with the way to the guest's other ports.
    #[must_use]
    pub fn with_ports(self, ports: Connector) -> Self {
        Self {
            ports: Some(ports),
            ..self
        }
    }

    async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        match &self.ports {
            Some(ports) => ports.connect(port).await,
            None => Err(io::ErrorKind::NotConnected.into()),
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
        dns: Vec<String>,
        storages: Vec<Storage>,
    ) -> Result<(), GuestError> {
        let request = api::CreateSandboxRequest {
            sandbox_id: id.to_owned(),
            hostname: hostname.to_owned(),
            dns,
            storages,
            ..Default::default()
        };
        let call = self.client.create_sandbox(Context::default(), &request);
        self.call("agent", REQUEST_TIMEOUT, call).await.map(drop)
    }

    /// Asks the guest to end its containers and power off. One that has disks of the host may take longer: what
    /// is not written when the VM ends is lost.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn destroy_sandbox(&self, has_disks: bool) -> Result<(), GuestError> {
        let within = match has_disks {
            true => REMOVE_TIMEOUT,
            false => DESTROY_TIMEOUT,
        };
        let request = api::DestroySandboxRequest::new();
        let call = self.client.destroy_sandbox(Context::default(), &request);
        self.call("stop", within, call).await.map(drop)
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

    /// The metrics of the agent and the guest, in Prometheus' text format.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn metrics(&self) -> Result<String, GuestError> {
        let request = api::GetMetricsRequest::new();
        let call = self.client.get_metrics(Context::default(), &request);
        self.call("metrics", METRICS_TIMEOUT, call)
            .await
            .map(|answer| answer.metrics)
    }

    /// How full the file system is that the guest has at a path.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn volume_stats(&self, path: String) -> Result<VolumeStatsResponse, GuestError> {
        let request = api::VolumeStatsRequest {
            volume_guest_path: path,
            ..Default::default()
        };
        let call = self.client.get_volume_stats(Context::default(), &request);
        self.call("volume", REQUEST_TIMEOUT, call).await
    }

    /// Makes the file system that the guest has at a path so many bytes large, as its disk is already.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn resize_volume(&self, path: String, bytes: u64) -> Result<(), GuestError> {
        let request = api::ResizeVolumeRequest {
            volume_guest_path: path,
            size: bytes,
            ..Default::default()
        };
        let call = self.client.resize_volume(Context::default(), &request);
        self.call("volume", RESIZE_TIMEOUT, call).await.map(drop)
    }

    /// Asks the agent whether it is there.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn check(&self) -> Result<(), GuestError> {
        let request = CheckRequest::new();
        let call = self.health.check(Context::default(), &request);
        self.call("health", REQUEST_TIMEOUT, call).await.map(drop)
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
