//! The key broker that operators deploy: it verifies evidence, appraises it, and releases secrets by
//! the owner's policy.
//!
//! ```text
//! auth ──► challenge, sealed in a cookie; the broker keeps nothing
//! attest ─► cookie, nonce, key ─► verifier ─► appraisal ─► token (EAR)
//! resource ► token ─► release policy ─► store ─► JWE to the token's key
//!                          └── no: a ticket for the guest, the cause for the owner
//! ```
//!
//! A guest learns a code and a ticket. What was claimed, expected and found stays here, and the owner
//! reads it with `kbs explain`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
mod annotate;
pub mod attest;
mod auth;
mod broker;
mod check;
pub mod collateral;
pub mod command;
pub mod config;
mod crowd;
mod current;
mod decided;
mod desk;
mod explain;
mod file;
mod limit;
mod master;
mod metrics;
mod progress;
mod record;
mod refusal;
mod retention;
mod room;
mod route;
mod rules;
mod scope;
mod seal;
mod server;
mod session;
mod signer;
mod store;
mod telemetry;
mod tls;
pub mod token;
mod upkeep;
mod verified;
mod verify;

pub use broker::{Broker, OpenError};
pub use explain::Explained;
pub use record::{Entry, Judged, Kind, Outcome, Search, Versions};
pub use rules::RuleError;
pub use server::{ServeError, Server};
pub use signer::SignerError;
pub use store::{KeyStatus, Metadata, PolicyVersion, ReferenceState, ReferenceVersion};
pub use telemetry::TelemetryError;
pub use tls::TlsError;
pub use verify::VerifierError;
