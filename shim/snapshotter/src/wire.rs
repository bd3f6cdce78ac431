//! The messages of containerd's services, as generated from `proto/`.

pub(crate) use generated::{containers, snapshots};

/// What the code generator wrote; its style is not ours.
#[allow(
    warnings,
    missing_docs,
    missing_debug_implementations,
    clippy::all,
    reason = "generated code"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/index.rs"));
}
