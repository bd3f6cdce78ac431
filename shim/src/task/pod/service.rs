//! containerd's sandbox messages, translated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api as wire;
use containerd_shim_protos::sandbox_async::Sandbox;
use serde_json::json;
use ttrpc::r#async::TtrpcContext;

use super::{PodRequest, PodStatus};
use crate::clock;
use crate::process::Phase;
use crate::task::Tasks;
use crate::task::service::to_the_end;

/// What the container runtime interface calls the states of a pod.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The sandbox service of one sandbox.
#[derive(Debug, Clone)]
pub struct PodService(pub Arc<Tasks>);

#[async_trait]
impl Sandbox for PodService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: wire::CreateSandboxRequest,
    ) -> ttrpc::Result<wire::CreateSandboxResponse> {
        let request = PodRequest {
            id: request.sandbox_id,
            bundle: request.bundle_path.into(),
            rootfs: request.rootfs,
            options: request.options.into_option(),
            netns: request.netns_path,
            annotations: request.annotations,
        };
        self.0.create_pod(request).await?;
        Ok(wire::CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: wire::StartSandboxRequest,
    ) -> ttrpc::Result<wire::StartSandboxResponse> {
        let status = to_the_end(Arc::clone(&self.0).start_pod(request.sandbox_id)).await?;
        Ok(wire::StartSandboxResponse {
            pid: status.pid,
            created_at: MessageField::some(clock::timestamp(status.created_at)),
            ..Default::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        _: wire::PlatformRequest,
    ) -> ttrpc::Result<wire::PlatformResponse> {
        let mut response = wire::PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        platform.architecture = architecture().to_owned();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: wire::StopSandboxRequest,
    ) -> ttrpc::Result<wire::StopSandboxResponse> {
        // The end has limits of its own, so that a time for it says nothing new.
        to_the_end(Arc::clone(&self.0).stop_pod(request.sandbox_id)).await?;
        Ok(wire::StopSandboxResponse::new())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: wire::WaitSandboxRequest,
    ) -> ttrpc::Result<wire::WaitSandboxResponse> {
        let exit = self.0.wait_pod(&request.sandbox_id).await?;
        Ok(wire::WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(clock::timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: wire::SandboxStatusRequest,
    ) -> ttrpc::Result<wire::SandboxStatusResponse> {
        let status = self.0.pod_status(&request.sandbox_id)?;
        let mut response = wire::SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: status.pid,
            state: state(status.phase).to_owned(),
            created_at: MessageField::some(clock::timestamp(status.created_at)),
            ..Default::default()
        };
        if let Phase::Exited(exit) = status.phase {
            response.exited_at = MessageField::some(clock::timestamp(exit.at));
        }
        if request.verbose {
            response.info = info(&status);
        }
        Ok(response)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: wire::PingRequest,
    ) -> ttrpc::Result<wire::PingResponse> {
        self.0.check_pod(&request.sandbox_id)?;
        Ok(wire::PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: wire::ShutdownSandboxRequest,
    ) -> ttrpc::Result<wire::ShutdownSandboxResponse> {
        to_the_end(Arc::clone(&self.0).shutdown_pod(request.sandbox_id)).await?;
        Ok(wire::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: wire::SandboxMetricsRequest,
    ) -> ttrpc::Result<wire::SandboxMetricsResponse> {
        let data = self.0.pod_metrics(&request.sandbox_id)?;
        let mut response = wire::SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = MessageField::some(clock::timestamp(SystemTime::now()));
        metrics.id = request.sandbox_id;
        metrics.data = MessageField::some(data);
        Ok(response)
    }
}

fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => READY,
        Phase::Created | Phase::Exited(_) => NOT_READY,
    }
}

/// What `crictl inspectp` shows: JSON below the name `info`, as containerd has it for its own sandboxes.
fn info(status: &PodStatus) -> HashMap<String, String> {
    let info = json!({
        "pid": status.pid,
        "runtimeType": crate::bootstrap::RUNTIME,
        "runtimeVersion": env!("CARGO_PKG_VERSION"),
        "processStatus": match status.phase {
            Phase::Created => "created",
            Phase::Running => "running",
            Phase::Exited(_) => "stopped",
        },
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// The guest's, under the name that images have it by: it is the host's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests;
