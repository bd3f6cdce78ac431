//! From the request's protobuf to the OCI specification that libcontainer gets.
//!
//! Two steps. `convert` says the same in the other language: protobuf's zeroes and empty strings
//! become absence. [`confine`] makes it the guest's: the pod is the VM, so network, IPC and UTS
//! namespaces are the VM's own, cgroups lie below ours, and what the host's kernel would have
//! enforced by profiles that only it has (AppArmor, SELinux) is dropped. What would be silently
//! ineffective in the guest (hooks, host devices) is refused by name.

mod seccomp;
mod text;
pub mod users;

use std::path::Path;

use agent_api::{GuestError, oci};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Map, Value, json};

use crate::fault::{OrFail, invalid, unimplemented};
use crate::path::existing;

const PHASE: &str = "spec";
/// What containerd and others give to an image that names none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// File systems that a container may mount besides bind mounts.
const MOUNT_TYPES: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];
/// Sysctls that are the pod's, and so the guest's.
const POD_SYSCTLS: [&str; 5] = [
    "net.",
    "fs.mqueue.",
    "kernel.shm",
    "kernel.msg",
    "kernel.sem",
];

/// The parts that only the guest knows.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The root file system.
    pub root: &'a Path,
    /// The container's cgroup, from the root of the hierarchy.
    pub cgroup: &'a str,
    /// The PID namespace to join; a new one where there is none.
    pub pid_namespace: Option<&'a str>,
}

/// A specification for libcontainer, and the sysctls that the guest itself must set first.
#[derive(Debug)]
pub struct Confined {
    /// What libcontainer gets.
    pub spec: Spec,
    /// Names and values below `/proc/sys`.
    pub sysctls: Vec<(String, String)>,
}

/// Translates and confines a specification.
///
/// # Errors
///
/// Names what is malformed or not supported.
pub fn confine(oci: &oci::Spec, place: Place<'_>) -> Result<Confined, GuestError> {
    refuse_unsupported(oci)?;
    text::check(PHASE, &oci.Process)?;
    for mount in &oci.Mounts {
        check_mount(mount)?;
    }
    let mut sysctls = Vec::new();
    for (name, value) in &oci.Linux.Sysctl {
        check_sysctl(name)?;
        sysctls.push((name.clone(), value.clone()));
    }
    sysctls.sort();
    let json = convert(oci, place)?;
    let spec = serde_json::from_value(json)
        .map_err(|error| invalid(PHASE, format!("not an OCI specification: {error}")))?;
    Ok(Confined { spec, sysctls })
}

/// Translates a process, as `ExecProcess` has it, of a container with a seccomp profile or without.
///
/// # Errors
///
/// Names what is malformed.
pub fn process(oci: &oci::Process, filtered: bool) -> Result<Process, GuestError> {
    text::check(PHASE, oci)?;
    serde_json::from_value(process_json(oci, filtered))
        .map_err(|error| invalid(PHASE, format!("not an OCI process: {error}")))
}

fn refuse_unsupported(oci: &oci::Spec) -> Result<(), GuestError> {
    let linux = &oci.Linux;
    let hooks = &oci.Hooks;
    let has_hooks = [
        &hooks.Prestart,
        &hooks.Poststart,
        &hooks.Poststop,
        &hooks.CreateRuntime,
        &hooks.CreateContainer,
        &hooks.StartContainer,
    ]
    .iter()
    .any(|hooks| !hooks.is_empty());
    let block_io = &linux.Resources.BlockIO;
    let network = &linux.Resources.Network;
    let unsupported = [
        (has_hooks, "hooks: their programs are the host's"),
        (
            !linux.Devices.is_empty(),
            "devices: the host's numbers mean nothing in the guest; name disks in the request's devices",
        ),
        (!linux.IntelRdt.L3CacheSchema.is_empty(), "IntelRdt"),
        (
            !linux.MountLabel.is_empty(),
            "MountLabel: there is no SELinux in the guest",
        ),
        (
            block_io.is_some() && **block_io != oci::LinuxBlockIO::new(),
            "Resources.BlockIO",
        ),
        (
            network.is_some() && **network != oci::LinuxNetwork::new(),
            "Resources.Network",
        ),
        (
            oci.Solaris.is_some() || oci.Windows.is_some(),
            "another operating system",
        ),
    ];
    match unsupported.iter().find(|(present, _)| *present) {
        Some((_, what)) => Err(unimplemented(PHASE, format!("not supported: {what}"))),
        None => Ok(()),
    }
}

