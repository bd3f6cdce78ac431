//! The pod in which both are measured: a container `main`, started through containerd with its seccomp profile, whose
//! specification is the model of all others; and one with all rights, in which runc is.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use support::containerd::NAMESPACE;
use support::image::Recipe;
use support::pod::Pod;
use support::run::within;
use support::stage::Stage;

use super::client::Client;
use super::timer::{self, Timer};

/// runc, in its container: a copy in memory, as everything that ours uses is.
pub(super) const RUNC: &str = "/run/runc";
/// What it keeps of its containers.
pub(super) const RUNC_STATE: &str = "/run/state";
const POD: &str = "pod";
const QUICK: Duration = Duration::from_secs(20);
/// Annotations by which the shim knows which pod a container is of.
const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// The pod.
pub(super) struct Place<'a> {
    stage: &'a Stage,
    /// Where its shim listens.
    pub(super) socket: PathBuf,
    root: PathBuf,
    box_root: PathBuf,
    /// The specification of `main`, as containerd wrote it.
    model: Value,
}

impl<'a> Place<'a> {
    /// Starts it.
    pub(super) fn start(stage: &'a Stage, config: &Path) -> Result<Self> {
        let root = stage.state.dir("rootfs")?;
        Recipe::busybox("runc")?.unpack(&root)?;
        let sleep = ["/bin/busybox", "sleep", "3600"];
        for (id, kind) in [(POD, "sandbox"), ("main", "container")] {
            let pod = Pod::new(id, config, &root, &sleep)
                .flag(&["--detach", "--null-io", "--seccomp"])
                .flag(&["--annotation", &format!("{KIND}={kind}")])
                .flag(&["--annotation", &format!("{SANDBOX}={POD}")]);
            let run = stage.run(&pod)?;
            ensure!(run.code == 0, "{}\n{}", run.report(), stage.log_tail());
        }
        let bundles = stage.state.path().join("run/io.containerd.runtime.v2.task");
        let model = std::fs::read(bundles.join(NAMESPACE).join("main/config.json"))?;
        let place = Self {
            stage,
            socket: stage.containerd.shim_socket(POD),
            box_root: stage.state.dir("box")?,
            model: serde_json::from_slice(&model)?,
            root,
        };
        place.fill_box()?;
        Ok(place)
    }

    /// The container with runc starts, and in it the timer.
    pub(super) async fn timer(&self, client: &Client) -> Result<Timer> {
        let mut spec = self.model.clone();
        let line = format!("cp /usr/sbin/runc {RUNC} && exec /bench {}", timer::WORD);
        spec["process"]["args"] = json!(["/bin/busybox", "sh", "-c", line]);
        let all = spec["process"]["capabilities"].as_object_mut();
        for set in all.context("no capabilities")?.values_mut() {
            *set = json!(CAPABILITIES.map(|name| format!("CAP_{name}")));
        }
        spec["root"]["path"] = json!(self.box_root);
        let linux = spec["linux"].as_object_mut().context("no linux")?;
        for confinement in ["seccomp", "maskedPaths", "readonlyPaths"] {
            linux.remove(confinement);
        }
        linux["namespaces"]
            .as_array_mut()
            .context("no namespaces")?
            .retain(|namespace| namespace["type"] != "cgroup");
        let mounts = spec["mounts"].as_array_mut().context("no mounts")?;
        mounts.retain(|mount| mount["destination"] != "/run");
        mounts.push(json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs"}));
        mounts.push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"],
        }));
        for mount in mounts {
            if mount["destination"] == "/sys" {
                mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
            }
        }
        let bundle = self.write("runc-box", &spec)?;
        client.timer("runc-box", &bundle).await
    }

    /// A bundle of a container that waits, for our shim.
    pub(super) fn bundle(&self, id: &str) -> Result<PathBuf> {
        self.write(id, &self.model)
    }

    fn write(&self, id: &str, spec: &Value) -> Result<PathBuf> {
        let bundle = self.stage.state.dir(&format!("bundles/{id}"))?;
        std::fs::write(bundle.join("config.json"), spec.to_string())?;
        Ok(bundle)
    }

    /// The same for runc, as our agent has it: the pod is the VM, so that only mount and PID namespaces are made,
    /// and device rules are the host's.
    pub(super) fn runc_bundle(&self, id: &str) -> Result<()> {
        let mut spec = self.model.clone();
        spec["root"]["path"] = json!("/bundle/rootfs");
        spec["linux"]["cgroupsPath"] = json!(format!("/runc/{id}"));
        let linux = spec["linux"].as_object_mut().context("no linux")?;
        linux["namespaces"]
            .as_array_mut()
            .context("no namespaces")?
            .retain(|one| {
                ["mount", "pid", "cgroup"]
                    .iter()
                    .any(|kept| one["type"] == *kept)
            });
        linux.remove("resources");
        let bundle = self.box_root.join(Self::inside(id).trim_start_matches('/'));
        std::fs::create_dir_all(&bundle)?;
        std::fs::write(bundle.join("config.json"), spec.to_string())?;
        Ok(())
    }

    /// Where runc finds a bundle.
    pub(super) fn inside(id: &str) -> String {
        format!("/bundle/{id}")
    }

    /// A further process: for our shim, and as a file for runc.
    pub(super) fn process(&self, args: &[&str]) -> Result<(Vec<u8>, String)> {
        let mut process = self.model["process"].clone();
        process["args"] = json!(args);
        let text = process.to_string();
        std::fs::write(self.box_root.join("bundle/process.json"), &text)?;
        Ok((text.into_bytes(), "/bundle/process.json".to_owned()))
    }

    /// The root of runc's container: busybox, the timer, runc with its libraries, and the root of what it runs.
    fn fill_box(&self) -> Result<()> {
        Recipe::busybox("box")?.unpack(&self.box_root)?;
        Recipe::busybox("runc")?.unpack(&self.box_root.join("bundle/rootfs"))?;
        std::fs::copy(std::env::current_exe()?, self.box_root.join("bench"))?;
        let runc =
            support::find("runc").context("no runc: install Debian's package of that name")?;
        self.carry(&runc, "usr/sbin/runc")?;
        let said = within(QUICK, Command::new("ldd").arg(&runc))?.ok()?.stdout;
        for library in said.split_whitespace().filter(|word| word.starts_with('/')) {
            self.carry(Path::new(library), library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    fn carry(&self, from: &Path, to: &str) -> Result<()> {
        let to = self.box_root.join(to);
        std::fs::create_dir_all(to.parent().unwrap_or(&self.root))?;
        std::fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
        Ok(())
    }
}

/// All that runc may use.
const CAPABILITIES: [&str; 20] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "NET_ADMIN",
    "NET_RAW",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_ADMIN",
    "SYS_RESOURCE",
    "MKNOD",
    "AUDIT_WRITE",
    "SETFCAP",
    "BPF",
];
