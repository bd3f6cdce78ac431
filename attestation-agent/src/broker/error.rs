//! Why a secret did not come, in terms that the guest's owner can act on.

use std::{fmt, io, time::Duration};

use kbs_protocol::{JweError, ResourceUri};

use crate::AttestError;

/// A step of the way to a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Asking for a challenge.
    Auth,
    /// Answering it with evidence.
    Attest,
    /// Asking for the resource.
    Resource,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auth => "auth",
            Self::Attest => "attest",
            Self::Resource => "resource",
        })
    }
}

/// A secret that did not come. None of the texts has a secret, a token or evidence in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BrokerError {
    /// There is no connection, or none that lasts.
    #[error("broker unreachable at {step}: {cause}")]
    Unreachable {
        /// The step.
        step: Step,
        /// What the transport says.
        cause: transport::Error,
    },
    /// The host does not carry connections to the broker.
    #[error("the host does not relay to the broker: {cause}")]
    NotRelayed {
        /// What the dialler says.
        cause: transport::Error,
    },
    /// Somebody else answers in the broker's place.
    #[error("broker untrusted: {cause}")]
    Untrusted {
        /// What was shown, and what is pinned.
        cause: transport::Error,
    },
    /// The broker does not speak our version of the protocol.
    #[error(
        "broker speaks another version than {}: {detail}",
        kbs_protocol::VERSION
    )]
    Version {
        /// What the broker says.
        detail: String,
    },
    /// This guest could not make evidence.
    #[error("evidence: {0}")]
    Evidence(#[from] AttestError),
    /// The broker does not believe the evidence.
    #[error("broker rejects the evidence: {}", reason(detail, ticket))]
    Rejected {
        /// What the broker says.
        detail: String,
        /// What the owner gives to the broker to read the cause.
        ticket: Option<String>,
    },
    /// The broker's policy does not release this resource to this guest.
    #[error("broker denies {resource}: {}", reason(detail, ticket))]
    Denied {
        /// The resource.
        resource: ResourceUri,
        /// What the broker says.
        detail: String,
        /// What the owner gives to the broker to read the cause.
        ticket: Option<String>,
    },
    /// The broker has no such resource.
    #[error("broker does not have {resource}: {detail}")]
    NotFound {
        /// The resource.
        resource: ResourceUri,
        /// What the broker says.
        detail: String,
    },
    /// The broker is there and cannot answer now.
    #[error("broker unavailable at {step}: status {status}: {detail}")]
    Unavailable {
        /// The step.
        step: Step,
        /// The HTTP status.
        status: u16,
        /// What the broker says.
        detail: String,
    },
    /// The broker refuses the request as such.
    #[error("broker refuses {step}: status {status}: {detail}")]
    Refused {
        /// The step.
        step: Step,
        /// The HTTP status.
        status: u16,
        /// What the broker says.
        detail: String,
    },
    /// The answer is larger than its cap.
    #[error("broker's answer to {step} has more than {cap} bytes")]
    TooLarge {
        /// The step.
        step: Step,
        /// The cap, in bytes.
        cap: usize,
    },
    /// The answer is not one of the protocol.
    #[error("broker's answer to {step}: {cause}")]
    Protocol {
        /// The step.
        step: Step,
        /// What is wrong with it.
        cause: String,
    },
    /// The resource came and cannot be opened.
    #[error("open {resource}: {cause}")]
    Open {
        /// The resource.
        resource: ResourceUri,
        /// Why not.
        cause: JweError,
    },
    /// The time for all attempts is over.
    #[error("broker gave no {step} within {} ms", after.as_millis())]
    Deadline {
        /// The step that was under way.
        step: Step,
        /// The time for all attempts.
        after: Duration,
    },
}

impl BrokerError {
    /// The ticket with which the owner reads the cause at the broker.
    #[must_use]
    pub fn ticket(&self) -> Option<&str> {
        match self {
            Self::Rejected { ticket, .. } | Self::Denied { ticket, .. } => ticket.as_deref(),
            _ => None,
        }
    }

    pub(super) fn of_transport(step: Step, cause: transport::Error) -> Self {
        use transport::Error as E;
        match cause {
            E::Untrusted { .. } => Self::Untrusted { cause },
            E::Dial {
                kind: io::ErrorKind::PermissionDenied,
                ..
            } => Self::NotRelayed { cause },
            E::TooLarge { cap, .. } => Self::TooLarge { step, cap },
            E::Dial { .. }
            | E::Proxy { .. }
            | E::Tls { .. }
            | E::Timeout { .. }
            | E::Protocol { .. } => Self::Unreachable { step, cause },
            E::Request { .. }
            | E::PlainHttp { .. }
            | E::HeadTooLarge { .. }
            | E::Redirect { .. } => Self::Protocol {
                step,
                cause: cause.to_string(),
            },
        }
    }
}

/// With a ticket the cause stays at the broker; without one the broker's sentence is all there is.
fn reason(detail: &str, ticket: &Option<String>) -> String {
    match ticket {
        Some(ticket) => format!("its owner reads the cause with `kbs explain {ticket}`"),
        None => detail.to_owned(),
    }
}
