//! A pod by containerd's sandbox API: the requests that containerd 2.x makes of a shim, in its order and with its
//! fields, to the real shim. The distribution's containerd is older; `docs/operating.md` says how to run the test
//! of pods on a newer one.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod stage;
mod users;

use std::path::{Path, PathBuf};
use std::process::Command;

use containerd_shim_protos::api as task;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as wire;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use support::cri::{
    DNSConfig, LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig, PodSandboxMetadata,
};
use support::image::BUSYBOX;
use support::need;
use ttrpc::r#async::Client;
use ttrpc::context::Context;

use stage::Stage;

const POD: &str = "pod-by-sandbox-api";
const TOOLS: [&str; 4] = ["qemu-system-x86_64", "virtiofsd", "ip", BUSYBOX];

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value,
        ..Default::default()
    }
}

/// A pod whose containers share their processes, or do not, as the kubelet has it unless somebody asks.
fn pod(processes: NamespaceMode) -> PodSandboxConfig {
    let mut linux = LinuxPodSandboxConfig::default();
    let security = linux.security_context.mut_or_insert_default();
    let namespaces = security.namespace_options.mut_or_insert_default();
    namespaces.pid = processes.into();
    PodSandboxConfig {
        linux: Some(linux).into(),
        metadata: Some(PodSandboxMetadata {
            name: "web".to_owned(),
            ..Default::default()
        })
        .into(),
        hostname: "web".to_owned(),
        dns_config: Some(DNSConfig {
            servers: vec!["10.0.0.9".to_owned()],
            searches: vec!["default.svc.test".to_owned(), "svc.test".to_owned()],
            options: vec!["ndots:5".to_owned()],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// A request that names the pod alone.
macro_rules! of_pod {
    ($client:ident.$method:ident($request:ident)) => {
        $client
            .$method(
                Context::default(),
                &wire::$request {
                    sandbox_id: POD.to_owned(),
                    ..Default::default()
                },
            )
            .await
            .unwrap()
    };
}

/// What containerd has of a pod.
struct Clients {
    pods: SandboxClient,
    tasks: TaskClient,
}

impl Clients {
    /// Makes and starts a pod; answers the VMM's process id.
    async fn pod(stage: &Stage, address: &str, config: PodSandboxConfig) -> (Self, u32) {
        let client = Client::connect(address).await.unwrap();
        let (pods, tasks) = (SandboxClient::new(client.clone()), TaskClient::new(client));
        let create = wire::CreateSandboxRequest {
            sandbox_id: POD.to_owned(),
            netns_path: stage.network[0].path().display().to_string(),
            bundle_path: stage.state.path().join("pod").display().to_string(),
            options: Some(any(
                "runtime.v1.PodSandboxConfig",
                protobuf::Message::write_to_bytes(&config).unwrap(),
            ))
            .into(),
            ..Default::default()
        };
        pods.create_sandbox(Context::default(), &create)
            .await
            .unwrap();
        let started = of_pod!(pods.start_sandbox(StartSandboxRequest));
        assert!(
            Path::new(&format!("/proc/{}", started.pid)).exists(),
            "the VMM"
        );
        (Self { pods, tasks }, started.pid)
    }

    /// A wait for the pod's end, as containerd has one from the start on.
    fn wait(&self) -> tokio::task::JoinHandle<u32> {
        let pods = self.pods.clone();
        tokio::spawn(async move { of_pod!(pods.wait_sandbox(WaitSandboxRequest)).exit_status })
    }

    async fn run(&self, create: &task::CreateTaskRequest) {
        self.tasks.create(Context::default(), create).await.unwrap();
        let start = task::StartRequest {
            id: create.id.clone(),
            ..Default::default()
        };
        self.tasks.start(Context::default(), &start).await.unwrap();
    }
}

async fn lives(stage: &Stage, address: &str) {
    let (clients, vmm) = Clients::pod(stage, address, pod(NamespaceMode::POD)).await;
    let waiting = clients.wait();
    let Clients { pods, tasks } = &clients;
    let status = of_pod!(pods.sandbox_status(SandboxStatusRequest));
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", vmm));
    of_pod!(pods.ping_sandbox(PingRequest));

    // As whoever fills the namespace when the pod is there already.
    stage.connect();
    let create = stage.container();
    clients.run(&create).await;
    let wait = task::WaitRequest {
        id: create.id.clone(),
        ..Default::default()
    };
    let ended = tasks.wait(Context::default(), &wait).await.unwrap();
    assert_eq!(ended.exit_status, 7);
    let delete = task::DeleteRequest {
        id: create.id.clone(),
        ..Default::default()
    };
    tasks.delete(Context::default(), &delete).await.unwrap();
    users::are_the_containers_own(stage, &clients).await;
    // A pod without containers is a pod.
    let shutdown = task::ShutdownRequest::default();
    tasks.shutdown(Context::default(), &shutdown).await.unwrap();
    of_pod!(pods.ping_sandbox(PingRequest));

    assert!(!waiting.is_finished(), "it has not ended");
    of_pod!(pods.stop_sandbox(StopSandboxRequest));
    assert_eq!(waiting.await.unwrap(), 0);
    let exit = of_pod!(pods.wait_sandbox(WaitSandboxRequest));
    assert_eq!(exit.exit_status, 0);
    let status = of_pod!(pods.sandbox_status(SandboxStatusRequest));
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    of_pod!(pods.shutdown_sandbox(ShutdownSandboxRequest));
}

#[test]
fn a_pod_needs_no_sandbox_container() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::new();
    let address = stage.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(lives(&stage, &address));
    let socket = PathBuf::from(address.strip_prefix("unix://").unwrap());
    let since = std::time::Instant::now();
    while socket.exists() || stage.left().exists() {
        assert!(since.elapsed().as_secs() < 20, "the shim is still there");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// What hooks may find by the process that they are told of.
const NAMESPACES: [&str; 4] = ["net", "mnt", "uts", "ipc"];

/// Hooks that note the namespaces that they are led to, and that the container is gone.
fn hooks(stage: &Stage, id: &str) -> serde_json::Value {
    let noted = stage.state.path().join(format!("{id}.noted"));
    let noted = noted.display();
    let before = format!(
        "state=$(cat); pid=${{state##*\\\"pid\\\":}}; pid=${{pid%%[,\\}}]*}}; \
         for one in {}; do readlink /proc/$pid/ns/$one; done > {noted}",
        NAMESPACES.join(" ")
    );
    let program = |line: &str| serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}]);
    serde_json::json!({
        "createRuntime": program(&before),
        "poststop": program(&format!("echo gone >> {noted}")),
    })
}

fn noted(stage: &Stage, id: &str) -> Vec<String> {
    let noted = std::fs::read_to_string(stage.state.path().join(format!("{id}.noted")));
    noted.unwrap().lines().map(str::to_owned).collect()
}

fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

/// A pod as the kubelet usually has it: its containers have processes of their own.
async fn is_killed(stage: &Stage, address: &str) {
    let (clients, vmm) = Clients::pod(stage, address, pod(NamespaceMode::CONTAINER)).await;
    let waiting = clients.wait();
    let [one, two] = ["one", "two"].map(|id| stage.bundle(id, "sleep 1000", &hooks(stage, id)));
    tokio::join!(clients.run(&one), clients.run(&two));
    let of_one = noted(stage, "one");
    assert_eq!(of_one, noted(stage, "two"), "they are of one pod");
    for (kind, seen) in NAMESPACES.iter().zip(&of_one) {
        let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(own.to_str().unwrap(), seen, "the host's");
    }

    // A member whose bundle is half gone: its `delete` leaves the pod alone.
    let bundle = stage.state.path().join("one");
    std::fs::write(bundle.join("address"), address).unwrap();
    std::fs::write(bundle.join("config.json"), "{").unwrap();
    stage.delete("one", &bundle);
    let pods = &clients.pods;
    assert!(Path::new(address.strip_prefix("unix://").unwrap()).exists());
    of_pod!(pods.ping_sandbox(PingRequest));

    assert!(!waiting.is_finished(), "it has not ended");
    kill(vmm);
    assert_eq!(waiting.await.unwrap(), 137);
    let status = of_pod!(pods.sandbox_status(SandboxStatusRequest));
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    let ping = wire::PingRequest {
        sandbox_id: POD.to_owned(),
        ..Default::default()
    };
    pods.ping_sandbox(Context::default(), &ping)
        .await
        .unwrap_err();
}

#[test]
fn the_end_of_a_vm_is_told_and_what_a_killed_shim_leaves_is_deleted() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::new();
    let address = stage.start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(is_killed(&stage, &address));
    kill(stage.shim_pid());
    let bundle = stage.state.path().join("pod");
    let is_clean = || {
        stage.delete(POD, &bundle);
        let socket = Path::new(address.strip_prefix("unix://").unwrap());
        assert!(!socket.exists() && !stage.left().exists());
    };
    is_clean();
    for id in ["one", "two"] {
        let noted = noted(&stage, id);
        let gone = noted.iter().filter(|line| *line == "gone").count();
        assert_eq!(gone, 1, "{id}: {noted:?}");
    }

    // And with a VM that lives.
    assert_eq!(stage.start(), address);
    let (_, vmm) = runtime.block_on(Clients::pod(
        &stage,
        &address,
        pod(NamespaceMode::CONTAINER),
    ));
    kill(stage.shim_pid());
    is_clean();
    assert!(!Path::new(&format!("/proc/{vmm}/fd/0")).exists(), "the VMM");
}
