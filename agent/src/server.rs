//! The ttRPC server on vsock 1024, and beside it the stream port ([`stdio`]). It knows no logic: each method passes the gate and calls the
//! part that does it. What this agent does not do is refused by the method's name, after the
//! policy was asked like for any other.

use std::sync::Arc;

use agent_api::agent::{self, CreateContainerRequest, CreateSandboxRequest};
use agent_api::agent_ttrpc::{AgentService, create_agent_service};
use agent_api::content::{PutContentRequest, PutContentResponse};
use agent_api::content_ttrpc::{ContentService, create_content_service};
use agent_api::empty::Empty;
use agent_api::health::{self, health_check_response::ServingStatus};
use agent_api::health_ttrpc::{Health, create_health};
use agent_api::pull::{PullProgress, WatchPullRequest};
use agent_api::pull_ttrpc::{PullService, create_pull_service};
use agent_api::{ErrorCode, GuestError, csi, ports, types};
use async_trait::async_trait;
use attestation_agent::api::Serving as Workloads;
use ttrpc::r#async::TtrpcContext;

use crate::fault::{OrFail, unimplemented};
use crate::gate::{Gate, Gated, Output};
use crate::metrics::Scrapes;
use crate::network::Network;
use crate::process::OutputKind;
use crate::sandbox::Sandbox;
use crate::trace::PullTrace;
use crate::{copy_file, forward, guest, hotplug, stdio, workload};

/// Any context identifier: the guest has one.
const ANY_CID: i32 = -1;

/// A running server.
pub struct Serving {
    server: ttrpc::r#async::Server,
    _streams: stdio::Streams,
    _forwards: forward::Forwards,
    _workloads: Option<Workloads>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
}

/// Listens; requests are answered from now on.
///
/// # Errors
///
/// There is no vsock in this guest.
pub async fn start(gate: Gate, sandbox: Arc<Sandbox>) -> Result<Serving, GuestError> {
    let blocks = hotplug::Blocks::new(gate.is_confidential());
    let gate = Arc::new(gate);
    let streams = stdio::serve(Arc::clone(&gate), Arc::clone(&sandbox))?;
    let forwards = forward::serve(Arc::clone(&gate))?;
    let workloads = workload::serve(Arc::clone(&gate), Arc::clone(&sandbox)).await?;
    let agent = Arc::new(Agent {
        gate,
        sandbox,
        scrapes: Scrapes::default(),
        network: Network::default(),
        blocks,
    });
    let pulls = create_pull_service(agent.clone());
    let content = create_content_service(agent.clone());
    let agent = create_agent_service(agent);
    let health = create_health(Arc::new(Liveness));
    let address = format!("vsock://{ANY_CID}:{}", ports::AGENT);
    let server = ttrpc::r#async::Server::new()
        .bind(&address)
        .or_internal("boot", &address)?
        .register_service(agent)
        .register_service(pulls)
        .register_service(content)
        .register_service(health);
    let mut serving = Serving {
        server,
        _streams: streams,
        _forwards: forwards,
        _workloads: workloads,
    };
    serving.server.start().await.or_internal("boot", &address)?;
    Ok(serving)
}

impl Serving {
    /// Answers what is under way and closes.
    pub async fn stop(mut self) {
        let answered = self.server.shutdown();
        // A caller that waits for a process waits for ever; the pod is gone.
        if tokio::time::timeout(std::time::Duration::from_millis(200), answered)
            .await
            .is_err()
        {
            tracing::debug!("calls were under way");
        }
    }
}

struct Liveness;

#[async_trait]
impl Health for Liveness {
    async fn check(
        &self,
        _: &TtrpcContext,
        _: health::CheckRequest,
    ) -> ttrpc::Result<health::HealthCheckResponse> {
        let status = ServingStatus::SERVING.into();
        Ok(health::HealthCheckResponse {
            status,
            ..Default::default()
        })
    }

