//! `[admin]`: whose tokens are taken, and what their roles may do.

use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    address::{Plain, fault},
};
use crate::admin::right::Permission;

/// Issuers and roles in one file.
const ENTRIES: usize = 100;

/// `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// Public keys in PEM, Ed25519, P-256 or RSA, whose tokens are taken.
    #[serde(default)]
    pub public_keys: Vec<PathBuf>,
    /// The roles that may do everything.
    #[serde(default = "default_roles")]
    pub roles: BTreeSet<String>,
    /// What `aud` may be in a token under one of the public keys, where it is there.
    #[serde(default = "default_audiences")]
    pub audiences: BTreeSet<String>,
    /// Roles that may do less.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub role: Vec<Role>,
    /// Servers of OpenID Connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuer: Vec<Issuer>,
}

/// `[[admin.role]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// As it is in a token.
    pub name: String,
    /// What it may do.
    pub allow: BTreeSet<Permission>,
    /// The leading segments of the resources on which it may do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_prefix: Option<String>,
}

/// `[[admin.issuer]]`. Its keys are at `jwks_uri` or in `jwks_file`, and where neither is given they
/// are found by discovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// `iss` of its tokens.
    pub issuer: String,
    /// `aud` of the tokens that are for this broker.
    pub audience: String,
    /// The address of its set of keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_uri: Option<String>,
    /// A file with its set of keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_file: Option<PathBuf>,
    /// The claim with a role, or a list of them: a name, or with a slash in front a JSON pointer.
    #[serde(default = "default_role_claim")]
    pub role_claim: String,
    /// The root in PEM that its certificate must chain to; public roots where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl Admin {
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let issuers = self.issuer.iter_mut();
        let of_issuers = issuers.flat_map(|one| one.jwks_file.iter_mut().chain(&mut one.ca));
        self.public_keys.iter_mut().chain(of_issuers)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |text: String| Err(ConfigError::Admin(text));
        if self.public_keys.is_empty() && self.issuer.is_empty() {
            return wrong("give public_keys or an issuer: nothing is anonymous".to_owned());
        }
        if self.roles.is_empty() && self.role.is_empty() {
            return wrong("give roles or a role: nothing is anonymous".to_owned());
        }
        if self.issuer.len() > ENTRIES || self.role.len() > ENTRIES {
            return wrong(format!("more than {ENTRIES} issuers or roles"));
        }
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for role in &self.role {
            let name = &role.name;
            if self.roles.contains(name) || !seen.insert(name) {
                return wrong(format!("the role `{name}` is given twice"));
            }
            role.check()?;
        }
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for issuer in &self.issuer {
            if !seen.insert(&issuer.issuer) {
                return wrong(format!("the issuer `{}` is given twice", issuer.issuer));
            }
            issuer.check()?;
        }
        Ok(())
    }
}

impl Role {
    fn check(&self) -> Result<(), ConfigError> {
        let name = &self.name;
        let Some(prefix) = &self.resource_prefix else {
            return Ok(());
        };
        let segments: Vec<&str> = prefix.trim_end_matches('/').split('/').collect();
        if segments.len() > 3 || segments.iter().any(|segment| segment.is_empty()) {
            return Err(ConfigError::Admin(format!(
                "the role `{name}`: resource_prefix is one to three segments, such as `team/key`"
            )));
        }
        let other = self.allow.iter().find(|one| !one.is_of_resources());
        other.map_or(Ok(()), |other| {
            Err(ConfigError::Admin(format!(
                "the role `{name}`: resource_prefix does not narrow `{}`: give it in another role",
                other.name()
            )))
        })
    }
}

impl Issuer {
    fn check(&self) -> Result<(), ConfigError> {
        let name = &self.issuer;
        if name.is_empty() || self.audience.is_empty() || self.role_claim.is_empty() {
            return Err(ConfigError::Admin(format!(
                "the issuer `{name}`: issuer, audience and role_claim must not be empty"
            )));
        }
        if self.jwks_uri.is_some() && self.jwks_file.is_some() {
            return Err(ConfigError::Admin(format!(
                "the issuer `{name}`: give jwks_uri or jwks_file, or neither for discovery"
            )));
        }
        // With keys from elsewhere, it is a name that nobody is asked by.
        let asked = match (&self.jwks_uri, &self.jwks_file) {
            (Some(uri), _) => fault(uri, Plain::Near, true).map(|fault| ("jwks_uri", fault)),
            (None, Some(_)) => None,
            (None, None) => fault(name, Plain::Near, false).map(|fault| ("issuer", fault)),
        };
        asked.map_or(Ok(()), |(key, fault)| {
            Err(ConfigError::Admin(format!(
                "the issuer `{name}`: its keys cannot be fetched from `{key}`: {fault}"
            )))
        })
    }
}

fn default_roles() -> BTreeSet<String> {
    BTreeSet::from(["admin".to_owned()])
}

fn default_audiences() -> BTreeSet<String> {
    BTreeSet::from(["kbs".to_owned()])
}

fn default_role_claim() -> String {
    "role".to_owned()
}
