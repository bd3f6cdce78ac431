//! Why a secret did not come, in terms that the guest's owner can act on.
//!
//! The text of an error goes to the guest's host, in answers and in the log. So it has a step, and what the host sees
//! of the connection anyway; what the broker said beside that stays in a [`Detail`], for who asks for it.

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

/// The broker's own sentence. It may tell what the owner's policy looks at, and so is in no text of an error.
#[derive(Clone)]
pub struct Detail(Box<str>);

impl From<String> for Detail {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Detail {
    /// The sentence, for the owner's eyes.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Detail(..)")
    }
}

/// A secret that did not come. None of the texts has a secret, a token, evidence or a [`Detail`] in it.
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
    #[error("broker speaks another version than {}", kbs_protocol::VERSION)]
    Version {
        /// What the broker says.
        detail: Detail,
    },
    /// This guest could not make evidence.
    #[error("evidence: {0}")]
    Evidence(#[from] AttestError),
    /// The broker does not believe the evidence.
    #[error("broker rejects the evidence: {}", reason(ticket.as_deref()))]
    Rejected {
        /// What the broker says.
        detail: Detail,
        /// What the owner gives to the broker to read the cause.
        ticket: Option<String>,
    },
    /// The broker's policy does not release this resource to this guest.
    #[error("broker denies {resource}: {}", reason(ticket.as_deref()))]
    Denied {
        /// The resource.
        resource: ResourceUri,
        /// What the broker says.
        detail: Detail,
        /// What the owner gives to the broker to read the cause.
        ticket: Option<String>,
    },
    /// The broker has no such resource.
    #[error("broker does not have {resource}")]
    NotFound {
        /// The resource.
        resource: ResourceUri,
        /// What the broker says.
        detail: Detail,
        /// What the owner gives to the broker to read the cause.
        ticket: Option<String>,
    },
    /// The broker is there and cannot answer now.
    #[error("broker unavailable at {step}: status {status}")]
    Unavailable {
        /// The step.
        step: Step,
        /// The HTTP status.
        status: u16,
        /// What the broker says.
        detail: Detail,
    },
    /// The broker refuses the request as such.
    #[error("broker refuses {step}: status {status}")]
    Refused {
        /// The step.
        step: Step,
        /// The HTTP status.
        status: u16,
        /// What the broker says.
        detail: Detail,
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
        /// What is wrong with it, in words of ours.
        cause: String,
    },
    /// The resource came and cannot be opened.
    #[error("open {resource}: {}", unopened(cause))]
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
            Self::Rejected { ticket, .. }
            | Self::Denied { ticket, .. }
            | Self::NotFound { ticket, .. } => ticket.as_deref(),
            _ => None,
        }
    }

    /// What is told to who chose the resource and does not own it, where the guest does not get it: whether there is
    /// one is in no word of it. None where something else is the matter.
    #[must_use]
    pub fn withheld(&self) -> Option<String> {
        match self {
            Self::Denied { resource, .. } | Self::NotFound { resource, .. } => {
                let reason = reason(self.ticket());
                Some(format!("broker does not give {resource}: {reason}"))
            }
            _ => None,
        }
    }

    /// What the broker said: for the owner, and never for the guest's host.
    #[must_use]
    pub fn detail(&self) -> Option<&Detail> {
        match self {
            Self::Version { detail }
            | Self::Rejected { detail, .. }
            | Self::Denied { detail, .. }
            | Self::NotFound { detail, .. }
            | Self::Unavailable { detail, .. }
            | Self::Refused { detail, .. } => Some(detail),
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
            E::Request { .. } | E::PlainHttp { .. } | E::HeadTooLarge { .. } => Self::Protocol {
                step,
                cause: cause.to_string(),
            },
            E::Redirect { .. } => Self::Protocol {
                step,
                cause: "a redirect, which is not followed".to_owned(),
            },
        }
    }
}

/// The cause stays at the broker, with a ticket or without.
fn reason(ticket: Option<&str>) -> String {
    match ticket {
        Some(ticket) => format!("its owner reads the cause with `kbs explain {ticket}`"),
        None => "its owner reads the cause in the broker's log".to_owned(),
    }
}

fn unopened(cause: &JweError) -> String {
    match cause {
        JweError::Algorithm(_) => "its algorithm is not the one of this key".to_owned(),
        cause => cause.to_string(),
    }
}
