//! The task service with each call counted: how long it took, and how it ended.

use async_trait::async_trait;
use containerd_shim_protos::api as wire;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::shim_async::Task;
use ttrpc::r#async::TtrpcContext;

use super::service::Service;
use crate::telemetry::Telemetry;

/// The service of one sandbox, watched.
#[derive(Debug, Clone)]
pub struct Observed {
    service: Service,
    telemetry: Telemetry,
}

impl Observed {
    /// The service whose calls are counted.
    #[must_use]
    pub fn new(service: Service) -> Self {
        let telemetry = service.0.telemetry().clone();
        Self { service, telemetry }
    }
}

macro_rules! observed {
    ($($method:ident $request:ident -> $answer:ty,)*) => {
        #[async_trait]
        impl Task for Observed {
            $(async fn $method(
                &self,
                context: &TtrpcContext,
                request: wire::$request,
            ) -> ttrpc::Result<$answer> {
                let method = stringify!($method);
                let mut call = self.telemetry.call(method, &request.id, &context.metadata);
                let answer = self.service.$method(context, request).await;
                call.ended(&answer);
                answer
            })*
        }
    };
}

observed! {
    state StateRequest -> wire::StateResponse,
    create CreateTaskRequest -> wire::CreateTaskResponse,
    start StartRequest -> wire::StartResponse,
    delete DeleteRequest -> wire::DeleteResponse,
    pids PidsRequest -> wire::PidsResponse,
    pause PauseRequest -> Empty,
    resume ResumeRequest -> Empty,
    checkpoint CheckpointTaskRequest -> Empty,
    kill KillRequest -> Empty,
    exec ExecProcessRequest -> Empty,
    resize_pty ResizePtyRequest -> Empty,
    close_io CloseIORequest -> Empty,
    update UpdateTaskRequest -> Empty,
    wait WaitRequest -> wire::WaitResponse,
    stats StatsRequest -> wire::StatsResponse,
    connect ConnectRequest -> wire::ConnectResponse,
    shutdown ShutdownRequest -> Empty,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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
    async fn a_collector_that_says_nothing_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::new(StateDir::at(&directory.path().join("ns/pod")));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        telemetry.trace_to(url.parse().ok());
        for _ in 0..1000 {
            drop(telemetry.call("create", "c", &std::collections::HashMap::new()));
        }
        telemetry.flush().await;
        let state = crate::sandbox::State::New;
        let samples = telemetry.samples(&state, 0);
        let lost = samples
            .iter()
            .find(|it| it.name == "cloister_shim_spans_lost_total");
        assert!(lost.unwrap().value > 0.0);
    }
}
