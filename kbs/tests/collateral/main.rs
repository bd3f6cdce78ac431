//! Collateral from services that behave and from those that do not, from the disk, and from bundles.
#![allow(clippy::unwrap_used)]

mod amd;
mod bundle;
mod command;
#[path = "../../verifier/tests/development/mod.rs"]
#[allow(dead_code, reason = "the verifier's tests use the rest")]
mod development;
mod intel;
mod keeping;
mod lab;
mod service;
#[path = "../../verifier/tests/tdx_development/mod.rs"]
#[allow(dead_code, reason = "the verifier's tests use the rest")]
mod tdx_development;
