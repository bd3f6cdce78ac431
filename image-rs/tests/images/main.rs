//! Images on their way, from registries and layouts into directories. One program: each costs a link.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../blobs/mod.rs"]
mod blobs;
#[path = "../gate/mod.rs"]
mod gate;
#[path = "../overlay/mod.rs"]
mod overlay;
#[path = "../room/mod.rs"]
mod room;
#[path = "../tarball/mod.rs"]
mod tarball;

mod entries;
mod hostile;
mod hostile_mutations;
mod interop;
mod kept;
mod layouts;
mod oracle;
mod pull;
mod recrypt;
mod stack;
mod together;
