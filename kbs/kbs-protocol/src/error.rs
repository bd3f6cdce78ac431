//! What a broker answers when it refuses: a stable kind, a text, and a ticket for the owner.
//!
//! The body is Trustee's `ErrorInformation`. Kinds that Trustee also has keep its names. The status
//! differs on purpose: a Trustee client starts over on 401 and stops on anything else, so only what
//! a new attestation can cure is 401.

use serde::{Deserialize, Serialize};

/// What the `type` of every error starts with.
pub const ERROR_TYPE_PREFIX: &str = "https://github.com/confidential-containers/kbs/errors/";

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInformation {
    /// [`ERROR_TYPE_PREFIX`] followed by the name of an [`ErrorKind`].
    #[serde(rename = "type")]
    pub error_type: String,
    /// One sentence for a person, without secrets.
    pub detail: String,
    /// What the client quotes: a decision's is given to `kbs explain`, any other is in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

impl ErrorInformation {
    /// The body for an error of this kind.
    #[must_use]
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            error_type: format!("{ERROR_TYPE_PREFIX}{}", kind.name()),
            detail: detail.into(),
            ticket: None,
        }
    }

    /// The same with a ticket.
    #[must_use]
    pub fn with_ticket(mut self, ticket: impl Into<String>) -> Self {
        self.ticket = Some(ticket.into());
        self
    }

    /// The kind, if it is one that we know; another broker may have more.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        let name = self.error_type.strip_prefix(ERROR_TYPE_PREFIX)?;
        ErrorKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The closed list of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The body or a header is not what the protocol says.
    InvalidRequest,
    /// The client speaks a version that we do not.
    ProtocolVersion,
    /// The TEE is unknown or not accepted by this broker's configuration.
    TeeNotAccepted,
    /// The path names no endpoint, or a resource's name breaks the rule.
    InvalidRequestPath,
    /// The first segment names no plugin that this broker has.
    PluginNotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// There is no valid challenge: no cookie, a foreign one, or one past its time.
    SessionNotFound,
    /// The evidence does not prove what it must.
    AttestationError,
    /// No token came with the request.
    TokenNotFound,
    /// The token is not ours, is altered, or is past its time.
    TokenVerifierError,
    /// The administrator's token is missing or does not verify.
    AdminAuthAccess,
    /// The administrator's role does not allow this.
    AdminRoleDenied,
    /// The keys of the issuer of the administrator's token could not be fetched.
    IssuerUnavailable,
    /// The release policy says no.
    PolicyDeny,
    /// There is no such resource.
    ResourceNotFound,
    /// There is no such ticket, or it was dropped by retention.
    TicketNotFound,
    /// The body is larger than its cap.
    PayloadTooLarge,
    /// The client sent too slowly.
    RequestTimeout,
    /// The client has to slow down.
    TooManyRequests,
    /// The policy does not compile.
    ParsePolicyError,
    /// The policy failed while it was evaluated.
    PolicyEngineError,
    /// The token's key cannot receive a resource.
    JweError,
    /// The store failed.
    StorageError,
    /// The endpoint is of the protocol, and this broker does not have it.
    NotImplemented,
    /// What the hardware's vendor publishes cannot be had now.
    CollateralUnavailable,
    /// The broker did not answer in its own time.
    Timeout,
    /// The broker starts, stops, or lacks something.
    NotReady,
    /// A defect of the broker.
    Internal,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 28] = [
        Self::InvalidRequest,
        Self::ProtocolVersion,
        Self::TeeNotAccepted,
        Self::InvalidRequestPath,
        Self::PluginNotFound,
        Self::MethodNotAllowed,
        Self::SessionNotFound,
        Self::AttestationError,
        Self::TokenNotFound,
        Self::TokenVerifierError,
        Self::AdminAuthAccess,
        Self::AdminRoleDenied,
        Self::IssuerUnavailable,
        Self::PolicyDeny,
        Self::ResourceNotFound,
        Self::TicketNotFound,
        Self::PayloadTooLarge,
        Self::RequestTimeout,
        Self::TooManyRequests,
        Self::ParsePolicyError,
        Self::PolicyEngineError,
        Self::JweError,
        Self::StorageError,
        Self::NotImplemented,
        Self::CollateralUnavailable,
        Self::Timeout,
        Self::NotReady,
        Self::Internal,
    ];

    /// The name that follows [`ERROR_TYPE_PREFIX`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "InvalidRequest",
            Self::ProtocolVersion => "ProtocolVersion",
            Self::TeeNotAccepted => "TeeNotAccepted",
            Self::InvalidRequestPath => "InvalidRequestPath",
            Self::PluginNotFound => "PluginNotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::SessionNotFound => "SessionNotFound",
            Self::AttestationError => "AttestationError",
            Self::TokenNotFound => "TokenNotFound",
            Self::TokenVerifierError => "TokenVerifierError",
            Self::AdminAuthAccess => "AdminAuthAccess",
            Self::AdminRoleDenied => "AdminRoleDenied",
            Self::IssuerUnavailable => "IssuerUnavailable",
            Self::PolicyDeny => "PolicyDeny",
            Self::ResourceNotFound => "ResourceNotFound",
            Self::TicketNotFound => "TicketNotFound",
            Self::PayloadTooLarge => "PayloadTooLarge",
            Self::RequestTimeout => "RequestTimeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::ParsePolicyError => "ParsePolicyError",
            Self::PolicyEngineError => "PolicyEngineError",
            Self::JweError => "JweError",
            Self::StorageError => "StorageError",
            Self::NotImplemented => "NotImplemented",
            Self::CollateralUnavailable => "CollateralUnavailable",
            Self::Timeout => "Timeout",
            Self::NotReady => "NotReady",
            Self::Internal => "Internal",
        }
    }

    /// The HTTP status. 401 is only what another handshake can cure.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest
            | Self::ProtocolVersion
            | Self::TeeNotAccepted
            | Self::JweError
            | Self::ParsePolicyError => 400,
            Self::SessionNotFound
            | Self::AttestationError
            | Self::TokenNotFound
            | Self::TokenVerifierError
            | Self::AdminAuthAccess => 401,
            Self::AdminRoleDenied | Self::PolicyDeny => 403,
            Self::InvalidRequestPath
            | Self::PluginNotFound
            | Self::ResourceNotFound
            | Self::TicketNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::PayloadTooLarge => 413,
            Self::TooManyRequests => 429,
            Self::PolicyEngineError | Self::StorageError | Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::CollateralUnavailable
            | Self::IssuerUnavailable
            | Self::NotReady
            | Self::Timeout => 503,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let text = serde_json::to_string(&ErrorInformation::new(kind, "why")).unwrap();
            assert!(!text.contains("ticket"));
            let back: ErrorInformation = serde_json::from_str(&text).unwrap();
            assert_eq!(back.kind(), Some(kind));
            assert!((400..=503).contains(&kind.status()));
        }
    }

    #[test]
    fn a_kind_of_another_broker_is_kept_as_text() {
        let body = r#"{"type":"https://github.com/confidential-containers/kbs/errors/RvpsError","detail":"x"}"#;
        let error: ErrorInformation = serde_json::from_str(body).unwrap();
        assert_eq!(error.kind(), None);
        assert!(error.error_type.ends_with("RvpsError"));
    }
}