fn check_mount(mount: &oci::Mount) -> Result<(), GuestError> {
    if is_bind(mount) {
        return existing(PHASE, &mount.source).map(drop);
    }
    if MOUNT_TYPES.contains(&mount.type_.as_str()) {
        return Ok(());
    }
    let message = format!("mount of type {:?} on {}", mount.type_, mount.destination);
    Err(unimplemented(PHASE, message))
}

fn is_bind(mount: &oci::Mount) -> bool {
    mount.type_ == "bind" || mount.options.iter().any(|o| o == "bind" || o == "rbind")
}

fn check_sysctl(name: &str) -> Result<(), GuestError> {
    let is_plain = name
        .split(['.', '/'])
        .all(|part| !part.is_empty() && part != "..");
    if is_plain && POD_SYSCTLS.iter().any(|prefix| name.starts_with(prefix)) {
        return Ok(());
    }
    let known = POD_SYSCTLS.join(", ");
    Err(invalid(
        PHASE,
        format!("sysctl {name} is not of a pod; those are {known}"),
    ))
}

/// Sets a sysctl of the guest.
///
/// # Errors
///
/// The kernel does not know or take it.
pub fn set_sysctl(name: &str, value: &str) -> Result<(), GuestError> {
    check_sysctl(name)?;
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    std::fs::write(path, value).or_fail(agent_api::ErrorCode::InvalidArgument, PHASE, name)
}

fn convert(oci: &oci::Spec, place: Place<'_>) -> Result<Value, GuestError> {
    let version = if oci.Version.is_empty() {
        "1.0.2"
    } else {
        &oci.Version
    };
    let root = place
        .root
        .to_str()
        .ok_or_else(|| invalid(PHASE, "root path is not text"))?;
    let mounts: Vec<Value> = oci.Mounts.iter().map(mount_json).collect();
    Ok(json!({
        "ociVersion": version,
        "process": process_json(&oci.Process, oci.Linux.Seccomp.is_some()),
        "root": {"path": root, "readonly": oci.Root.Readonly},
        "mounts": mounts,
        "annotations": oci.Annotations,
        "linux": linux_json(&oci.Linux, place)?,
    }))
}

fn mount_json(mount: &oci::Mount) -> Value {
    let mut json = Object::new();
    json.text("destination", &mount.destination);
    json.text("type", &mount.type_);
    json.text("source", &mount.source);
    json.list("options", &mount.options);
    json.done()
}

/// The environment, with a `PATH` where it has none: `ctr` sends an empty one for a root file system
/// without an image, and libcontainer looks no program up without it, not even an absolute one.
fn with_path(env: &[String]) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(DEFAULT_PATH.to_owned());
    }
    env
}

fn process_json(process: &oci::Process, filtered: bool) -> Value {
    let mut json = Object::new();
    json.put("terminal", process.Terminal);
    if process.Terminal && process.ConsoleSize.is_some() {
        let size = &process.ConsoleSize;
        json.put(
            "consoleSize",
            json!({"height": size.Height, "width": size.Width}),
        );
    }
    let user = &process.User;
    json.put(
        "user",
        json!({
            "uid": user.UID,
            "gid": user.GID,
            "additionalGids": user.AdditionalGids,
        }),
    );
    json.put("args", json!(process.Args));
    json.put("env", json!(with_path(&process.Env)));
    json.put(
        "cwd",
        if process.Cwd.is_empty() {
            "/"
        } else {
            &process.Cwd
        },
    );
    if let Some(caps) = process.Capabilities.as_ref() {
        let mut sets = Object::new();
        let loads = filtered && !process.NoNewPrivileges;
        sets.put("bounding", json!(caps.Bounding));
        sets.put("effective", seccomp::to_load(&caps.Effective, loads));
        sets.put("inheritable", json!(caps.Inheritable));
        sets.put("permitted", seccomp::to_load(&caps.Permitted, loads));
        sets.put("ambient", json!(caps.Ambient));
        json.put("capabilities", sets.done());
    }
    let limits: Vec<Value> = process
        .Rlimits
        .iter()
        .map(|limit| json!({"type": limit.Type, "hard": limit.Hard, "soft": limit.Soft}))
        .collect();
    if !limits.is_empty() {
        json.put("rlimits", limits);
    }
    json.put("noNewPrivileges", process.NoNewPrivileges);
    json.number("oomScoreAdj", process.OOMScoreAdj);
    json.done()
}

