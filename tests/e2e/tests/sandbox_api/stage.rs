//! What a test of the sandbox API has on the host: the shim's places, the pod's network, and bundles of containers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use containerd_shim_protos::api as task;
use containerd_shim_protos::protobuf::Message;
use support::image::BUSYBOX;
use support::node::Node;
use support::pod::Settings;
use support::{State, VmTurn, product};

use super::{POD, any};

/// What stands for containerd.
pub(crate) struct Stage {
    pub(crate) state: State,
    config: PathBuf,
    /// The pod's network namespace, in which nothing is at first, and what is outside of it.
    pub(crate) network: [Node; 2],
    _turn: VmTurn,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let turn = VmTurn::wait().unwrap();
        let state = State::short().unwrap();
        let config = Settings::plain().write(&state, "c.toml").unwrap();
        Self {
            network: [(); 2].map(|()| Node::new(state.path()).unwrap()),
            state,
            config,
            _turn: turn,
        }
    }

    fn shim(&self, id: &str, bundle: &Path, verb: &str) -> Command {
        let mut command = Command::new(product::bin("containerd-shim-cloister-v2").unwrap());
        command
            .args(["-namespace", "k8s.io", "-address", "", "-id", id, verb])
            .current_dir(bundle)
            .env("CLOISTER_STATE_ROOT", self.state.path().join("s"))
            .env("CLOISTER_SHIM_SOCKETS", self.state.path())
            .env_remove("TTRPC_ADDRESS");
        command
    }

    /// Gives the pod an interface, at the other end of which somebody answers.
    pub(crate) fn connect(&self) {
        let [pod, outside] = &self.network;
        let name = outside.path();
        let name = name.file_name().unwrap().to_str().unwrap();
        pod.run("ip link add late0 type veth peer name outer0")
            .unwrap();
        pod.run(&format!("ip link set outer0 netns {name}"))
            .unwrap();
        for (node, interface, address) in [
            (outside, "outer0", "10.88.0.1/24"),
            (pod, "late0", "10.88.0.9/24"),
        ] {
            let address = format!("ip address add {address} dev {interface}");
            node.run(&address).unwrap();
            node.run(&format!("ip link set {interface} up")).unwrap();
        }
    }

    pub(crate) fn delete(&self, id: &str, bundle: &Path) {
        let said = self.shim(id, bundle, "delete").output().unwrap();
        assert!(said.status.success(), "{said:?}");
    }

    pub(crate) fn left(&self) -> PathBuf {
        self.state.path().join("s/k8s.io").join(POD)
    }

    pub(crate) fn shim_pid(&self) -> u32 {
        let recorded = std::fs::read(self.left().join("shim.pid")).unwrap();
        let recorded: serde_json::Value = serde_json::from_slice(&recorded).unwrap();
        u32::try_from(recorded["pid"].as_u64().unwrap()).unwrap()
    }

    /// `start`, in a bundle that has no specification, with the runtime's options piped in. Answers the address.
    pub(crate) fn start(&self) -> String {
        let bundle = self.state.dir("pod").unwrap();
        let path = self.config.display().to_string();
        let length = u8::try_from(path.len()).unwrap();
        let options = any(
            "runtimeoptions.v1.Options",
            [&[0x12, length], path.as_bytes()].concat(),
        );
        let mut child = self
            .shim(POD, &bundle, "start")
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

    /// A bundle of a container that checks what it sees.
    pub(crate) fn container(&self) -> task::CreateTaskRequest {
        let line = "grep -qx 'nameserver 10.0.0.9' /etc/resolv.conf && grep -q 'search default.svc.test svc.test' /etc/resolv.conf && \
            grep -q 'options ndots:5' /etc/resolv.conf && grep -q localhost /etc/hosts && echo x >> /etc/hosts && \
            [ $(cat /etc/hostname) = web ] && [ $(cat /proc/sys/kernel/hostname) = web ] && echo x > /dev/shm/x && grep -q late0 /proc/net/dev && ping -c 2 -W 5 10.88.0.1 && exit 7";
        self.bundle("main", line, &serde_json::json!({}))
    }

    /// A bundle of a container that runs a line of the shell, and its root on the host.
    pub(crate) fn bundle(
        &self,
        id: &str,
        line: &str,
        hooks: &serde_json::Value,
    ) -> task::CreateTaskRequest {
        let (bundle, root) = (
            self.state.dir(id).unwrap(),
            self.state.dir(&format!("{id}-root/bin")).unwrap(),
        );
        for applet in ["sh", "grep", "cat", "sleep", "ping", "stat", "id"] {
            std::fs::copy(BUSYBOX, root.join(applet)).unwrap();
        }
        let mount = |kind: &str, to: &str| serde_json::json!({"type": kind, "source": kind, "destination": to, "options": ["nosuid"]});
        let spec = serde_json::json!({
            "ociVersion": "1.1.0",
            "process": {"args": ["/bin/sh", "-c", line], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "hooks": hooks,
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
            id: id.to_owned(),
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
