//! Which pod a container belongs to, and whether it is the pod's sandbox, by the annotations that
//! containerd's CRI plugin and CRI-O write.

use std::collections::BTreeMap;

use thiserror::Error;

/// The annotations for the kind of a container, in the order in which they count.
const KIND: &[&str] = &[
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.docker.type",
];
/// The annotations for the id of a container's pod, in the same order.
const SANDBOX_ID: &[&str] = &[
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.sandbox.id",
];
/// The annotations for the image of a container.
const IMAGE: &[&str] = &[
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
];

/// What a container is in its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// On its own, as `ctr run` and nerdctl make it: a pod of one.
    Single,
    /// The container that stands for its pod.
    Sandbox,
    /// One of a pod's containers.
    Member {
        /// The pod.
        sandbox: String,
    },
}

impl Role {
    /// Whether the VM comes and goes with this container.
    #[must_use]
    pub fn owns_vm(&self) -> bool {
        matches!(self, Self::Single | Self::Sandbox)
    }

    /// The id of the pod that container `id` is in.
    #[must_use]
    pub fn sandbox_of<'a>(&'a self, id: &'a str) -> &'a str {
        match self {
            Self::Single | Self::Sandbox => id,
            Self::Member { sandbox } => sandbox,
        }
    }
}

/// Why the annotations make no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GroupError {
    /// The kind is none that is known.
    #[error("annotation {key} is {value:?}: use sandbox or container")]
    Kind {
        /// The annotation.
        key: String,
        /// Its value.
        value: String,
    },
    /// A container of a pod does not say of which.
    #[error("a container of a pod has no annotation {}", SANDBOX_ID[1])]
    NoSandbox,
    /// The id of the pod is no id.
    #[error("annotation {key} is {value:?}, which is not an id")]
    SandboxId {
        /// The annotation.
        key: String,
        /// Its value.
        value: String,
    },
}

/// The role that the annotations give.
///
/// # Errors
/// [`GroupError`] names the annotation.
pub fn role(annotations: &BTreeMap<String, String>) -> Result<Role, GroupError> {
    let Some((key, kind)) = first(annotations, KIND) else {
        return Ok(Role::Single);
    };
    match kind {
        "sandbox" | "podsandbox" | "pod_sandbox" => Ok(Role::Sandbox),
        "container" | "pod_container" => {
            let (key, id) = first(annotations, SANDBOX_ID).ok_or(GroupError::NoSandbox)?;
            if !crate::state_dir::is_plain_name(id) {
                return Err(GroupError::SandboxId {
                    key: key.to_owned(),
                    value: id.to_owned(),
                });
            }
            Ok(Role::Member {
                sandbox: id.to_owned(),
            })
        }
        _ => Err(GroupError::Kind {
            key: key.to_owned(),
            value: kind.to_owned(),
        }),
    }
}

/// The name of the image that the annotations give.
#[must_use]
pub fn image(annotations: &BTreeMap<String, String>) -> Option<&str> {
    first(annotations, IMAGE).map(|(_, image)| image)
}

fn first<'a>(
    annotations: &'a BTreeMap<String, String>,
    keys: &[&'static str],
) -> Option<(&'static str, &'a str)> {
    keys.iter().find_map(|key| {
        let value = annotations.get(*key).filter(|value| !value.is_empty())?;
        Some((*key, value.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role_of(pairs: &[(&str, &str)]) -> Result<Role, GroupError> {
        role(
            &pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn without_annotations_a_container_is_a_pod_of_one() {
        assert_eq!(role_of(&[]), Ok(Role::Single));
        assert_eq!(Role::Single.sandbox_of("a"), "a");
    }

    #[test]
    fn containerd_and_crio_are_both_read() {
        let member = Ok(Role::Member {
            sandbox: "pod".into(),
        });
        let cri = [
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-id", "pod"),
        ];
        let crio = [
            ("io.kubernetes.cri-o.ContainerType", "container"),
            ("io.kubernetes.cri-o.SandboxID", "pod"),
        ];
        assert_eq!(role_of(&cri), member);
        assert_eq!(role_of(&crio), member);
        assert_eq!(
            role_of(&[("io.kubernetes.cri.container-type", "sandbox")]),
            Ok(Role::Sandbox)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(
            role_of(&[("io.kubernetes.cri.container-type", "x")]),
            Err(GroupError::Kind { .. })
        ));
        assert_eq!(
            role_of(&[("io.kubernetes.cri.container-type", "container")]),
            Err(GroupError::NoSandbox)
        );
        let evil = [
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-id", "../x"),
        ];
        assert!(matches!(role_of(&evil), Err(GroupError::SandboxId { .. })));
    }
}
