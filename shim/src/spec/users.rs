//! User namespaces of containers (`hostUsers: false`): the mappings go to the guest as they are, and a mount whose
//! owners are to be mapped says so by an option (`idmap`, `ridmap`), by which the guest does it with the
//! container's own mappings.
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md#mounts>

use super::oci::{Linux, Mount, Spec};
use super::refuse::Refused;

/// OCI's options for a mount with mapped owners, the second with all that is mounted below.
const OPTIONS: [&str; 2] = ["idmap", "ridmap"];

/// Refuses mappings that contradict each other.
///
/// # Errors
/// [`Refused`] names the field.
pub fn check(spec: &Spec) -> Result<(), Refused> {
    let none = Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    let has_users = !linux.uid_mappings.is_empty();
    let asked = linux.namespaces.iter().any(|found| found.kind == "user");
    if has_users == linux.gid_mappings.is_empty() || asked && !has_users {
        return Err(Refused::Mappings);
    }
    let is_other = |mount: &&Mount| {
        let maps = is_mapped(mount);
        let same =
            mount.uid_mappings == linux.uid_mappings && mount.gid_mappings == linux.gid_mappings;
        maps && !(has_users && (names_none(mount) || same))
    };
    match spec.mounts.iter().find(is_other) {
        Some(mount) => Err(Refused::MountMappings(mount.destination.clone())),
        None => Ok(()),
    }
}

/// Turns the mappings of mounts, which are the container's, into options.
pub fn mark(spec: &mut Spec) {
    for mount in &mut spec.mounts {
        if is_mapped(mount) {
            mount.uid_mappings.clear();
            mount.gid_mappings.clear();
            let with_below = mount.options.iter().any(|option| option == "rbind");
            let option = OPTIONS[usize::from(with_below)].to_owned();
            if !mount
                .options
                .iter()
                .any(|found| OPTIONS.contains(&found.as_str()))
            {
                mount.options.push(option);
            }
        }
    }
}

/// Takes the option from a mount whose owners are mapped before the guest sees it; whether it had one.
pub fn unmark(mount: &mut Mount) -> bool {
    let before = mount.options.len();
    mount
        .options
        .retain(|option| !OPTIONS.contains(&option.as_str()));
    mount.options.len() < before
}

fn is_mapped(mount: &Mount) -> bool {
    !names_none(mount)
        || mount
            .options
            .iter()
            .any(|option| OPTIONS.contains(&option.as_str()))
}

fn names_none(mount: &Mount) -> bool {
    mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd 2 writes it for a container of a pod with `hostUsers: false`.
    const OF_CONTAINERD: &str = r#"{
        "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
          {"destination":"/etc/hosts","type":"bind","source":"/var/lib/kubelet/pods/u/etc-hosts","options":["rbind","rprivate","rw"],
            "uidMappings":[{"containerID":0,"hostID":131072,"size":65536}],"gidMappings":[{"containerID":0,"hostID":131072,"size":65536}]}],
        "linux":{"namespaces":[{"type":"pid"},{"type":"ipc","path":"/proc/9/ns/ipc"},{"type":"user","path":"/proc/9/ns/user"}],
          "uidMappings":[{"containerID":0,"hostID":131072,"size":65536}],"gidMappings":[{"containerID":0,"hostID":131072,"size":65536}]}}"#;

    #[test]
    fn mounts_of_a_pod_with_users_of_its_own_are_marked_for_the_guest() {
        let mut spec: Spec = serde_json::from_str(OF_CONTAINERD).unwrap();
        check(&spec).unwrap();
        mark(&mut spec);
        assert_eq!(spec.mounts[0].options, [""; 0]);
        assert_eq!(
            spec.mounts[1].options,
            ["rbind", "rprivate", "rw", "ridmap"]
        );
        assert!(spec.mounts[1].uid_mappings.is_empty());
        mark(&mut spec);
        assert_eq!(spec.mounts[1].options.len(), 4, "once");
        assert!(unmark(&mut spec.mounts[1]) && !unmark(&mut spec.mounts[1]));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        check(&Spec::default()).unwrap();
        let users = r#""uidMappings":[{"containerID":0,"hostID":7,"size":9}]"#;
        let refused = |json: &str| check(&serde_json::from_str(json).unwrap()).unwrap_err();
        assert_eq!(
            refused(&format!(r#"{{"linux":{{{users}}}}}"#)),
            Refused::Mappings
        );
        assert_eq!(
            refused(r#"{"linux":{"namespaces":[{"type":"user","path":"/n"}]}}"#),
            Refused::Mappings
        );
        let other = OF_CONTAINERD.replacen("131072", "7", 1);
        assert_eq!(
            refused(&other),
            Refused::MountMappings("/etc/hosts".to_owned())
        );
        assert_eq!(
            refused(r#"{"mounts":[{"destination":"/x","options":["rbind","idmap"]}]}"#),
            Refused::MountMappings("/x".to_owned())
        );
    }
}
