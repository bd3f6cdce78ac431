//! What a mount of the host is to Kubernetes, by its path.
//!
//! ```text
//!   <root>/pods/<uid>/volumes/kubernetes.io~<kind>/<name>        a volume
//!   <root>/pods/<uid>/volume-subpaths/<name>/<container>/<n>      a part of one (subPath)
//!   <root>/pods/<uid>/etc-hosts                                   /etc/hosts
//!   <root>/pods/<uid>/containers/<container>/<digits>             the termination message
//! ```
//!
//! The root is `/var/lib/kubelet` on most nodes, and another on some. What containerd and CRI-O add of their own
//! is known by where it goes.

use std::path::{Path, PathBuf};

/// What a mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Small, and filled by the kubelet or the container engine.
    Content,
    /// Where a container writes its last words.
    TerminationLog,
    /// An emptyDir.
    EmptyDir(EmptyDir),
    /// Anything else of the host's.
    Host,
}

/// An emptyDir, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EmptyDir {
    /// The volume's name.
    pub(super) name: String,
    /// The kubelet's directory.
    pub(super) source: PathBuf,
    /// The part's path in the volume.
    pub(super) part: Option<Part>,
}

/// Which part of a volume a mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// That of this path.
    Path(String),
    /// That which is mounted on this path of the host.
    MountedOn(String),
}

/// The kubelet's names for the volumes whose files it writes.
const CONTENT: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
];
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// Files that an engine makes for a container, by where they go.
const OF_ENGINE: [&str; 4] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/run/.containerenv",
];
/// Where the kubelet has the termination message unless the pod says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The kind of the mount of `source` at `destination`.
pub(super) fn of(source: &str, destination: &str) -> Kind {
    let parts: Vec<&str> = source.split('/').collect();
    // Only the last can be the kubelet's: those above it belong to its root.
    let pods = parts.iter().rposition(|part| *part == "pods");
    if let Some(kind) = pods.and_then(|at| of_pod(&parts, at, source)) {
        return kind;
    }
    match destination {
        TERMINATION_LOG => Kind::TerminationLog,
        _ if OF_ENGINE.contains(&destination) && !Path::new(source).is_dir() => Kind::Content,
        _ => Kind::Host,
    }
}

fn of_pod(parts: &[&str], pods: usize, source: &str) -> Option<Kind> {
    match parts.get(pods + 2..)? {
        ["etc-hosts"] => Some(Kind::Content),
        ["containers", _, _] => Some(Kind::TerminationLog),
        ["volumes", EMPTY_DIR, name, rest @ ..] => {
            let of_volume = parts.len() - rest.len();
            let part = (!rest.is_empty()).then(|| Part::Path(rest.join("/")));
            Some(Kind::EmptyDir(EmptyDir {
                name: (*name).to_owned(),
                source: PathBuf::from(parts.get(..of_volume)?.join("/")),
                part,
            }))
        }
        ["volumes", kind, _, ..] if CONTENT.contains(kind) => Some(Kind::Content),
        ["volume-subpaths", name, _, ..] => {
            let pod = PathBuf::from(parts.get(..pods + 2)?.join("/"));
            let has = |kind: &str| pod.join("volumes").join(kind).join(name).exists();
            if CONTENT.iter().any(|kind| has(kind)) {
                return Some(Kind::Content);
            }
            has(EMPTY_DIR).then(|| {
                Kind::EmptyDir(EmptyDir {
                    name: (*name).to_owned(),
                    source: pod.join("volumes").join(EMPTY_DIR).join(name),
                    part: Some(Part::MountedOn(source.to_owned())),
                })
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_paths_tell_what_they_are_whatever_its_root() {
        for root in [
            "/var/lib/kubelet",
            "/var/lib/k0s/kubelet",
            "/data/pods/kubelet",
        ] {
            let of = |path: &str| of(&format!("{root}/pods/0a-1/{path}"), "/x");
            for kind in CONTENT {
                assert_eq!(of(&format!("volumes/{kind}/v")), Kind::Content);
            }
            assert_eq!(of("etc-hosts"), Kind::Content);
            assert_eq!(of("containers/main/5c"), Kind::TerminationLog);
            let Kind::EmptyDir(found) = of("volumes/kubernetes.io~empty-dir/cache") else {
                panic!("no emptyDir")
            };
            assert_eq!((found.name.as_str(), found.part), ("cache", None));
            let Kind::EmptyDir(found) = of("volumes/kubernetes.io~empty-dir/cache/sub") else {
                panic!("no emptyDir")
            };
            assert_eq!(found.part, Some(Part::Path("sub".into())));
            assert!(found.source.ends_with("cache"));
            for other in [
                "volumes/kubernetes.io~csi/pv/mount",
                "volumes",
                "plugins/x",
                "",
            ] {
                assert_eq!(of(other), Kind::Host, "{other}");
            }
        }
    }

    #[test]
    fn a_part_of_a_volume_is_what_the_volume_is() {
        let root = tempfile::tempdir().unwrap();
        let pod = root.path().join("pods/u");
        std::fs::create_dir_all(pod.join("volumes/kubernetes.io~secret/key")).unwrap();
        std::fs::create_dir_all(pod.join("volumes/kubernetes.io~empty-dir/tmp")).unwrap();
        let of = |volume: &str| {
            let path = pod.join("volume-subpaths").join(volume).join("main/0");
            of(path.to_str().unwrap(), "/x")
        };
        assert_eq!(of("key"), Kind::Content);
        assert!(matches!(of("tmp"), Kind::EmptyDir(found) if found.source.ends_with("tmp")));
        assert_eq!(of("claim"), Kind::Host);
    }

    #[test]
    fn an_engines_files_are_known_by_where_they_go() {
        assert_eq!(
            of("/run/c/sandboxes/1/resolv.conf", "/etc/resolv.conf"),
            Kind::Content
        );
        assert_eq!(
            of("/run/c/log", "/dev/termination-log"),
            Kind::TerminationLog
        );
        assert_eq!(of("/etc", "/etc/hosts"), Kind::Host);
        assert_eq!(of("/etc/shadow", "/etc/shadow"), Kind::Host);
    }
}
