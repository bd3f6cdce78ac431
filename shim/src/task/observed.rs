//! The services of tasks and of the pod with each call counted: how long it took, and how it ended.

use async_trait::async_trait;
use containerd_shim_protos::api as wire;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::sandbox_api as pod;
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::shim_async::Task;
use ttrpc::r#async::TtrpcContext;

use super::pod::service::PodService;
use super::service::Service;
use crate::telemetry::Telemetry;

/// A service of one sandbox, watched.
#[derive(Debug, Clone)]
pub struct Observed<S> {
    service: S,
    telemetry: Telemetry,
}

impl Observed<Service> {
    /// The service whose calls are counted.
    #[must_use]
    pub fn new(service: Service) -> Self {
        let telemetry = service.0.telemetry().clone();
        Self { service, telemetry }
    }
}

impl Observed<PodService> {
    /// The pod's service whose calls are counted.
    #[must_use]
    pub fn of_pod(service: PodService) -> Self {
        let telemetry = service.0.telemetry().clone();
        Self { service, telemetry }
    }
}

macro_rules! observed {
    ($trait:ident for $service:ident by $id:ident: $($method:ident $request:ty => $answer:ty,)*) => {
        #[async_trait]
        impl $trait for Observed<$service> {
            $(async fn $method(
                &self,
                context: &TtrpcContext,
                request: $request,
            ) -> ttrpc::Result<$answer> {
                let method = stringify!($method);
                let mut call = self.telemetry.call(method, &request.$id, &context.metadata);
                let answer = self.service.$method(context, request).await;
                call.ended(&answer);
                answer
            })*
        }
    };
}

observed! {
    Task for Service by id:
    state wire::StateRequest => wire::StateResponse,
    create wire::CreateTaskRequest => wire::CreateTaskResponse,
    start wire::StartRequest => wire::StartResponse,
    delete wire::DeleteRequest => wire::DeleteResponse,
    pids wire::PidsRequest => wire::PidsResponse,
    pause wire::PauseRequest => Empty,
    resume wire::ResumeRequest => Empty,
    checkpoint wire::CheckpointTaskRequest => Empty,
    kill wire::KillRequest => Empty,
    exec wire::ExecProcessRequest => Empty,
    resize_pty wire::ResizePtyRequest => Empty,
    close_io wire::CloseIORequest => Empty,
    update wire::UpdateTaskRequest => Empty,
    wait wire::WaitRequest => wire::WaitResponse,
    stats wire::StatsRequest => wire::StatsResponse,
    connect wire::ConnectRequest => wire::ConnectResponse,
    shutdown wire::ShutdownRequest => Empty,
}

observed! {
    Sandbox for PodService by sandbox_id:
    create_sandbox pod::CreateSandboxRequest => pod::CreateSandboxResponse,
    start_sandbox pod::StartSandboxRequest => pod::StartSandboxResponse,
    platform pod::PlatformRequest => pod::PlatformResponse,
    stop_sandbox pod::StopSandboxRequest => pod::StopSandboxResponse,
    wait_sandbox pod::WaitSandboxRequest => pod::WaitSandboxResponse,
    sandbox_status pod::SandboxStatusRequest => pod::SandboxStatusResponse,
    ping_sandbox pod::PingRequest => pod::PingResponse,
    shutdown_sandbox pod::ShutdownSandboxRequest => pod::ShutdownSandboxResponse,
    sandbox_metrics pod::SandboxMetricsRequest => pod::SandboxMetricsResponse,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use containerd_shim_protos::sandbox_async::{SandboxClient, create_sandbox};
    use containerd_shim_protos::shim_async::{TaskClient, create_task};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use ttrpc::r#async::{Client, Server};
    use ttrpc::context::Context;

    use crate::event::Publisher;
    use crate::state_dir::StateDir;
    use crate::task::Tasks;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    /// What a collector gets in its first request.
    async fn collected(listener: TcpListener) -> serde_json::Value {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = Vec::new();
        loop {
            stream.read_buf(&mut text).await.unwrap();
            let said = String::from_utf8_lossy(&text);
            if let Some((_, body)) = said.split_once("\r\n\r\n")
                && let Ok(body) = serde_json::from_str(body)
            {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(answer).await.unwrap();
                return body;
            }
        }
    }

    #[tokio::test]
    async fn a_call_is_a_span_below_the_one_that_containerd_names() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(&directory.path().join("ns/pod"));
        let tasks = Tasks::new("pod", state, Publisher::new(None, "ns"), None);
        let address = format!("unix://{}/shim", directory.path().display());
        let service = Arc::new(Observed::new(Service(Arc::clone(&tasks))));
        let mut server = Server::new().bind(&address).unwrap();
        server = server.register_service(create_task(service));
        server.start().await.unwrap();
        let client = TaskClient::new(Client::connect(&address).await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());

        // As the interceptor of containerd 2 puts it into a request.
        let mut context = Context::default();
        context.add("traceparent".into(), format!("00-{TRACE}-{PARENT}-01"));
        let request = wire::StateRequest {
            id: "nobody".into(),
            ..Default::default()
        };
        assert!(client.state(context, &request).await.is_err());
        // What was done before it was known who wants it is sent too.
        tasks.telemetry().trace_to(url.parse().ok());
        let got = tokio::spawn(collected(listener));
        tasks.telemetry().flush().await;
        let message = got.await.unwrap();
        let resource = &message["resourceSpans"][0];
        let service = &resource["resource"]["attributes"][0]["value"]["stringValue"];
        assert_eq!(service, "cloister-shim");
        let span = &resource["scopeSpans"][0]["spans"][0];
        assert_eq!(
            (&span["traceId"], &span["parentSpanId"]),
            (&TRACE.into(), &PARENT.into())
        );
        assert_eq!(span["name"], "containerd.task.Task/State");
        assert_eq!(span["status"]["message"], "not-found");
        let text = message.to_string();
        assert!(
            !text.contains("there is no") && !text.contains("no container"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_pod_that_does_not_start_is_counted_and_reported() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::at(&root.path().join("ns/pod"));
        let reports = crate::telemetry::report::listen(root.path()).unwrap();
        let tasks = Tasks::new("pod", state, Publisher::new(None, "ns"), None);
        let address = format!("unix://{}/shim", root.path().display());
        let service = Arc::new(Observed::of_pod(PodService(Arc::clone(&tasks))));
        let mut server = Server::new().bind(&address).unwrap();
        server = server.register_service(create_sandbox(service));
        server.start().await.unwrap();
        let client = SandboxClient::new(Client::connect(&address).await.unwrap());
        let request = pod::StartSandboxRequest {
            sandbox_id: "pod".into(),
            ..Default::default()
        };
        let started = client.start_sandbox(Context::default(), &request).await;
        assert!(started.is_err());
        let mut bytes = [0; crate::telemetry::report::MAX_REPORT];
        let length = reports.socket.recv(&mut bytes).unwrap();
        let report = String::from_utf8_lossy(&bytes[..length]).into_owned();
        assert!(report.contains("not-found"), "{report}");
        let samples = tasks.telemetry().samples(&crate::sandbox::State::New, 0);
        let page = crate::exposition::write(samples);
        let line = "cloister_shim_rpc_errors_total{action=\"start_sandbox\",code=\"not-found\"} 1";
        assert!(page.contains(line), "{page}");
    }
}
