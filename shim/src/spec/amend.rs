//! What a specification that was written for this host must lose before another kernel gets it.
//!
//! As Kata does it: hooks are the host's programs, namespace paths the host's namespaces, and the
//! cgroup path and device, pids, block and network limits belong to the host's hierarchy. The
//! network, time, pid and cgroup namespaces are the VM's own business. What is mounted from a
//! directory of the host is shared with the guest first, or refused.

use super::group::Role;
use super::oci::{Linux, Mount, Spec};
use super::pod::{SHM, shm_mount};
use super::users;

/// A bind mount whose source is on the host: where it stands in `Spec::mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostBind {
    /// The index of the mount.
    pub index: usize,
    /// The path on the host.
    pub source: String,
    /// Whether nobody may write to it, nor to what is mounted below, whoever is root in the guest.
    pub read_only: bool,
}

/// The namespaces that the guest's runtime makes anew; all others of the specification are
/// dropped, because the VM has one of each.
const KEPT_NAMESPACES: &[&str] = &["mount", "ipc", "uts", "user", "cgroup", "pid"];
/// The type of a mount that stands for the guest's resolv.conf, which [`crate::network::resolv_conf`] fills:
/// for a container whose network has name servers and whose host has no file of them.
pub const GUEST_DNS: &str = "guest-resolv.conf";
/// Where the agent writes it.
const GUEST_DNS_PATH: &str = "/run/kata-containers/sandbox/resolv.conf";
/// Options that make a bind mount of any type.
const BIND_OPTIONS: &[&str] = &["bind", "rbind"];

/// Makes a specification fit for the guest and returns the mounts that need files of the host. `shm` is
/// the host's directory that is the pod's `/dev/shm`.
pub fn amend(
    spec: &mut Spec,
    disable_seccomp: bool,
    role: &Role,
    shm: Option<&str>,
) -> Vec<HostBind> {
    spec.hooks = None;
    users::mark(spec);
    if let Some(process) = &mut spec.process {
        // Both name profiles of the host's kernel.
        process.apparmor_profile.clear();
        process.selinux_label.clear();
    }
    if let Some(linux) = &mut spec.linux {
        amend_linux(linux, disable_seccomp);
    }
    match role {
        // Nobody reads files in the container that stands for the pod.
        Role::Sandbox => spec.mounts.retain(|mount| !is_host_bind(mount)),
        Role::Single => spec.mounts.iter_mut().for_each(own_shm),
        Role::Member { .. } => spec
            .mounts
            .iter_mut()
            .for_each(|mount| pods_shm(mount, shm)),
    }
    let binds = host_binds(spec);
    // Not the host's, though it is a bind mount from now on.
    for mount in spec
        .mounts
        .iter_mut()
        .filter(|mount| mount.kind == GUEST_DNS)
    {
        "bind".clone_into(&mut mount.kind);
        GUEST_DNS_PATH.clone_into(&mut mount.source);
        mount.options = ["rbind", "rw"].map(str::to_owned).to_vec();
    }
    binds
}

fn host_binds(spec: &Spec) -> Vec<HostBind> {
    spec.mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| is_host_bind(mount))
        .map(|(index, mount)| HostBind {
            index,
            source: mount.source.clone(),
            read_only: is_read_only(mount),
        })
        .collect()
}

/// Whether a mount is read-only: the last of its options that says something counts.
fn is_read_only(mount: &Mount) -> bool {
    let mut options = mount.options.iter().rev().map(String::as_str);
    let last = options.find(|option| matches!(*option, "ro" | "rro" | "rw" | "rrw"));
    matches!(last, Some("ro" | "rro"))
}

fn amend_linux(linux: &mut Linux, disable_seccomp: bool) {
    linux
        .namespaces
        .retain(|namespace| KEPT_NAMESPACES.contains(&namespace.kind.as_str()));
    for namespace in &mut linux.namespaces {
        namespace.path.clear();
    }
    if disable_seccomp {
        linux.seccomp = None;
    }
    linux.mount_label.clear();
    if let Some(resources) = &mut linux.resources {
        resources.devices.clear();
        resources.pids = None;
        if let Some(cpu) = &mut resources.cpu {
            // They name processors and nodes of the host.
            cpu.cpus.clear();
            cpu.mems.clear();
        }
    }
}

/// The guest makes its own: the host's is a bind mount of the host's.
fn own_shm(mount: &mut Mount) {
    if mount.destination == SHM && is_host_bind(mount) {
        *mount = Mount {
            destination: SHM.to_owned(),
            source: "shm".to_owned(),
            kind: "tmpfs".to_owned(),
            options: ["nosuid", "noexec", "nodev", "mode=1777"]
                .map(str::to_owned)
                .to_vec(),
            ..Mount::default()
        };
    }
}

