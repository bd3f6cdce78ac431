//! Which images may be pulled at all: `containers-policy.json(5)`, looked up by the name that was asked for.
//!
//! Only `insecureAcceptAnything` and `reject` are decided here so far. A requirement that asks for a signature is a
//! named refusal, never an acceptance. The most specific scope of `transports.docker` counts, else `default`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::reference::Reference;

/// Cap on the JSON of a policy, in bytes.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;

/// Why an image is not allowed, or a policy is not one.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A cap.
    #[error("the image policy has {0} bytes, more than {POLICY_BYTES_MAX}")]
    TooLong(usize),
    /// Not JSON of the format.
    #[error("the image policy is not a containers-policy.json")]
    Json(#[source] serde_json::Error),
    /// A word that the format does not have.
    #[error("the image policy has a requirement of unknown type {kind:?} in scope {scope:?}")]
    UnknownRequirement {
        /// The word.
        kind: String,
        /// Where it stands.
        scope: String,
    },
    /// An empty list, which containers/image refuses as well.
    #[error(
        "the image policy has no requirement in scope {0:?}; write insecureAcceptAnything or reject"
    )]
    Empty(String),
    /// The policy refuses the image.
    #[error("image {image} is refused by the image policy, scope {scope:?}")]
    Refused {
        /// Which image.
        image: String,
        /// Whose requirement it was.
        scope: String,
    },
    /// A signature would have to be verified.
    #[error(
        "image {image} needs a requirement of type {kind:?} (image policy, scope {scope:?}), which is not supported: \
         use insecureAcceptAnything with an image pinned by digest, or reject"
    )]
    Unsupported {
        /// Which image.
        image: String,
        /// Whose requirement it is.
        scope: String,
        /// Its type.
        kind: &'static str,
    },
}

/// A policy, checked to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    default: Vec<Requirement>,
    docker: BTreeMap<String, Vec<Requirement>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Requirement {
    Accept,
    Reject,
    Signature(&'static str),
}

impl Policy {
    /// Accepts every image: for a guest that is no TEE, or an owner who pins by digest.
    #[must_use]
    pub fn accept_anything() -> Self {
        Self {
            default: vec![Requirement::Accept],
            docker: BTreeMap::new(),
        }
    }

    /// Refuses every image: what a TEE has whose owner gave no policy.
    #[must_use]
    pub fn reject() -> Self {
        Self {
            default: vec![Requirement::Reject],
            docker: BTreeMap::new(),
        }
    }

    /// Reads a `policy.json`.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        if json.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLong(json.len()));
        }
        let file: File = serde_json::from_slice(json).map_err(PolicyError::Json)?;
        let mut docker = BTreeMap::new();
        for (transport, scopes) in file.transports {
            for (scope, list) in scopes {
                let list = read(list, &scope)?;
                if transport == "docker" {
                    docker.insert(scope, list);
                }
            }
        }
        Ok(Self {
            default: read(file.default, "default")?,
            docker,
        })
    }

    /// Decides on an image by its name; every requirement of the scope must hold.
    ///
    /// # Errors
    /// [`PolicyError::Refused`] and [`PolicyError::Unsupported`].
    pub fn check(&self, image: &Reference) -> Result<(), PolicyError> {
        let (scope, requirements) = self.requirements(image);
        let (image, scope) = (image.to_string(), scope.to_owned());
        // A refusal is told before a requirement that we cannot decide.
        if requirements.contains(&Requirement::Reject) {
            return Err(PolicyError::Refused { image, scope });
        }
        match requirements
            .iter()
            .find_map(|requirement| match requirement {
                Requirement::Signature(kind) => Some(*kind),
                Requirement::Accept | Requirement::Reject => None,
            }) {
            Some(kind) => Err(PolicyError::Unsupported { image, scope, kind }),
            None => Ok(()),
        }
    }

    fn requirements(&self, image: &Reference) -> (&str, &[Requirement]) {
        for scope in scopes(image) {
            if let Some((scope, list)) = self.docker.get_key_value(&scope) {
                return (scope, list);
            }
        }
        ("default", &self.default)
    }
}

