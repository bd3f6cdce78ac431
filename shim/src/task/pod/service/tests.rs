//! The sandbox service of a pod that has no VM.

use super::*;
use std::path::{Path, PathBuf};

use agent_api::{ErrorCode, GuestError};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_async::{SandboxClient, create_sandbox};
use ttrpc::Code;
use ttrpc::r#async::{Client, Server};
use ttrpc::context::Context;

use crate::container::Container;
use crate::event::Publisher;
use crate::guest::ProcessId;
use crate::io::Stdio;
use crate::process::Process;
use crate::spec::group::Role;
use crate::state_dir::StateDir;
use crate::task::CreateRequest;

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
    let other = of!(stage.client, "other", shutdown_sandbox ShutdownSandboxRequest,);
    assert_eq!(other[0].1, Code::NOT_FOUND, "it is not this shim's");
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
    let answers = of!(client, "pod", ping_sandbox PingRequest,);
    assert_eq!(answers[0].1, Code::OK, "it is still to be started");
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { of!(client, "pod", wait_sandbox WaitSandboxRequest,)[0].1 })
    };
    // The server has taken it once it answers what came after it.
    let answers =
        of!(client, "other", ping_sandbox PingRequest, shutdown_sandbox ShutdownSandboxRequest,);
    for (method, code) in answers {
        assert_eq!(code, Code::NOT_FOUND, "{method}");
    }
    assert!(!waiting.is_finished(), "it has not ended");
    for _ in 0..2 {
        let answers = of!(client, "pod", stop_sandbox StopSandboxRequest,);
        assert_eq!(answers[0].1, Code::OK);
    }
    assert_eq!(waiting.await.unwrap(), Code::OK);
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
        [
            Code::OK,
            Code::FAILED_PRECONDITION,
            Code::FAILED_PRECONDITION,
            Code::OK
        ]
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

/// A task of a bundle with these annotations.
async fn task(stage: &Stage, id: &str, annotations: serde_json::Value) -> GuestError {
    let bundle = stage.directory.path().join(id);
    std::fs::create_dir_all(&bundle).unwrap();
    let spec = json!({"ociVersion": "1.1.0", "annotations": annotations});
    std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let request = CreateRequest {
        id: id.to_owned(),
        bundle,
        rootfs: Vec::new(),
        stdio: Stdio::default(),
        options: None,
    };
    Arc::clone(&stage.tasks).create(request).await.unwrap_err()
}

#[tokio::test]
async fn no_task_is_the_sandbox_of_a_pod_that_has_none() {
    let stage = stage().await;
    let request = create(stage.directory.path(), None);
    let created = stage
        .client
        .create_sandbox(Context::default(), &request)
        .await;
    assert_eq!(code(created), Code::OK);
    let sandbox = json!({"io.kubernetes.cri.container-type": "sandbox"});
    for (id, annotations) in [("pod", json!({})), ("pod", sandbox.clone()), ("c", sandbox)] {
        let error = task(&stage, id, annotations).await;
        assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}");
    }
    let answers = of!(stage.client, "pod", sandbox_status SandboxStatusRequest,);
    assert_eq!(answers[0].1, Code::OK);
}

#[tokio::test]
async fn a_pod_that_has_tasks_is_none_of_this_service() {
    let stage = stage().await;
    let id = ProcessId {
        container: "pod".to_owned(),
        exec: String::new(),
    };
    let init = Process::new(id, Stdio::default(), None);
    let container = Container::new("pod", PathBuf::new(), Role::Single, init);
    stage.tasks.containers.insert(container).unwrap();
    let request = create(stage.directory.path(), None);
    let created = stage
        .client
        .create_sandbox(Context::default(), &request)
        .await;
    assert_eq!(code(created), Code::FAILED_PRECONDITION);
    let answers = of!(stage.client, "pod", shutdown_sandbox ShutdownSandboxRequest,);
    assert_eq!(answers[0].1, Code::FAILED_PRECONDITION);
    assert_eq!(stage.tasks.containers.all().len(), 1);
}