/// The pod's, which the guest has made; a volume that is mounted there stays one.
fn pods_shm(mount: &mut Mount, shm: Option<&str>) {
    if mount.destination == SHM && is_host_bind(mount) && shm == Some(mount.source.as_str()) {
        *mount = shm_mount();
    }
}

/// Whether a mount is a bind mount of the host's, which an option alone can say. The guest's own files are not the
/// host's.
#[must_use]
pub fn is_host_bind(mount: &Mount) -> bool {
    if *mount == shm_mount() {
        return false;
    }

    mount.kind == "bind"
        || mount
            .options
            .iter()
            .any(|option| BIND_OPTIONS.contains(&option.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_str(
            r#"{"ociVersion":"1.0.2","hooks":{"prestart":[]},
                "process":{"apparmorProfile":"p","selinuxLabel":"l"},
                "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
                  {"destination":"/dev/shm","type":"bind","source":"/run/shm","options":["rbind"]},
                  {"destination":"/etc/hosts","type":"bind","source":"/h/hosts","options":["rbind","ro"]}],
                "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/n"},{"type":"ipc","path":"/proc/1/ns/ipc"},
                    {"type":"time"}],
                  "seccomp":{"defaultAction":"x"},
                  "resources":{"devices":[{"allow":false}],"pids":{"limit":5},"memory":{"limit":7},"cpu":{"cpus":"0-1","shares":2}}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_guests_own_resolv_conf_is_no_file_of_the_host() {
        let mut spec = spec();
        let before = amend(&mut spec.clone(), true, &Role::Single, None).len();
        let mount = Mount {
            destination: "/etc/resolv.conf".to_owned(),
            kind: GUEST_DNS.to_owned(),
            ..Mount::default()
        };
        spec.mounts.push(mount);
        assert_eq!(amend(&mut spec, true, &Role::Single, None).len(), before);
        let mount = spec.mounts.last().unwrap();
        assert_eq!(
            (mount.kind.as_str(), mount.source.as_str()),
            ("bind", GUEST_DNS_PATH)
        );
    }

    #[test]
    fn what_belongs_to_the_host_is_gone() {
        let mut spec = spec();
        amend(&mut spec, true, &Role::Single, None);
        assert!(spec.hooks.is_none());
        let linux = spec.linux.unwrap();
        let kinds: Vec<_> = linux
            .namespaces
            .iter()
            .map(|n| (n.kind.as_str(), n.path.as_str()))
            .collect();
        assert_eq!(kinds, [("pid", ""), ("ipc", "")]);
        assert!(linux.seccomp.is_none());
        let resources = linux.resources.unwrap();
        assert!(resources.devices.is_empty() && resources.pids.is_none());
        assert_eq!(resources.memory.unwrap().limit, Some(7));
        assert_eq!(resources.cpu.unwrap().cpus, "");
        assert_eq!(spec.process.unwrap().apparmor_profile, "");
    }

    #[test]
    fn the_last_option_says_whether_a_mount_is_read_only() {
        for (options, expected) in [
            (&["rbind"][..], false),
            (&["rbind", "ro"], true),
            (&["rro", "rbind"], true),
            (&["rw", "ro"], true),
            (&["ro", "rw"], false),
        ] {
            let mount = Mount {
                options: options.iter().map(|one| (*one).to_owned()).collect(),
                ..Mount::default()
            };
            assert_eq!(is_read_only(&mount), expected, "{options:?}");
        }
    }

    #[test]
    fn only_host_binds_are_returned_and_shm_becomes_a_tmpfs() {
        let mut spec = spec();
        let binds = amend(&mut spec, true, &Role::Single, None);
        assert_eq!(
            binds,
            [HostBind {
                index: 2,
                source: "/h/hosts".into(),
                read_only: true,
            }]
        );
        assert_eq!(spec.mounts[1].kind, "tmpfs");
    }

    #[test]
    fn a_pods_containers_have_its_shared_memory_and_its_sandbox_no_files() {
        let member = Role::Member {
            sandbox: "pod".into(),
        };
        let mut of_pod = spec();
        let binds = amend(&mut of_pod, true, &member, Some("/run/shm"));
        assert_eq!(binds.len(), 1);
        assert_eq!(of_pod.mounts[1], shm_mount());
        let mut volume = spec();
        let binds = amend(&mut volume, true, &member, Some("/of/the/pod"));
        assert_eq!(binds[0].source, "/run/shm");
        let mut sandbox = spec();
        assert!(amend(&mut sandbox, true, &Role::Sandbox, None).is_empty());
        assert_eq!(sandbox.mounts.len(), 1);
    }

    #[test]
    fn seccomp_stays_where_the_guest_is_to_apply_it() {
        let mut spec = spec();
        amend(&mut spec, false, &Role::Single, None);
        assert!(spec.linux.unwrap().seccomp.is_some());
    }
}
