//! What Kubernetes calls a pod, by the annotations that containerd's CRI plugin and CRI-O write: kept in the
//! sandbox's directory, for labels of its metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::state_dir::StateDir;

const FILE: &str = "pod.json";
/// The largest record, in bytes.
const MAX: u64 = 4096;
/// The longest of the names, in bytes: Kubernetes' for objects.
const MAX_NAME: usize = 253;
const NAME: &[&str] = &["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"];
const NAMESPACE: &[&str] = &[
    "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.pod.namespace",
];
const UID: &[&str] = &["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];

/// A pod's names; each is plain, or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodName {
    /// The name.
    pub name: String,
    /// Kubernetes' namespace.
    pub namespace: String,
    /// The unique id.
    pub uid: String,
}

impl PodName {
    /// Of a sandbox's annotations, where they name a pod.
    #[must_use]
    pub fn of(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let named = |keys: &[&str]| {
            let value = keys.iter().find_map(|key| annotations.get(*key));
            value
                .filter(|value| is_plain(value))
                .cloned()
                .unwrap_or_default()
        };
        let pod = Self {
            name: named(NAME),
            namespace: named(NAMESPACE),
            uid: named(UID),
        };
        (pod != Self::default()).then_some(pod)
    }

    /// Keeps it with a sandbox.
    pub fn write(&self, directory: &StateDir) {
        if let Err(error) = directory.write_json(FILE, self) {
            // Its metrics lack a name, and nothing else does.
            tracing::warn!(%error, "record of the pod's name");
        }
    }

    /// What was kept with a sandbox.
    #[must_use]
    pub fn read(directory: &StateDir) -> Option<Self> {
        if !directory.path().join(FILE).exists() {
            return None;
        }
        let pod: Self = directory.read_json(FILE, MAX)?;
        let plain = [&pod.name, &pod.namespace, &pod.uid]
            .iter()
            .all(|name| name.is_empty() || is_plain(name));
        plain.then_some(pod)
    }
}

/// Whether it is a name of Kubernetes: nothing that has to be escaped anywhere.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Option<PodName> {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        PodName::of(&pairs.collect())
    }

    #[test]
    fn both_runtimes_names_are_read_and_odd_ones_are_left_out() {
        let cri = of(&[
            ("io.kubernetes.cri.sandbox-name", "web-1"),
            ("io.kubernetes.cri.sandbox-namespace", "shop"),
            ("io.kubernetes.cri.sandbox-uid", "0a-1"),
        ]);
        let crio = of(&[
            ("io.kubernetes.pod.name", "web-1"),
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.pod.uid", "0a-1"),
        ]);
        assert_eq!(cri, crio);
        assert_eq!(cri.unwrap().name, "web-1");
        assert_eq!(of(&[("io.kubernetes.pod.name", "a\"b")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn it_is_kept_and_what_somebody_else_wrote_is_not_believed() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(root.path());
        assert_eq!(PodName::read(&directory), None);
        let pod = of(&[("io.kubernetes.pod.name", "a")]).unwrap();
        pod.write(&directory);
        assert_eq!(PodName::read(&directory), Some(pod));
        for odd in ["{}", "{\"name\":\"a\\n\",\"namespace\":\"\",\"uid\":\"\"}"] {
            directory.write(FILE, odd.as_bytes()).unwrap();
            assert_eq!(PodName::read(&directory), None);
        }
    }
}
