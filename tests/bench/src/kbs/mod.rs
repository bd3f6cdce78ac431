//! The broker's measure: what an attestation and a release cost it, held against the cryptography
//! that nobody can do without.
//!
//! The real program runs on a core of its own, over HTTP without TLS, with its default policies and
//! SQLite, and the guests on another core. What is counted is its time on the processor, so that a
//! slow guest or a busy machine changes little; only the latencies are the clock's.

pub mod affinity;
pub mod broker;
pub mod crypto;
pub mod guest;
pub mod http;
pub mod load;
