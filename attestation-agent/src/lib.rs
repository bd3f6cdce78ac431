//! Proves the guest to the broker and receives its secrets.
//!
//! ```text
//! Attester (one kind, named by configuration) ──evidence──┐
//!                                                         ▼
//! Broker::resource ──► one session, one key pair ──► RCAR 0.4 handshake ──► GET resource, opened here
//!                                                         ▲
//! sealed secrets, workloads (api) ──► Hub ────────────────┘
//! ```
//!
//! There is no fallback to a weaker kind of evidence, no session to a broker other than the one in
//! measured init-data, and no secret, token, evidence or sentence of the broker's in a log or an error's text.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod attester;
mod broker;
mod event_log;
mod hub;
pub mod sealed;
mod token;

pub use attester::{AttestError, Attester};
pub use broker::{
    Attestation, Broker, BrokerConfig, BrokerError, ConfigError, Detail, Step, Traced,
};
pub use event_log::{EventLog, EventLogError};
pub use hub::{Hub, HubError, Unsealed};
pub use kbs_protocol::{ResourceError, ResourcePath, ResourceUri, Secret};
