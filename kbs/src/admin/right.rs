//! What an administrator may do: a closed list, and a mark for each entry by which a handler names the
//! one that it needs. A handler without a mark does not compile.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// One entry of the list.
pub(crate) trait Right: Send + Sync + 'static {
    /// The permission that the mark stands for.
    const NEEDS: Permission;
}

macro_rules! rights {
    ($($(#[$doc:meta])* $mark:ident = $name:literal,)*) => {
        /// What a role may be allowed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Permission {
            $($(#[$doc])* #[serde(rename = $name)] $mark,)*
        }

        impl Permission {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$mark),*];

            /// As it is written in a configuration.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$mark => $name),* }
            }
        }

        $($(#[$doc])* #[derive(Debug)] pub(crate) struct $mark;
        impl Right for $mark {
            const NEEDS: Permission = Permission::$mark;
        })*
    };
}

rights! {
    /// List resources and their versions, without their contents.
    ReadMetadata = "resource:read-metadata",
    /// Set resources.
    WriteResource = "resource:write",
    /// Delete resources.
    DeleteResource = "resource:delete",
    /// Read policies.
    ReadPolicy = "policy:read",
    /// Set and delete policies.
    WritePolicy = "policy:write",
    /// Read reference values.
    ReadReference = "reference:read",
    /// Set and delete reference values.
    WriteReference = "reference:write",
    /// Search and export the record.
    ReadRecord = "record:read",
    /// Read why a guest was refused, by its ticket.
    ReadTicket = "ticket:read",
    /// See which master keys are in use.
    ReadKey = "key:read",
}

impl Permission {
    /// Whether it is about resources, so that a role may have it below a prefix only.
    #[must_use]
    pub fn is_of_resources(self) -> bool {
        self.name().starts_with("resource:")
    }
}

/// What one role allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    allow: BTreeSet<Permission>,
    prefix: Option<String>,
}

impl Grant {
    pub(super) fn everything() -> Self {
        Self {
            allow: Permission::ALL.iter().copied().collect(),
            prefix: None,
        }
    }

    pub(super) fn new(allow: BTreeSet<Permission>, prefix: Option<&str>) -> Self {
        Self {
            allow,
            prefix: prefix.map(|prefix| prefix.trim_end_matches('/').to_owned()),
        }
    }

    /// Without a path, whether there is any for which it is allowed.
    pub(super) fn allows(&self, permission: Permission, path: Option<&str>) -> bool {
        let below = |path: &str| match &self.prefix {
            None => true,
            Some(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        self.allow.contains(&permission) && path.is_none_or(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_of_whole_segments() {
        let allow = BTreeSet::from([Permission::WriteResource]);
        for prefix in ["team/key", "team/key/"] {
            let grant = Grant::new(allow.clone(), Some(prefix));
            for (path, allowed) in [
                (None, true),
                (Some("team/key/a"), true),
                (Some("team/keys/a"), false),
                (Some("team/other/a"), false),
                (Some("other/team/key"), false),
            ] {
                assert_eq!(grant.allows(Permission::WriteResource, path), allowed);
                assert!(!grant.allows(Permission::DeleteResource, path));
            }
        }
    }
}