    async fn version(
        &self,
        _: &TtrpcContext,
        _: health::CheckRequest,
    ) -> ttrpc::Result<health::VersionCheckResponse> {
        Ok(health::VersionCheckResponse {
            grpc_version: agent_api::VERSION.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}

struct Agent {
    gate: Arc<Gate>,
    sandbox: Arc<Sandbox>,
    scrapes: Scrapes,
    network: Network,
    blocks: hotplug::Blocks,
}

impl Agent {
    fn refuse<R: Gated, T>(&self, request: R, method: &str) -> ttrpc::Result<T> {
        self.gate.admit(request)?;
        Err(unimplemented("agent", format!("{method} is not supported by this guest")).into())
    }

    /// Output that the policy does not show is discarded, because a process that nobody reads
    /// from would stop; the host sees emptiness, as it does with Kata.
    async fn read(
        &self,
        kind: OutputKind,
        request: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        let mut response = agent::ReadStreamResponse::new();
        match self.gate.admit_read(request) {
            Output::Shown(request) => {
                response.data = self.sandbox.read_output(kind, request).await?;
            }
            Output::Hidden(drain) => self.sandbox.discard_output(kind, drain).await?,
        }
        Ok(response)
    }
}

#[async_trait]
impl PullService for Agent {
    async fn watch_pull(
        &self,
        _: &TtrpcContext,
        request: WatchPullRequest,
    ) -> ttrpc::Result<PullProgress> {
        let request = self.gate.admit(request)?;
        Ok(self.sandbox.pulls().watch(request).await?)
    }
}

#[async_trait]
impl ContentService for Agent {
    async fn put_content(
        &self,
        _: &TtrpcContext,
        request: PutContentRequest,
    ) -> ttrpc::Result<PutContentResponse> {
        // What a sandbox mounts must not come over what is there already.
        self.sandbox.check_created("content")?;
        let slots = self.sandbox.content();
        let place = slots.place(&request)?;
        let request = self
            .gate
            .admit_content(request, place.path(), place.is_new())?;
        Ok(self.sandbox.put_content(request, &place).await?)
    }
}

/// A method whose answer is empty.
macro_rules! done {
    ($result:expr) => {{
        $result?;
        Ok(Empty::new())
    }};
}

#[async_trait]
impl AgentService for Agent {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.create(&self.gate.admit(request)?).await)
    }

    async fn destroy_sandbox(
        &self,
        _: &TtrpcContext,
        request: agent::DestroySandboxRequest,
    ) -> ttrpc::Result<Empty> {
        self.sandbox.destroy(self.gate.admit(request)?).await;
        Ok(Empty::new())
    }

    async fn create_container(
        &self,
        context: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done!(
            self.sandbox
                .create_container(self.gate.admit(request)?, PullTrace::of(context))
                .await
        )
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: agent::StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done!(
            self.sandbox
                .start_container(self.gate.admit(request)?)
                .await
        )
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: agent::RemoveContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done!(
            self.sandbox
                .remove_container(self.gate.admit(request)?)
                .await
        )
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: agent::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.exec(self.gate.admit(request)?).await)
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: agent::SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.signal(&self.gate.admit(request)?))
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: agent::WaitProcessRequest,
    ) -> ttrpc::Result<agent::WaitProcessResponse> {
        let status = self.sandbox.wait(self.gate.admit(request)?).await?;
        Ok(agent::WaitProcessResponse {
            status,
            ..Default::default()
        })
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: agent::UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.update(&self.gate.admit(request)?))
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: agent::StatsContainerRequest,
    ) -> ttrpc::Result<agent::StatsContainerResponse> {
        Ok(self.sandbox.stats(&self.gate.admit(request)?)?)
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: agent::PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.pause(self.gate.admit(request)?).await)
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: agent::ResumeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.resume(self.gate.admit(request)?).await)
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        request: agent::WriteStreamRequest,
    ) -> ttrpc::Result<agent::WriteStreamResponse> {
        let len = self.sandbox.write_stdin(self.gate.admit(request)?).await?;
        Ok(agent::WriteStreamResponse {
            len,
            ..Default::default()
        })
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        request: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        self.read(OutputKind::Stdout, request).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        request: agent::ReadStreamRequest,
    ) -> ttrpc::Result<agent::ReadStreamResponse> {
        self.read(OutputKind::Stderr, request).await
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: agent::CloseStdinRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.close_stdin(&self.gate.admit(request)?))
    }

    async fn tty_win_resize(
        &self,
        _: &TtrpcContext,
        request: agent::TtyWinResizeRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.resize(&self.gate.admit(request)?))
    }

    async fn get_oom_event(
        &self,
        _: &TtrpcContext,
        request: agent::GetOOMEventRequest,
    ) -> ttrpc::Result<agent::OOMEvent> {
        let container_id = self.sandbox.oom_event(self.gate.admit(request)?).await?;
        Ok(agent::OOMEvent {
            container_id,
            ..Default::default()
        })
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: agent::GuestDetailsRequest,
    ) -> ttrpc::Result<agent::GuestDetailsResponse> {
        Ok(guest::details(&self.gate.admit(request)?))
    }

    async fn get_metrics(
        &self,
        _: &TtrpcContext,
        request: agent::GetMetricsRequest,
    ) -> ttrpc::Result<agent::Metrics> {
        let request = self.gate.admit(request)?;
        Ok(agent::Metrics {
            metrics: self.scrapes.scrape(&request),
            ..Default::default()
        })
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        request: agent::VolumeStatsRequest,
    ) -> ttrpc::Result<csi::VolumeStatsResponse> {
        Ok(guest::volume_stats(&self.gate.admit(request)?)?)
    }

    async fn copy_file(
        &self,
        _: &TtrpcContext,
        request: agent::CopyFileRequest,
    ) -> ttrpc::Result<Empty> {
        if self.gate.is_confidential() {
            // By the same rule a policy allows content in slots, whose places are the guest's.
            let message = "CopyFile names places in the guest, which is the host's to do in a plain VM alone: \
                           send content into a slot";
            return Err(GuestError::new(ErrorCode::Unimplemented, "copy-file", message).into());
        }
        done!(copy_file::copy(&self.gate.admit(request)?))
    }

    async fn reseed_random_dev(
        &self,
        _: &TtrpcContext,
        request: agent::ReseedRandomDevRequest,
    ) -> ttrpc::Result<Empty> {
        done!(guest::reseed(&self.gate.admit(request)?))
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        request: agent::SetGuestDateTimeRequest,
    ) -> ttrpc::Result<Empty> {
        done!(guest::set_clock(&self.gate.admit(request)?))
    }

    async fn set_policy(
        &self,
        _: &TtrpcContext,
        request: agent::SetPolicyRequest,
    ) -> ttrpc::Result<Empty> {
        let (gate, sandbox) = (Arc::clone(&self.gate), Arc::clone(&self.sandbox));
        // Whoever asks may go away: what is recorded is then in force all the same.
        let replacing = tokio::spawn(async move {
            let (rego, images) = (request.policy.clone(), sandbox.images());
            let recorded = images.record_policy(&rego);
            images.change(gate.replace(request, recorded)).await
        });
        done!(replacing.await.or_internal("policy", "replace it")?)
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        request: agent::GetDiagnosticDataRequest,
    ) -> ttrpc::Result<agent::GetDiagnosticDataResponse> {
        let data = self
            .sandbox
            .content()
            .diagnostic(&self.gate.admit(request)?)?;
        Ok(agent::GetDiagnosticDataResponse {
            data,
            ..Default::default()
        })
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: agent::UpdateInterfaceRequest,
    ) -> ttrpc::Result<types::Interface> {
        let request = self.gate.admit(request)?;
        Ok(self.network.update_interface(request).await?)
    }

    async fn update_routes(
        &self,
        _: &TtrpcContext,
        request: agent::UpdateRoutesRequest,
    ) -> ttrpc::Result<agent::Routes> {
        Ok(self.network.update_routes(&self.gate.admit(request)?)?)
    }

    async fn add_arp_neighbors(
        &self,
        _: &TtrpcContext,
        request: agent::AddARPNeighborsRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.network.add_neighbours(&self.gate.admit(request)?))
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        request: agent::ListInterfacesRequest,
    ) -> ttrpc::Result<agent::Interfaces> {
        Ok(self.network.interfaces(&self.gate.admit(request)?)?)
    }

    async fn list_routes(
        &self,
        _: &TtrpcContext,
        request: agent::ListRoutesRequest,
    ) -> ttrpc::Result<agent::Routes> {
        Ok(self.network.routes(&self.gate.admit(request)?)?)
    }

    async fn get_ip_tables(
        &self,
        _: &TtrpcContext,
        request: agent::GetIPTablesRequest,
    ) -> ttrpc::Result<agent::GetIPTablesResponse> {
        self.refuse(request, "GetIPTables")
    }

    async fn set_ip_tables(
        &self,
        _: &TtrpcContext,
        request: agent::SetIPTablesRequest,
    ) -> ttrpc::Result<agent::SetIPTablesResponse> {
        self.refuse(request, "SetIPTables")
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: agent::UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.refuse(request, "UpdateEphemeralMounts")
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        request: agent::RemoveStaleVirtiofsShareMountsRequest,
    ) -> ttrpc::Result<Empty> {
        self.refuse(request, "RemoveStaleVirtiofsShareMounts")
    }

    async fn online_cpu_mem(
        &self,
        _: &TtrpcContext,
        request: agent::OnlineCPUMemRequest,
    ) -> ttrpc::Result<Empty> {
        done!(hotplug::online(&self.blocks, &self.gate.admit(request)?).await)
    }

    async fn mem_hotplug_by_probe(
        &self,
        _: &TtrpcContext,
        request: agent::MemHotplugByProbeRequest,
    ) -> ttrpc::Result<Empty> {
        self.refuse(request, "MemHotplugByProbe")
    }

    async fn mem_agent_memcg_set(
        &self,
        _: &TtrpcContext,
        request: agent::MemAgentMemcgConfig,
    ) -> ttrpc::Result<Empty> {
        self.refuse(request, "MemAgentMemcgSet")
    }

    async fn mem_agent_compact_set(
        &self,
        _: &TtrpcContext,
        request: agent::MemAgentCompactConfig,
    ) -> ttrpc::Result<Empty> {
        self.refuse(request, "MemAgentCompactSet")
    }

    async fn add_swap(
        &self,
        _: &TtrpcContext,
        request: agent::AddSwapRequest,
    ) -> ttrpc::Result<Empty> {
        self.refuse(request, "AddSwap")
    }

    async fn add_swap_path(
        &self,
        _: &TtrpcContext,
        request: agent::AddSwapPathRequest,
    ) -> ttrpc::Result<Empty> {
        self.refuse(request, "AddSwapPath")
    }

    async fn resize_volume(
        &self,
        _: &TtrpcContext,
        request: agent::ResizeVolumeRequest,
    ) -> ttrpc::Result<Empty> {
        done!(self.sandbox.resize_volume(&self.gate.admit(request)?).await)
    }
}
