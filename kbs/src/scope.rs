//! To what a policy is attached, and the id that says so in the store, in the record and on the wire:
//! `resource-policy` and a path prefix behind it for releases, `<name>_<class>` for appraisals. No id
//! is of both kinds.

use std::{fmt, str::FromStr};

use policies::scopes::{Prefix, ScopeError, Selector};

/// The id of the release policy of all paths; Trustee's.
pub(crate) const RELEASE_POLICY: &str = "resource-policy";

/// A scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Releases of what is below a path prefix.
    Release(Prefix),
    /// Appraisals by guests' selection.
    Appraisal(Selector),
}

impl Scope {
    /// The scope of an id.
    pub(crate) fn from_id(id: &str) -> Result<Self, ScopeError> {
        match id.strip_prefix(RELEASE_POLICY) {
            Some("") => Prefix::from_str("").map(Self::Release),
            Some(rest) if rest.starts_with('/') => match &rest[1..] {
                "" => Err(ScopeError::Segment {
                    segment: String::new(),
                }),
                prefix => prefix.parse().map(Self::Release),
            },
            Some(_) | None => id.parse().map(Self::Appraisal),
        }
    }

    /// The release policy of all paths.
    pub(crate) fn root() -> Self {
        Self::Release(Prefix::default())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(prefix) if *prefix == Prefix::default() => f.write_str(RELEASE_POLICY),
            Self::Release(prefix) => write!(f, "{RELEASE_POLICY}/{prefix}"),
            Self::Appraisal(selector) => selector.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_of_one_scope_and_a_scope_of_one_id() {
        for id in [
            "resource-policy",
            "resource-policy/a",
            "resource-policy/a/b/c.d",
            "resource-policy/resource-policy/x",
            "default_cpu",
            "resource-policy_cpu",
        ] {
            assert_eq!(Scope::from_id(id).unwrap().to_string(), id);
        }
        assert_eq!(Scope::from_id(RELEASE_POLICY).unwrap(), Scope::root());
        for id in [
            "",
            "resource-policy/",
            "resource-policy//",
            "resource-policy/a/",
            "resource-policy/a/b/c/d",
            "resource-policy/../x",
            "default",
            "reference-value",
        ] {
            assert!(Scope::from_id(id).is_err(), "{id}");
        }
    }
}
