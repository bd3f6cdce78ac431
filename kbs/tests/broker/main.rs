//! The real broker, and what owners, guests and operators see of it. One program: each costs a link.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../deployment/mod.rs"]
mod deployment;
#[path = "../platform/mod.rs"]
mod platform;
#[path = "../predicted/mod.rs"]
mod predicted;
#[path = "../../../attestation-agent/measure/tests/tdvf/mod.rs"]
mod tdvf;

mod beside;
mod dev;
mod door;
mod handshake;
mod issuer;
mod kinds;
mod measured;
mod measured_td;
mod operation;
mod owner;
mod references;
mod replicas;
mod rules;
mod setup;
mod store;
mod telemetry;
