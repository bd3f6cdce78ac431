//! A pod by containerd's sandbox API: the requests that containerd 2.x makes of a shim, in its order and with its
//! fields, to the real shim. The distribution's containerd is older; `docs/operating.md` says how to run the test
//! of pods on a newer one.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim_protos::api as task;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api as wire;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use support::cri::{DNSConfig, PodSandboxConfig, PodSandboxMetadata};
use support::image::BUSYBOX;
use support::pod::Settings;
use support::{State, VmTurn, need, product};
use ttrpc::r#async::Client;
use ttrpc::context::Context;

const POD: &str = "pod-by-sandbox-api";
const TOOLS: [&str; 3] = ["qemu-system-x86_64", "virtiofsd", BUSYBOX];

/// What stands for containerd.
struct Stage {
    state: State,
    config: PathBuf,
    _turn: VmTurn,
}

impl Stage {
    fn new() -> Self {
        let turn = VmTurn::wait().unwrap();
        let state = State::short().unwrap();
        let config = Settings::plain().write(&state, "c.toml").unwrap();
        Self {
            state,
            config,
            _turn: turn,
        }
    }

    /// `start`, in a bundle that has no specification, with the runtime's options piped in. Answers the address.
    fn start(&self) -> String {
        let bundle = self.state.dir("pod").unwrap();
        let path = self.config.display().to_string();
        let length = u8::try_from(path.len()).unwrap();
        let options = any(
            "runtimeoptions.v1.Options",
            [&[0x12, length], path.as_bytes()].concat(),
        );
        let mut child = Command::new(product::bin("containerd-shim-cloister-v2").unwrap())
            .args(["-namespace", "k8s.io", "-address", "", "-id", POD, "start"])
            .current_dir(&bundle)
            .env("CLOISTER_STATE_ROOT", self.state.path().join("s"))
            .env("CLOISTER_SHIM_SOCKETS", self.state.path())
            .env_remove("TTRPC_ADDRESS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, &options.write_to_bytes().unwrap()).unwrap();
        drop(input);
        let said = child.wait_with_output().unwrap();
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    }

    /// A bundle of a container that checks what it sees, and its root on the host.
    fn container(&self) -> task::CreateTaskRequest {
        let (bundle, root) = (
            self.state.dir("main").unwrap(),
            self.state.dir("root/bin").unwrap(),
        );
        for applet in ["sh", "grep", "cat"] {
            std::fs::copy(BUSYBOX, root.join(applet)).unwrap();
        }
        let line = "grep -q 10.0.0.9 /etc/resolv.conf && grep -q localhost /etc/hosts && \
            [ $(cat /etc/hostname) = web ] && [ $(cat /proc/sys/kernel/hostname) = web ] && echo x > /dev/shm/x && exit 7";
        let mount = |kind: &str, to: &str| serde_json::json!({"type": kind, "source": kind, "destination": to, "options": ["nosuid"]});
        let spec = serde_json::json!({
            "ociVersion": "1.1.0",
            "process": {"args": ["/bin/sh", "-c", line], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "mounts": [mount("proc", "/proc"), mount("tmpfs", "/dev"), mount("tmpfs", "/dev/shm")],
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": POD,
            },
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "mount"}, {"type": "uts"}]},
        });
        std::fs::create_dir(bundle.join("rootfs")).unwrap();
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let mut request = task::CreateTaskRequest {
            id: "main".to_owned(),
            bundle: bundle.display().to_string(),
            ..Default::default()
        };
        request.rootfs.push(task::Mount {
            type_: "bind".to_owned(),
            source: root.parent().unwrap().display().to_string(),
            options: ["rbind", "rw"].map(str::to_owned).to_vec(),
            ..Default::default()
        });
        request
    }
}

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value,
        ..Default::default()
    }
}

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".to_owned(),
            ..Default::default()
        })
        .into(),
        hostname: "web".to_owned(),
        dns_config: Some(DNSConfig {
            servers: vec!["10.0.0.9".to_owned()],
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

async fn lives(stage: &Stage, address: &str, bundle: &Path) {
    let client = Client::connect(address).await.unwrap();
    let (pods, tasks) = (SandboxClient::new(client.clone()), TaskClient::new(client));
    let create = wire::CreateSandboxRequest {
        sandbox_id: POD.to_owned(),
        bundle_path: bundle.display().to_string(),
        options: Some(any(
            "runtime.v1.PodSandboxConfig",
            protobuf::Message::write_to_bytes(&pod()).unwrap(),
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
    let status = of_pod!(pods.sandbox_status(SandboxStatusRequest));
    assert_eq!(
        (status.state.as_str(), status.pid),
        ("SANDBOX_READY", started.pid)
    );
    of_pod!(pods.ping_sandbox(PingRequest));

    let create = stage.container();
    tasks.create(Context::default(), &create).await.unwrap();
    let start = task::StartRequest {
        id: create.id.clone(),
        ..Default::default()
    };
    tasks.start(Context::default(), &start).await.unwrap();
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
    // A pod without containers is a pod.
    let shutdown = task::ShutdownRequest::default();
    tasks.shutdown(Context::default(), &shutdown).await.unwrap();
    of_pod!(pods.ping_sandbox(PingRequest));

    of_pod!(pods.stop_sandbox(StopSandboxRequest));
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
    let bundle = stage.state.path().join("pod");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(lives(&stage, &address, &bundle));
    let socket = PathBuf::from(address.strip_prefix("unix://").unwrap());
    let left = stage.state.path().join("s/k8s.io").join(POD);
    let since = std::time::Instant::now();
    while socket.exists() || left.exists() {
        assert!(since.elapsed().as_secs() < 20, "the shim is still there");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
