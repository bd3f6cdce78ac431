//! What holds for the whole workspace. One program: each costs a link.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod dependencies;
mod links;
mod shape;
mod targets;
mod words;
