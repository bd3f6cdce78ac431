//! What can be asked for, as an owner's policy sees it.

use std::collections::BTreeMap;

use kbs_protocol::ResourceUri;
use serde_json::{Value, json};

/// A request for something that an owner decides about.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// A resource of the broker.
    Resource {
        /// Which one.
        uri: &'a ResourceUri,
        /// What for.
        reading: Reading,
    },
    /// The broker's token.
    Token,
    /// Evidence over the caller's data.
    Evidence {
        /// The data, which are in the report.
        runtime_data: &'a [u8],
    },
    /// An event for the log that is measured.
    Measure {
        /// Whose event.
        domain: &'a str,
        /// What happened.
        operation: &'a str,
        /// To what.
        content: &'a str,
        /// The register, where the caller names one.
        register: Option<u64>,
    },
    /// A volume that the guest encrypts. A key that it names is asked for as a resource beside it.
    Mount {
        /// CoCo's kind of volume.
        volume_type: &'a str,
        /// Which disk, and what is done to it, by their names in CoCo.
        options: &'a BTreeMap<String, String>,
        /// Of the mount.
        flags: &'a [String],
        /// Where.
        mount_point: &'a str,
    },
}

/// What a resource is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The caller gets it.
    Get,
    /// It is, or opens, a sealed secret of the caller's.
    Unseal,
    /// It unwraps a layer's key for the caller.
    Unwrap,
    /// It verifies a sealed secret of the caller's.
    Verify,
    /// It is the key of a disk that the caller has mounted.
    Mount,
}

impl Ask<'_> {
    /// The name of the policy's rule.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Resource { .. } => "GetResourceRequest",
            Self::Token => "GetTokenRequest",
            Self::Evidence { .. } => "GetEvidenceRequest",
            Self::Measure { .. } => "ExtendRuntimeMeasurementRequest",
            Self::Mount { .. } => "SecureMountRequest",
        }
    }

    /// Whether CoCo allows it to every container unless it is told otherwise: resources alone.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        matches!(self, Self::Resource { .. })
    }

    /// What the rule gets beside the caller.
    #[must_use]
    pub fn input(&self) -> Value {
        match self {
            Self::Resource { uri, reading } => json!({
                "resource": uri.path().to_string(),
                "use": match reading {
                    Reading::Get => "get",
                    Reading::Unseal => "unseal",
                    Reading::Unwrap => "unwrap-key",
                    Reading::Verify => "verify",
                    Reading::Mount => "mount",
                },
            }),
            Self::Token => json!({"token_type": "kbs"}),
            Self::Evidence { runtime_data } => json!({"runtime_data": runtime_data}),
            Self::Measure {
                domain,
                operation,
                content,
                register,
            } => json!({
                "domain": domain, "operation": operation, "content": content, "register": register,
            }),
            Self::Mount {
                volume_type,
                options,
                flags,
                mount_point,
            } => json!({
                "volume_type": volume_type, "options": options, "flags": flags,
                "mount_point": mount_point,
            }),
        }
    }
}
