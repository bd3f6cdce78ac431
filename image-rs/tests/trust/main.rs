//! Signatures of images under a policy: what is accepted, and each single fault with its own reason.
//!
//! Keys, certificates, logs and signatures are made here, by other code than that which verifies them; `real` takes
//! those of skopeo and gpg.

#![allow(clippy::unwrap_used)]

#[path = "../room/mod.rs"]
mod room;

mod bundle;
mod gpg;
mod keyed;
mod keyless;
mod maker;
mod real;
mod rules;
mod store;
