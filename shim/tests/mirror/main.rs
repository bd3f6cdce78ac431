//! The node's mirror: the store with many processes at once, the server on a connection, and pulls through it, with
//! a host that is honest and with one that is not.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test stops at the first surprise"
)]

mod host;
mod liar;
mod pull;
mod registry;
mod store;
mod wire;
