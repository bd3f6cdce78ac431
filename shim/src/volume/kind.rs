//! What a mount of the host is to Kubernetes, by its path.
//!
//! ```text
//!   <root>/pods/<uid>/volumes/kubernetes.io~<kind>/<name>        a volume
//!   <root>/pods/<uid>/volume-subpaths/<name>/<container>/<n>      a part of one (subPath)
//!   <root>/pods/<uid>/etc-hosts                                   /etc/hosts
//!   <root>/pods/<uid>/containers/<container>/<digits>             the termination message
//! ```
//!
//! The root is the configured one: whoever may mount a directory of the host could lay out another in it, with links
//! that lead anywhere. What containerd and CRI-O add of their own is known by where it goes.

use std::path::{Path, PathBuf};

/// What a mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Small, and filled by the kubelet or the container engine.
    Content,
    /// Where a container writes its last words, if it is a file that takes them.
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

/// The kind of the mount of `source` at `destination`, where the kubelet has its files below `root`.
pub(super) fn of(root: &Path, source: &str, destination: &str) -> Kind {
    if let Some(kind) = of_pod(root, source) {
        return kind;
    }
    match OF_ENGINE.contains(&destination) && !Path::new(source).is_dir() {
        true => Kind::Content,
        false => Kind::Host,
    }
}

fn of_pod(root: &Path, source: &str) -> Option<Kind> {
    let below = Path::new(source).strip_prefix(root).ok()?.to_str()?;
    let parts: Vec<&str> = below.split('/').collect();
    let ["pods", uid, inner @ ..] = parts.as_slice() else {
        return None;
    };
    if parts.contains(&"..") {
        return None;
    }
    let pod = root.join("pods").join(uid);
    match inner {
        ["etc-hosts"] => Some(Kind::Content),
        ["containers", _, _] => Some(Kind::TerminationLog),
        ["volumes", EMPTY_DIR, name, rest @ ..] => {
            let part = (!rest.is_empty()).then(|| Part::Path(rest.join("/")));
            Some(Kind::EmptyDir(EmptyDir {
                name: (*name).to_owned(),
                source: pod.join("volumes").join(EMPTY_DIR).join(name),
                part,
            }))
        }
        ["volumes", kind, _, ..] if CONTENT.contains(kind) => Some(Kind::Content),
        ["volume-subpaths", name, _, ..] => {
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
    fn the_kubelets_paths_tell_what_they_are_below_its_root() {
        for root in [
            "/var/lib/kubelet",
            "/var/lib/k0s/kubelet",
            "/data/pods/kubelet",
        ] {
            let of = |path: &str| of(Path::new(root), &format!("{root}/pods/0a-1/{path}"), "/x");
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
            of(root.path(), path.to_str().unwrap(), "/x")
        };
        assert_eq!(of("key"), Kind::Content);
        assert!(matches!(of("tmp"), Kind::EmptyDir(found) if found.source.ends_with("tmp")));
        assert_eq!(of("claim"), Kind::Host);
    }

    #[test]
    fn an_engines_files_are_known_by_where_they_go() {
        let of = |source: &str, destination: &str| {
            of(Path::new("/var/lib/kubelet"), source, destination)
        };
        assert_eq!(
            of("/run/c/sandboxes/1/resolv.conf", "/etc/resolv.conf"),
            Kind::Content
        );
        assert_eq!(of("/run/c/log", "/dev/termination-log"), Kind::Host);
        assert_eq!(of("/etc", "/etc/hosts"), Kind::Host);
        assert_eq!(of("/etc/shadow", "/etc/shadow"), Kind::Host);
    }

    #[test]
    fn what_only_looks_like_the_kubelets_is_a_directory_of_the_host() {
        for source in [
            "/srv/t/pods/u/volumes/kubernetes.io~secret/key",
            "/var/lib/kubelet/x/pods/u/volumes/kubernetes.io~secret/key",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/../../etc-hosts",
            "/var/lib/kubelet2/pods/u/containers/main/5c",
        ] {
            let found = of(Path::new("/var/lib/kubelet"), source, "/x");
            assert_eq!(found, Kind::Host, "{source}");
        }
    }
}
