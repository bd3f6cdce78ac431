//! The owner's Rego policies and the engine that decides by them.
//!
//! Three questions, each with its own typed answer: may the host ask this of the guest
//! ([`agent`]), how far is a guest to be trusted ([`appraisal`]), and may this secret go to it
//! ([`release`]). A policy is parsed once; each decision evaluates it on an engine at rest. What a policy
//! leaves unsaid is a refusal.
//!
//! The Rego files that we ship lie beside this crate's sources, each with its tests.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod appraisal;
mod bounds;
pub mod cache;
pub mod corim;
mod engine;
mod functions;
mod reason;
pub mod reference;
mod refusal;
pub mod release;
pub mod scopes;
mod shape;
mod words;

pub use engine::{POLICY_BYTES, PolicyError};
