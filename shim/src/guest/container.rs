//! What is asked of the guest about a whole container.

use std::time::Duration;

use agent_api::agent::{self as api, Storage};
use agent_api::content::{PutContentRequest, PutContentResponse};
use agent_api::oci;
use agent_api::pull::{PullProgress, WatchPullRequest};
use agent_api::{GuestError, TraceParent, limit};
use protobuf::MessageField;
use ttrpc::context::Context;

use super::{Guest, REMOVE_TIMEOUT, REQUEST_TIMEOUT};

/// How long the guest may take to tell how far a pull is: it waits for news itself.
const WATCH_TIMEOUT: Duration = Duration::from_secs(limit::PULL_WAIT_SECONDS + 10);

/// How long the guest may take for a termination message: the container's end is told after it.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a container is created from.
#[derive(Debug, Clone)]
pub struct NewContainer {
    /// Its id.
    pub id: String,
    /// What the agent prepares first, such as the image.
    pub storages: Vec<Storage>,
    /// Those of the VM that it is to see.
    pub devices: Vec<api::Device>,
    /// Its specification.
    pub spec: oci::Spec,
    /// Whether it sees the processes of all of the pod.
    pub sandbox_pidns: bool,
    /// The span that asks for it, where somebody traces it.
    pub trace: Option<TraceParent>,
}

impl Guest {
    /// Creates a container, with the pull of its image, without limit.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn create_container(&self, new: NewContainer) -> Result<(), GuestError> {
        let request = api::CreateContainerRequest {
            container_id: new.id,
            storages: new.storages,
            devices: new.devices,
            OCI: MessageField::some(new.spec),
            sandbox_pidns: new.sandbox_pidns,
            ..Default::default()
        };
        let context = Context {
            metadata: new.trace.map(TraceParent::to_metadata).unwrap_or_default(),
            ..Default::default()
        };
        let call = self.client.create_container(context, &request);
        self.unlimited("create", call).await.map(drop)
    }

    /// Gives a container content of the host; answers where the guest has put it.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn put_content(
        &self,
        request: PutContentRequest,
    ) -> Result<PutContentResponse, GuestError> {
        let call = self.content.put_content(Context::default(), &request);
        self.call("volume", REQUEST_TIMEOUT, call).await
    }

    /// What a container wrote as its termination message.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn termination_message(&self, id: &str) -> Result<String, GuestError> {
        let request = api::GetDiagnosticDataRequest {
            log_type: limit::TERMINATION_LOG.to_owned(),
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = self
            .client
            .get_diagnostic_data(Context::default(), &request);
        self.call("stop", MESSAGE_TIMEOUT, call)
            .await
            .map(|answer| answer.data)
    }

    /// Waits until the pull for a container is further than was `seen`, and tells how far.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn watch_pull(&self, id: &str, seen: u64) -> Result<PullProgress, GuestError> {
        let request = WatchPullRequest {
            container_id: id.to_owned(),
            seen,
            ..Default::default()
        };
        let call = self.pulls.watch_pull(Context::default(), &request);
        self.call("pull", WATCH_TIMEOUT, call).await
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

    /// Kills what is left of a container and forgets it. What it wrote to disks is written then.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn remove_container(&self, id: &str) -> Result<(), GuestError> {
        let request = api::RemoveContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.remove_container(Context::default(), &request);
        self.call("delete", REMOVE_TIMEOUT, call).await.map(drop)
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
}