fn linux_json(linux: &oci::Linux, place: Place<'_>) -> Result<Value, GuestError> {
    let mut json = Object::new();
    json.put("namespaces", namespaces(linux, place)?);
    json.put("cgroupsPath", place.cgroup);
    json.put("resources", resources_json(&linux.Resources));
    json.text("rootfsPropagation", &linux.RootfsPropagation);
    json.list("maskedPaths", &linux.MaskedPaths);
    json.list("readonlyPaths", &linux.ReadonlyPaths);
    if let Some(profile) = linux.Seccomp.as_ref() {
        json.put("seccomp", seccomp::json(profile)?);
    }
    Ok(json.done())
}

/// Mount and PID always, cgroup where it is asked for; the others are the VM's.
fn namespaces(linux: &oci::Linux, place: Place<'_>) -> Result<Vec<Value>, GuestError> {
    let mut namespaces = vec![json!({"type": "mount"})];
    namespaces.push(match place.pid_namespace {
        Some(path) => json!({"type": "pid", "path": path}),
        None => json!({"type": "pid"}),
    });
    for namespace in &linux.Namespaces {
        match namespace.Type.as_str() {
            // Users are not libcontainer's business (users.rs).
            "mount" | "pid" | "network" | "ipc" | "uts" | "user" => {}
            "cgroup" => namespaces.push(json!({"type": "cgroup"})),
            other => {
                return Err(unimplemented(
                    PHASE,
                    format!("not supported: {other} namespace"),
                ));
            }
        }
    }
    Ok(namespaces)
}

/// Device rules are left out: they name the host's devices by numbers that mean others in the guest. What a
/// container may open the filter of its cgroup says ([`crate::cgroup`]).
fn resources_json(resources: &oci::LinuxResources) -> Value {
    let mut json = Object::new();
    if let Some(memory) = resources.Memory.as_ref() {
        let mut part = Object::new();
        part.number("limit", memory.Limit);
        part.number("reservation", memory.Reservation);
        part.number("swap", memory.Swap);
        if memory.DisableOOMKiller {
            part.put("disableOOMKiller", true);
        }
        json.put("memory", part.done());
    }
    if let Some(cpu) = resources.CPU.as_ref() {
        let mut part = Object::new();
        part.number("shares", cpu.Shares);
        part.number("quota", cpu.Quota);
        part.number("period", cpu.Period);
        part.number("realtimeRuntime", cpu.RealtimeRuntime);
        part.number("realtimePeriod", cpu.RealtimePeriod);
        part.text("cpus", &cpu.Cpus);
        part.text("mems", &cpu.Mems);
        json.put("cpu", part.done());
    }
    if let Some(pids) = resources.Pids.as_ref().filter(|pids| pids.Limit != 0) {
        json.put("pids", json!({"limit": pids.Limit}));
    }
    let huge: Vec<Value> = resources
        .HugepageLimits
        .iter()
        .map(|limit| json!({"pageSize": limit.Pagesize, "limit": limit.Limit}))
        .collect();
    if !huge.is_empty() {
        json.put("hugepageLimits", huge);
    }
    json.done()
}

/// An object under construction, where zero and empty are absent.
struct Object(Map<String, Value>);

