//! What the containers of a pod have in common: the PID namespace and `/dev/shm`.
//!
//! A specification names a shared PID namespace by the host's process of another container
//! (`/proc/<pid>/ns/pid`). All processes of a VM are one process of the host, so that the path says that
//! the namespace is shared, and not with whom: with the pod where all of its containers share
//! (`shareProcessNamespace`), else with the one that runs (`kubectl debug --target`).

use agent_api::agent::Storage;
use agent_api::{ErrorCode, GuestError};

use super::oci::{Mount, Spec};
use crate::rootfs::GUEST_BUNDLES;

/// Where the guest has the pod's `/dev/shm`: the place that Kata's agent knows.
pub const GUEST_SHM: &str = "/run/kata-containers/sandbox/shm";
/// Where a container has it.
pub const SHM: &str = "/dev/shm";
/// Bytes of a pod's `/dev/shm` where the host does not say how many.
const DEFAULT_SHM: u64 = 64 * 1024 * 1024;
/// The most that a host's mount may ask for.
const MAX_SHM: u64 = 1 << 40;

/// Whose processes a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Processes {
    /// Its own.
    Own,
    /// All of the pod's.
    Pod,
    /// Those of one other container.
    Of(String),
}

/// Another container of the pod, as far as it counts here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// Its id.
    pub id: String,
    /// Whether it runs.
    pub is_running: bool,
}

/// Whether the specification names a PID namespace to join.
#[must_use]
pub fn joins(spec: &Spec) -> bool {
    let mut namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    namespaces.any(|namespace| namespace.kind == "pid" && !namespace.path.is_empty())
}

/// Makes an amended specification name the container whose processes are to be seen, for the agent.
pub fn join(spec: &mut Spec, other: &str) {
    let namespaces = spec
        .linux
        .iter_mut()
        .flat_map(|linux| &mut linux.namespaces);
    for namespace in namespaces.filter(|namespace| namespace.kind == "pid") {
        namespace.path = format!("{GUEST_BUNDLES}/{other}");
    }
}

/// Whose processes a container that [`joins`] sees. `private` are those of the pod's containers that have
/// a namespace of their own.
///
/// # Errors
/// More than one could be meant, or none is there any more.
pub fn processes(private: &[Sibling]) -> Result<Processes, GuestError> {
    if private.is_empty() {
        return Ok(Processes::Pod);
    }
    let running: Vec<_> = private.iter().filter(|one| one.is_running).collect();
    let refuse = |why: &str| {
        let text = format!(
            "the PID namespace of another container (NamespaceOption TARGET, --target of kubectl debug): {why}"
        );
        Err(GuestError::new(ErrorCode::FailedPrecondition, "spec", text))
    };
    match running.as_slice() {
        [one] => Ok(Processes::Of(one.id.clone())),
        [] => refuse("no container of the pod runs"),
        _ => refuse(
            "several containers run, and the runtime is not told which is meant: use shareProcessNamespace, or leave --target out",
        ),
    }
}

/// The host's directory that is the pod's `/dev/shm`, as its sandbox container has it: mounted over the
/// one that every container gets.
#[must_use]
pub fn shm_source(spec: &Spec) -> Option<String> {
    let mut mounts = spec.mounts.iter().rev();
    let mount = mounts.find(|mount| mount.destination == SHM)?;
    Some(mount.source.clone())
}

/// The guest's `/dev/shm` for all of the pod, as large as the host's.
#[must_use]
pub fn shm_storage(source: Option<&str>) -> Storage {
    let size = source.and_then(|path| {
        let stat = rustix::fs::statvfs(path).ok()?;
        let bytes = stat.f_blocks.checked_mul(stat.f_frsize)?;
        (1..=MAX_SHM).contains(&bytes).then_some(bytes)
    });
    let options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned);
    let size = format!("size={}", size.unwrap_or(DEFAULT_SHM));
    Storage {
        driver: "ephemeral".to_owned(),
        source: "shm".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: options.into_iter().chain([size]).collect(),
        mount_point: GUEST_SHM.to_owned(),
        ..Default::default()
    }
}

/// The mount by which a container has the pod's.
#[must_use]
pub fn shm_mount() -> Mount {
    Mount {
        destination: SHM.to_owned(),
        source: GUEST_SHM.to_owned(),
        kind: "bind".to_owned(),
        options: ["rbind", "nosuid", "noexec", "nodev"]
            .map(str::to_owned)
            .to_vec(),
        ..Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sibling(id: &str, is_running: bool) -> Sibling {
        Sibling {
            id: id.to_owned(),
            is_running,
        }
    }

    #[test]
    fn a_namespace_is_the_pods_or_that_of_the_one_that_runs() {
        assert_eq!(processes(&[]).unwrap(), Processes::Pod);
        let done = sibling("init", false);
        let main = sibling("main", true);
        let of_main = Processes::Of("main".to_owned());
        assert_eq!(processes(&[done.clone(), main.clone()]).unwrap(), of_main);
        let error = processes(&[main, sibling("other", true)]).unwrap_err();
        assert!(error.message.contains("--target"), "{error}");
        assert!(processes(&[done]).is_err());
    }

    #[test]
    fn a_path_is_what_tells_a_shared_namespace_from_an_own_one() {
        let of = |text: &str| joins(&serde_json::from_str(text).unwrap());
        assert!(of(
            r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/7/ns/pid"}]}}"#
        ));
        assert!(!of(
            r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"ipc","path":"/x"}]}}"#
        ));
    }

    #[test]
    fn the_last_mount_is_the_one_that_is_seen() {
        let spec = serde_json::from_str(
            r#"{"mounts":[{"destination":"/dev/shm","type":"tmpfs","source":"shm"},
                {"destination":"/dev/shm","type":"bind","source":"/run/pod/shm","options":["rbind"]}]}"#,
        )
        .unwrap();
        assert_eq!(shm_source(&spec).as_deref(), Some("/run/pod/shm"));
    }

    #[test]
    fn shared_memory_is_as_large_as_the_hosts() {
        let storage = shm_storage(Some("/nonexistent"));
        assert!(storage.options.contains(&format!("size={DEFAULT_SHM}")));
        let storage = shm_storage(Some("/dev/shm"));
        assert!(
            storage
                .options
                .iter()
                .any(|option| option.starts_with("size="))
        );
    }
}