/// From the most specific scope to the least: image, repository, namespaces, host, `*.` of its domains, everything.
fn scopes(image: &Reference) -> Vec<String> {
    let mut scopes = Vec::new();
    // containers/image looks a reference with a digest up by the digest, and never by its tag.
    scopes.push(match image.digest() {
        Some(digest) => format!("{}@{digest}", image.name()),
        None => image.to_string(),
    });
    let name = image.name();
    let mut rest = name.as_str();
    scopes.push(rest.to_owned());
    while let Some((parent, _)) = rest.rsplit_once('/') {
        scopes.push(parent.to_owned());
        rest = parent;
    }
    let host = if image.registry().starts_with('[') {
        ""
    } else {
        image.registry()
    };
    let mut host = host.split_once(':').map_or(host, |(host, _)| host);
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Wire>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Wire>>>,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "type")]
    kind: String,
}

fn read(list: Vec<Wire>, scope: &str) -> Result<Vec<Requirement>, PolicyError> {
    if list.is_empty() {
        return Err(PolicyError::Empty(scope.to_owned()));
    }
    let requirement = |wire: Wire| match wire.kind.as_str() {
        "insecureAcceptAnything" => Ok(Requirement::Accept),
        "reject" => Ok(Requirement::Reject),
        "signedBy" => Ok(Requirement::Signature("signedBy")),
        "signedBaseLayer" => Ok(Requirement::Signature("signedBaseLayer")),
        "sigstoreSigned" => Ok(Requirement::Signature("sigstoreSigned")),
        _ => Err(PolicyError::UnknownRequirement {
            kind: wire.kind.clone(),
            scope: scope.to_owned(),
        }),
    };
    list.into_iter().map(requirement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"{
        "default": [{"type": "reject"}],
        "transports": {"docker": {
            "ghcr.io": [{"type": "insecureAcceptAnything"}],
            "ghcr.io/evil": [{"type": "reject"}],
            "ghcr.io/evil/but/this:v1": [{"type": "insecureAcceptAnything"}],
            "quay.io/signed": [{"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key"}],
            "*.example.com": [{"type": "insecureAcceptAnything"}]
        }, "oci": {"": [{"type": "reject"}]}}
    }"#;

    fn check(policy: &Policy, image: &str) -> Result<(), PolicyError> {
        policy.check(&image.parse().unwrap())
    }

    #[test]
    fn the_most_specific_scope_decides() {
        let policy = Policy::from_json(POLICY.as_bytes()).unwrap();
        assert!(check(&policy, "ghcr.io/a/b").is_ok());
        assert!(check(&policy, "r.example.com/a").is_ok());
        assert!(check(&policy, "ghcr.io/evil/but/this:v1").is_ok());
        for refused in [
            "busybox",
            "ghcr.io/evil/x",
            "ghcr.io/evil/but/this:v2",
            "ghcr.io.evil.com/a/b",
        ] {
            assert!(
                matches!(check(&policy, refused), Err(PolicyError::Refused { .. })),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_signature_requirement_is_a_named_refusal() {
        let policy = Policy::from_json(POLICY.as_bytes()).unwrap();
        let error = check(&policy, "quay.io/signed/a").unwrap_err().to_string();
        assert!(
            error.contains("sigstoreSigned") && error.contains("quay.io/signed"),
            "{error}"
        );
    }

    #[test]
    fn a_policy_which_says_nothing_is_none() {
        for bad in [
            r"{}",
            r#"{"default":[]}"#,
            r#"{"default":[{"type":"maybe"}]}"#,
            r#"{"default":[],"x":1}"#,
        ] {
            assert!(Policy::from_json(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check(&Policy::reject(), "busybox").is_err());
        assert!(check(&Policy::accept_anything(), "busybox").is_ok());
    }
}