impl Object {
    fn new() -> Self {
        Self(Map::new())
    }

    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.put(name, value);
        }
    }

    fn list(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            self.put(name, json!(values));
        }
    }

    fn number<N: Into<Value> + Default + PartialEq>(&mut self, name: &str, value: N) {
        if value != N::default() {
            self.put(name, value);
        }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxNamespaceType;

    fn place() -> Place<'static> {
        Place {
            root: Path::new("/run/kata-containers/c/rootfs"),
            cgroup: "/cloister/c",
            pid_namespace: None,
        }
    }

    fn sample() -> oci::Spec {
        let mut spec = oci::Spec::new();
        spec.Version = "1.1.0".into();
        let process = spec.Process.mut_or_insert_default();
        process.Args = vec!["/bin/true".into()];
        process.Env = vec!["A=b".into()];
        process.Capabilities.mut_or_insert_default().Bounding = vec!["CAP_KILL".into()];
        process.Rlimits.push(oci::POSIXRlimit {
            Type: "RLIMIT_NOFILE".into(),
            Hard: 1024,
            Soft: 512,
            ..Default::default()
        });
        let linux = spec.Linux.mut_or_insert_default();
        for kind in ["pid", "network", "ipc", "uts", "mount", "cgroup"] {
            let path = format!("/proc/1/ns/{kind}");
            let namespace = oci::LinuxNamespace {
                Type: kind.into(),
                Path: path,
                ..Default::default()
            };
            linux.Namespaces.push(namespace);
        }
        let resources = linux.Resources.mut_or_insert_default();
        resources.Memory.mut_or_insert_default().Limit = 64 << 20;
        resources.CPU.mut_or_insert_default().Shares = 256;
        spec
    }

    #[test]
    fn the_guest_keeps_its_own_namespaces_and_cgroup() {
        let confined = confine(&sample(), place()).unwrap();
        let linux = confined.spec.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().as_ref().unwrap();
        let kinds: Vec<_> = namespaces.iter().map(|ns| ns.typ()).collect();
        use LinuxNamespaceType::{Cgroup, Mount, Pid};
        assert_eq!(kinds, [Mount, Pid, Cgroup]);
        assert!(namespaces.iter().all(|ns| ns.path().is_none()));
        assert_eq!(
            linux.cgroups_path().as_ref().unwrap(),
            Path::new("/cloister/c")
        );
        let joined = Place {
            pid_namespace: Some("/proc/7/ns/pid"),
            ..place()
        };
        let confined = confine(&sample(), joined).unwrap();
        let namespaces = confined
            .spec
            .linux()
            .as_ref()
            .unwrap()
            .namespaces()
            .clone()
            .unwrap();
        assert_eq!(
            namespaces[1].path().as_ref().unwrap(),
            Path::new("/proc/7/ns/pid")
        );
    }

    #[test]
    fn values_arrive_and_zeroes_become_absence() {
        let confined = confine(&sample(), place()).unwrap();
        let process = confined.spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["/bin/true"]);
        assert_eq!(process.cwd(), Path::new("/"));
        assert_eq!(process.oom_score_adj(), None);
        assert_eq!(process.rlimits().as_ref().unwrap()[0].soft(), 512);
        let resources = confined
            .spec
            .linux()
            .as_ref()
            .unwrap()
            .resources()
            .clone()
            .unwrap();
        assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(resources.memory().unwrap().swap(), None);
        assert_eq!(resources.cpu().as_ref().unwrap().shares(), Some(256));
        assert!(resources.pids().is_none());
    }

    #[test]
    fn a_process_without_a_path_gets_the_usual_one_and_keeps_its_own() {
        let path_of = |env: &[&str]| {
            let env: Vec<_> = env.iter().map(|v| (*v).to_owned()).collect();
            with_path(&env)
        };
        assert_eq!(path_of(&["A=1"]), ["A=1", DEFAULT_PATH]);
        assert_eq!(path_of(&["PATH=/x", "A=1"]), ["PATH=/x", "A=1"]);
    }

    #[test]
    fn what_would_not_work_is_refused_by_name() {
        let refused = |change: fn(&mut oci::Spec)| {
            let mut spec = sample();
            change(&mut spec);
            confine(&spec, place()).unwrap_err().to_string()
        };
        let message = refused(|s| {
            s.Linux.mut_or_insert_default().Seccomp = Some(oci::LinuxSeccomp::new()).into();
        });
        assert!(
            message.contains("seccomp") && message.contains("DefaultAction"),
            "{message}"
        );
        let message = refused(|s| {
            s.Hooks
                .mut_or_insert_default()
                .Prestart
                .push(oci::Hook::new());
        });
        assert!(message.contains("hooks"), "{message}");
        let message = refused(|s| {
            s.Linux
                .mut_or_insert_default()
                .Devices
                .push(oci::LinuxDevice::new());
        });
        assert!(message.contains("devices"), "{message}");
        let message = refused(|s| {
            s.Process
                .mut_or_insert_default()
                .Capabilities
                .mut_or_insert_default()
                .Bounding = vec!["CAP_MAGIC".into()];
        });
        assert!(message.contains("CAP_MAGIC"), "{message}");
    }

    #[test]
    fn mounts_stay_in_the_guests_directories() {
        let mount = |source: &str, kind: &str| oci::Mount {
            destination: "/x".into(),
            source: source.into(),
            type_: kind.into(),
            ..Default::default()
        };
        assert!(check_mount(&mount("tmpfs", "tmpfs")).is_ok());
        assert!(check_mount(&mount("/run/cloister", "bind")).is_err());
        assert!(check_mount(&mount("/", "bind")).is_err());
        assert!(check_mount(&mount("/dev/vda", "ext4")).is_err());
        let mut hidden = mount("/", "tmpfs");
        hidden.options = vec!["rbind".into()];
        assert!(check_mount(&hidden).is_err());
    }

    #[test]
    fn only_a_pods_sysctls_are_set() {
        for good in [
            "net.ipv4.ip_unprivileged_port_start",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
        ] {
            assert!(check_sysctl(good).is_ok(), "{good}");
        }
        for bad in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net.../../x",
            "net/../kernel/x",
        ] {
            assert!(check_sysctl(bad).is_err(), "{bad}");
        }
    }
}
