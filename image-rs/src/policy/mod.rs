//! Which images may be pulled, and who must have signed them: `containers-policy.json(5)`.
//!
//! ```text
//! text ─► PolicyFile (every word known) ─► load: keys by path, kbs:/// or inline ─► Policy ─► Demand of one image
//! ```
//!
//! The most specific scope of `transports.docker` counts for the name that the owner wrote, else `default`. Every
//! requirement of the scope must hold. What can only be refused is refused before a registry is asked; what asks for
//! signatures is judged by [`crate::signature`], once the manifest is known and before a layer is fetched.

mod build;
mod error;
mod identity;
mod scope;
mod value;
mod wire;

pub use error::PolicyError;
pub(crate) use identity::Identity;
pub(crate) use scope::of as scopes;
pub use value::{Files, Location, VALUE_BYTES_MAX, ValueError, ValueSource};

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::reference::Reference;
use crate::signature::Requirement;
use build::Draft;
use value::{VALUES_MAX, Values};

/// Cap on the JSON of a policy, in bytes.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;
/// Cap on the requirements of one scope.
const REQUIREMENTS_MAX: usize = 32;

/// A policy as it is written: checked, and its keys still where they are kept.
#[derive(Debug)]
pub struct PolicyFile {
    default: Vec<Draft>,
    docker: BTreeMap<String, Vec<Draft>>,
    layouts: bool,
}

/// A policy with all its keys.
#[derive(Debug, Clone)]
pub struct Policy {
    default: Arc<[Requirement]>,
    docker: Arc<BTreeMap<String, Vec<Requirement>>>,
    /// Whether it speaks of images in layouts, which is more than is judged here.
    layouts: bool,
}

/// What a policy requires of one image, which it has not refused by its name.
#[derive(Debug, Clone, Copy)]
#[must_use = "an image is allowed only when its demand is met"]
pub struct Demand<'a> {
    pub(crate) scope: &'a str,
    pub(crate) requirements: &'a [Requirement],
}

impl Demand<'_> {
    /// Whether signatures must be looked at; if not, the image is allowed as it is.
    #[must_use]
    pub fn needs_signatures(&self) -> bool {
        self.requirements
            .iter()
            .any(|requirement| !matches!(requirement, Requirement::Accept))
    }
}

impl PolicyFile {
    /// Reads a `policy.json`.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        if json.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooMany {
                what: "bytes",
                found: json.len(),
                cap: POLICY_BYTES_MAX,
            });
        }
        let file: wire::WireFile = serde_json::from_slice(json).map_err(PolicyError::Json)?;
        let default = drafts("default", file.default)?;
        let mut docker = BTreeMap::new();
        let mut layouts = false;
        for (transport, scopes) in file.transports.0 {
            for (scope, list) in scopes.0 {
                scope::check(&transport, &scope)
                    .map_err(|reason| PolicyError::invalid(&scope, reason))?;
                let list = drafts(&scope, list)?;
                match transport.as_str() {
                    "docker" => drop(docker.insert(scope, list)),
                    "oci" | "oci-archive" => layouts = true,
                    _ => {}
                }
            }
        }
        Ok(Self {
            default,
            docker,
            layouts,
        })
    }

    /// Fetches every key and certificate that the policy names.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub async fn load(self, source: &dyn ValueSource) -> Result<Policy, PolicyError> {
        let lists = self.docker.values().chain([&self.default]);
        let wanted: std::collections::BTreeSet<_> = lists
            .flatten()
            .flat_map(Draft::locations)
            .cloned()
            .collect();
        if wanted.len() > VALUES_MAX {
            return Err(PolicyError::TooMany {
                what: "keys and certificates by path",
                found: wanted.len(),
                cap: VALUES_MAX,
            });
        }
        self.build(&Values::fetch(wanted, source).await?)
    }

    fn build(self, values: &Values) -> Result<Policy, PolicyError> {
        let build = |scope: &str, list: Vec<Draft>| -> Result<Vec<Requirement>, PolicyError> {
            list.into_iter()
                .map(|draft| draft.build(scope, values))
                .collect()
        };
        let default = build("default", self.default)?;
        let mut docker = BTreeMap::new();
        for (scope, list) in self.docker {
            let list = build(&scope, list)?;
            docker.insert(scope, list);
        }
        Ok(Policy {
            default: default.into(),
            docker: Arc::new(docker),
            layouts: self.layouts,
        })
    }
}

impl Policy {
    /// Accepts every image: for a guest that is no TEE, or an owner who pins by digest.
    #[must_use]
    pub fn accept_anything() -> Self {
        Self::everywhere(Requirement::Accept)
    }

    /// Refuses every image: what a TEE has whose owner gave no policy.
    #[must_use]
    pub fn reject() -> Self {
        Self::everywhere(Requirement::Reject)
    }

    fn everywhere(requirement: Requirement) -> Self {
        Self {
            default: vec![requirement].into(),
            docker: Arc::default(),
            layouts: false,
        }
    }

    /// Reads a `policy.json` that holds its keys itself; one that names a path needs [`PolicyFile::load`].
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn from_json(json: &[u8]) -> Result<Self, PolicyError> {
        PolicyFile::from_json(json)?.build(&Values::default())
    }

    /// What is required of `image`. Its name alone decides here, so this comes before any request.
    ///
    /// # Errors
    /// [`PolicyError::Refused`].
    pub fn demand(&self, image: &Reference) -> Result<Demand<'_>, PolicyError> {
        let (scope, requirements) = self.requirements(image);
        if requirements.iter().any(Requirement::is_refusal) {
            return Err(PolicyError::Refused {
                image: image.to_string(),
                scope: scope.to_owned(),
            });
        }
        Ok(Demand {
            scope,
            requirements,
        })
    }

    /// Decides on an image in a layout, of which nothing but the default speaks: its name is a path.
    ///
    /// # Errors
    /// [`PolicyError::Refused`] and [`PolicyError::Layout`].
    pub fn check_layout(&self, layout: &str) -> Result<(), PolicyError> {
        let image = layout.to_owned();
        if self.default.iter().any(Requirement::is_refusal) {
            let scope = "default".to_owned();
            return Err(PolicyError::Refused { image, scope });
        }
        let accepts = |it: &Requirement| matches!(it, Requirement::Accept);
        if self.layouts || !self.default.iter().all(accepts) {
            return Err(PolicyError::Layout { image });
        }
        Ok(())
    }

    fn requirements(&self, image: &Reference) -> (&str, &[Requirement]) {
        for scope in scope::of(image) {
            if let Some((scope, list)) = self.docker.get_key_value(&scope) {
                return (scope, list);
            }
        }
        ("default", &self.default)
    }
}

fn drafts(scope: &str, list: Vec<wire::WireRequirement>) -> Result<Vec<Draft>, PolicyError> {
    if list.is_empty() {
        let reason = "it has no requirement: write insecureAcceptAnything, reject or who signs";
        return Err(PolicyError::invalid(scope, reason));
    }
    if list.len() > REQUIREMENTS_MAX {
        return Err(PolicyError::TooMany {
            what: "requirements in a scope",
            found: list.len(),
            cap: REQUIREMENTS_MAX,
        });
    }
    list.into_iter()
        .map(|wire| Draft::new(wire).map_err(|reason| PolicyError::invalid(scope, reason)))
        .collect()
}

#[cfg(test)]
mod tests;
