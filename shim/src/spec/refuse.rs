//! What no VM can give a container, refused by the name under which people ask for it.
//!
//! A container that wants a part of the host would run without it, or with the guest's in its place, and
//! fail later in other words. `docs/limitations.md` has the same list with reasons.

use serde_json::Value;
use thiserror::Error;

use super::oci::{Hooks, Linux, Mount, Process, Resources, Spec};
use super::users;

/// Devices that are named in an error.
const SHOWN: usize = 3;
/// That of every process in a guest.
const UMASK: u32 = 0o022;
/// Options by which mounts of the host and of a container follow each other.
const PROPAGATION: [(&str, &str); 4] = [
    ("rshared", "Bidirectional"),
    ("shared", "Bidirectional"),
    ("rslave", "HostToContainer"),
    ("slave", "HostToContainer"),
];

/// What is asked for, and what to do instead.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// The processes of the host.
    #[error(
        "hostPID (no pid namespace in linux.namespaces): the host's processes are not in a VM: remove hostPID, or run the pod with a runtime that has no VM"
    )]
    HostPid,
    /// System V IPC and POSIX queues of the host.
    #[error(
        "hostIPC (no ipc namespace in linux.namespaces): the host's IPC is not in a VM: remove hostIPC, or run the pod with a runtime that has no VM"
    )]
    HostIpc,
    /// Devices of the host.
    #[error(
        "devices of the host ({0}, in linux.devices) that are no block devices are not in a VM: remove them from the container (devices, --device); for privileged containers set privileged_without_host_devices = true for this runtime in containerd's or CRI-O's configuration"
    )]
    Devices(String),
    /// Mounts that follow those of the host.
    #[error(
        "mountPropagation {name} (option {option} of the mount on {destination}): mounts made later do not cross the border of a VM: remove mountPropagation, or set it to None"
    )]
    Propagation {
        /// Kubernetes' name.
        name: &'static str,
        /// The mount's option.
        option: &'static str,
        /// Where it is mounted.
        destination: String,
    },
    /// Programs of the host that are to run inside.
    #[error(
        "hooks.{0}: its programs run in the container's namespaces, and those are in a VM that the host's programs are not in: use createRuntime, poststart or poststop, or remove the hook"
    )]
    Hook(&'static str),
    /// A user namespace that is not described.
    #[error(
        "user namespace (linux.uidMappings, linux.gidMappings): a VM has none of the host's to join, and needs both mappings to make its own: give both, or remove the namespace of the type user"
    )]
    Mappings,
    /// Owners that are mapped as nobody's users are.
    #[error(
        "mount on {0} (uidMappings, gidMappings, idmap): its mappings are not those of the container's user namespace: use the same, or none"
    )]
    MountMappings(String),
    /// A setting that nobody in the guest would be told.
    #[error(
        "{0}: it is not passed on to a VM: remove it, or run the pod with a runtime that has no VM"
    )]
    Setting(&'static str),
}

/// Refuses what a VM does not have.
///
/// # Errors
/// [`Refused`] names the field and what to do about it.
pub fn check(spec: &Spec) -> Result<(), Refused> {
    if let Some(linux) = &spec.linux {
        check_linux(linux)?;
    }
    if let Some(process) = &spec.process {
        check_process(process)?;
    }
    none_of([("domainname", !spec.domainname.is_empty())])?;
    if let Some(hooks) = &spec.hooks {
        check_hooks(hooks)?;
    }
    users::check(spec)?;
    spec.mounts.iter().try_for_each(check_mount)
}

fn check_hooks(hooks: &Hooks) -> Result<(), Refused> {
    let inside = [
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
    ];
    match inside.into_iter().find(|(_, hooks)| !hooks.is_empty()) {
        Some((name, _)) => Err(Refused::Hook(name)),
        None => Ok(()),
    }
}

/// Refuses what a process in a guest would be without.
///
/// # Errors
/// As [`check`].
pub fn check_process(process: &Process) -> Result<(), Refused> {
    let umask = process.user.as_ref().and_then(|user| user.umask);
    none_of([
        (
            "process.user.umask",
            umask.is_some_and(|umask| umask != UMASK),
        ),
        ("process.ioPriority", asks(process.io_priority.as_ref())),
        ("process.scheduler", asks(process.scheduler.as_ref())),
    ])
}

/// What the guest's kernel would take, and its agent is not asked for. `unified` is passed over: kubelets write it
/// by themselves.
fn check_settings(linux: &Linux) -> Result<(), Refused> {
    let of_resources = |field: fn(&Resources) -> &Option<Value>| {
        asks(linux.resources.as_ref().and_then(|all| field(all).as_ref()))
    };
    let domain = linux.personality.as_ref().map(|it| it.domain.as_str());
    none_of([
        ("linux.timeOffsets", asks(linux.time_offsets.as_ref())),
        ("linux.intelRdt", asks(linux.intel_rdt.as_ref())),
        (
            "linux.personality",
            domain.is_some_and(|name| name != "LINUX"),
        ),
        ("linux.resources.blockIO", of_resources(|all| &all.block_io)),
        ("linux.resources.network", of_resources(|all| &all.network)),
        ("linux.resources.rdma", of_resources(|all| &all.rdma)),
    ])
}

