//! The sandbox service of a pod that has no VM.

use super::*;
use std::path::Path;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_async::{SandboxClient, create_sandbox};
use ttrpc::Code;
use ttrpc::r#async::{Client, Server};
use ttrpc::context::Context;

use crate::event::Publisher;
use crate::state_dir::StateDir;

struct Stage {
    client: SandboxClient,
    tasks: Arc<Tasks>,
    directory: tempfile::TempDir,
    _server: Server,
}

async fn stage() -> Stage {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("c.toml");
    std::fs::write(&config, "").unwrap();
    let state = StateDir::at(&directory.path().join("ns/pod"));
    let tasks = Tasks::new("pod", state, Publisher::new(None, "ns"), Some(config));
    let address = format!("unix://{}/shim", directory.path().display());
    let mut server = Server::new().bind(&address).unwrap();
    server = server.register_service(create_sandbox(Arc::new(PodService(Arc::clone(&tasks)))));
    server.start().await.unwrap();
    Stage {
        client: SandboxClient::new(Client::connect(&address).await.unwrap()),
        tasks,
        directory,
        _server: server,
    }
}

fn create(bundle: &Path, options: Option<Any>) -> wire::CreateSandboxRequest {
    wire::CreateSandboxRequest {
        sandbox_id: "pod".into(),
        bundle_path: bundle.display().to_string(),
        options: options.into(),
        netns_path: "/run/netns/x".into(),
        ..Default::default()
    }
}

fn code<T>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(_) => Code::UNKNOWN,
    }
}

/// A request of the same form for each method that names a sandbox.
macro_rules! of {
    ($client:expr, $id:literal, $($method:ident $request:ident,)*) => {
        [$((
            stringify!($method),
            code($client.$method(Context::default(), &wire::$request {
                sandbox_id: $id.into(),
                ..Default::default()
            }).await),
        ),)*]
    };
}

#[tokio::test]
async fn a_sandbox_that_is_not_there_is_not_found() {
    let stage = stage().await;
    let answers = of!(
        stage.client,
        "pod",
        start_sandbox StartSandboxRequest,
        stop_sandbox StopSandboxRequest,
        wait_sandbox WaitSandboxRequest,
        sandbox_status SandboxStatusRequest,
        ping_sandbox PingRequest,
        sandbox_metrics SandboxMetricsRequest,
    );
    for (method, code) in answers {
        assert_eq!(code, Code::NOT_FOUND, "{method}");
    }
    let answers = of!(stage.client, "pod", shutdown_sandbox ShutdownSandboxRequest,);
    assert_eq!(
        answers[0].1,
        Code::OK,
        "what failed to begin ends all the same"
    );
    stage.tasks.over().await;
}

#[tokio::test]
async fn a_pod_that_is_asked_for_waits_is_stopped_and_ends_when_it_is_told_to() {
    let stage = stage().await;
    let request = create(stage.directory.path(), None);
    let client = &stage.client;
    assert_eq!(
        code(client.create_sandbox(Context::default(), &request).await),
        Code::OK
    );
    let again = client.create_sandbox(Context::default(), &request).await;
    assert_eq!(code(again), Code::ALREADY_EXISTS);
    let ask = wire::SandboxStatusRequest {
        sandbox_id: "pod".into(),
        verbose: true,
        ..Default::default()
    };
    let status = client
        .sandbox_status(Context::default(), &ask)
        .await
        .unwrap();
    assert_eq!(status.state, NOT_READY);
    assert!(status.info["info"].contains("created"), "{:?}", status.info);
    let platform = wire::PlatformRequest::default();
    let platform = client
        .platform(Context::default(), &platform)
        .await
        .unwrap();
    assert_eq!(platform.platform.os, "linux");
    for _ in 0..2 {
        let answers = of!(client, "pod", stop_sandbox StopSandboxRequest,);
        assert_eq!(answers[0].1, Code::OK);
    }
    let answers = of!(
        client,
        "pod",
        wait_sandbox WaitSandboxRequest,
        ping_sandbox PingRequest,
        start_sandbox StartSandboxRequest,
        shutdown_sandbox ShutdownSandboxRequest,
    );
    let codes: Vec<_> = answers.iter().map(|(_, code)| *code).collect();
    assert_eq!(
        codes,
        [Code::OK, Code::OK, Code::FAILED_PRECONDITION, Code::OK]
    );
    stage.tasks.over().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_pod_is_told_before_it_is_started() {
    let stage = stage().await;
    let request = |type_url: &str, value: &[u8]| {
        let options = Any {
            type_url: type_url.into(),
            value: value.into(),
            ..Default::default()
        };
        create(stage.directory.path(), Some(options))
    };
    let other = request("runtime.v1.ContainerConfig", b"");
    let answer = stage
        .client
        .create_sandbox(Context::default(), &other)
        .await;
    assert_eq!(code(answer), Code::INVALID_ARGUMENT);
    // linux.securityContext.namespaceOptions.pid is NODE.
    let host = request(
        "runtime.v1.PodSandboxConfig",
        b"\x42\x06\x12\x04\x0a\x02\x10\x02",
    );
    let answer = stage.client.create_sandbox(Context::default(), &host).await;
    assert_eq!(code(answer), Code::FAILED_PRECONDITION);
}
