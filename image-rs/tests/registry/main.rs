//! The client of registries: against a registry that misbehaves in every way we know of, and against a real one.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test stops at the first surprise"
)]

mod auth;
mod fault;
mod lie;
mod mirror;
mod place;
mod proxy;
mod pull;
mod real;
mod secrecy;
mod server;
