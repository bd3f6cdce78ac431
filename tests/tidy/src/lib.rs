//! The workspace as data, for the tests that hold its invariants.
//!
//! They say who may depend on whom, and how big a file or a function may
//! grow. Rules that nobody runs rot, so `tests/` beside this library checks each of them on every
//! `make test`. Here is only what those tests share: [`tree`] lists files as git sees them,
//! [`source`] reads Rust without being fooled by strings and comments, [`graph`] knows which crate
//! links which.

pub mod graph;
pub mod source;
pub mod tree;