/// Whether a setting says something: an empty object says nothing.
fn asks(setting: Option<&Value>) -> bool {
    setting.is_some_and(|value| value.as_object().is_none_or(|members| !members.is_empty()))
}

fn none_of<const N: usize>(settings: [(&'static str, bool); N]) -> Result<(), Refused> {
    match settings.into_iter().find(|(_, asked)| *asked) {
        Some((name, _)) => Err(Refused::Setting(name)),
        None => Ok(()),
    }
}

fn check_linux(linux: &Linux) -> Result<(), Refused> {
    check_settings(linux)?;
    let has = |kind| linux.namespaces.iter().any(|found| found.kind == kind);
    if !has("pid") {
        return Err(Refused::HostPid);
    }
    if !has("ipc") {
        return Err(Refused::HostIpc);
    }
    // Block devices become disks of the VM, or are refused when they are looked at.
    let other = || linux.devices.iter().filter(|device| device.kind != "b");
    if other().next().is_none() {
        return Ok(());
    }
    let paths = other().map(|device| device.path.as_str());
    let mut shown: Vec<_> = paths.take(SHOWN).collect();
    if other().count() > SHOWN {
        shown.push("…");
    }
    Err(Refused::Devices(shown.join(", ")))
}

fn check_mount(mount: &Mount) -> Result<(), Refused> {
    let asked = |option: &str| mount.options.iter().any(|found| found == option);
    match PROPAGATION.into_iter().find(|(option, _)| asked(option)) {
        Some((option, name)) => Err(Refused::Propagation {
            name,
            option,
            destination: mount.destination.clone(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        let spec: Spec = serde_json::from_str(json).unwrap();
        check(&spec).unwrap_err().to_string()
    }

    #[test]
    fn an_ordinary_container_passes() {
        let spec = serde_json::from_str(
            r#"{"mounts":[{"destination":"/x","type":"bind","source":"/h","options":["rbind","rprivate"]}],
                "linux":{"namespaces":[{"type":"pid","path":"/proc/7/ns/pid"},{"type":"ipc"}]}}"#,
        );
        check(&spec.unwrap()).unwrap();
        check(&Spec::default()).unwrap();
    }

    #[test]
    fn a_setting_that_no_guest_is_told_is_refused_and_one_that_says_nothing_passes() {
        let linux = |inner: &str| {
            let namespaces = r#""namespaces":[{"type":"pid"},{"type":"ipc"}]"#;
            format!(r#"{{"linux":{{{namespaces},{inner}}}}}"#)
        };
        for (json, field) in [
            (r#"{"domainname":"d"}"#.to_owned(), "domainname"),
            (
                r#"{"process":{"user":{"umask":0}}}"#.to_owned(),
                "process.user.umask",
            ),
            (
                r#"{"process":{"ioPriority":{"class":"IOPRIO_CLASS_IDLE"}}}"#.to_owned(),
                "process.ioPriority",
            ),
            (
                r#"{"process":{"scheduler":{"policy":"SCHED_FIFO"}}}"#.to_owned(),
                "process.scheduler",
            ),
            (
                linux(r#""timeOffsets":{"boottime":{}}"#),
                "linux.timeOffsets",
            ),
            (linux(r#""intelRdt":{"closID":"c"}"#), "linux.intelRdt"),
            (
                linux(r#""personality":{"domain":"LINUX32"}"#),
                "linux.personality",
            ),
            (
                linux(r#""resources":{"blockIO":{"weight":10}}"#),
                "linux.resources.blockIO",
            ),
            (
                linux(r#""resources":{"network":{"classID":1}}"#),
                "linux.resources.network",
            ),
            (
                linux(r#""resources":{"rdma":{"mlx5_1":{"hcaHandles":3}}}"#),
                "linux.resources.rdma",
            ),
        ] {
            let text = refused(&json);
            assert!(text.starts_with(&format!("{field}: ")), "{text}");
        }
        let nothing = linux(
            r#""timeOffsets":null,"personality":{"domain":"LINUX"},
               "resources":{"blockIO":{},"network":{},"unified":{"memory.oom.group":"1"}}"#,
        );
        check(&serde_json::from_str(&nothing).unwrap()).unwrap();
        let usual = r#"{"process":{"user":{"umask":18}}}"#;
        check(&serde_json::from_str(usual).unwrap()).unwrap();
    }

    #[test]
    fn a_refusal_names_the_field_of_the_pod() {
        for (json, field) in [
            (r#"{"linux":{"namespaces":[{"type":"ipc"}]}}"#, "hostPID"),
            (r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#, "hostIPC"),
            (
                r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"ipc"}],"devices":[{"path":"/dev/kvm"}]}}"#,
                "/dev/kvm",
            ),
            (
                r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"ipc"}],"uidMappings":[{"hostID":1,"containerID":0,"size":1}]}}"#,
                "linux.gidMappings",
            ),
            (
                r#"{"mounts":[{"destination":"/x","options":["rbind","rslave"]}]}"#,
                "mountPropagation HostToContainer",
            ),
            (
                r#"{"hooks":{"startContainer":[{"path":"/x"}]}}"#,
                "hooks.startContainer",
            ),
            (
                r#"{"mounts":[{"destination":"/x","options":["rbind","rshared"]}]}"#,
                "mountPropagation Bidirectional",
            ),
        ] {
            let text = refused(json);
            assert!(text.contains(field), "{text}");
        }
    }
}
