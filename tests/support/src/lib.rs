//! Real parts for the tests: containerd, a registry, a broker, a state directory.
//!
//! Everything that a test starts lives in one [`State`] directory and ends when its value is
//! dropped, by process id. Nothing here fakes a peer: containerd, the registry, the broker and the
//! VM are the real programs, so that what a test proves holds outside of it.
//!
//! What a machine may lack is asked for with [`need`]: a test whose tool is missing says so and
//! returns, or fails where `CLOISTER_NO_SKIP=1` forbids skipping.

pub mod broker;
pub mod by_hand;
pub mod collector;
pub mod containerd;
pub mod cri;
pub mod dev_tee;
pub mod firmware;
pub mod host;
pub mod igvm;
pub mod image;
pub mod init_data;
pub mod kube;
pub mod line;
mod need;
pub mod node;
pub mod pod;
pub mod postgres;
pub mod product;
pub mod registry;
pub mod run;
pub mod skopeo;
pub mod snapshotter;
pub mod stage;
mod state;
pub mod streaming;
pub mod timeline;
pub mod tls;
pub mod xts;

pub use need::{find, need, skip};
/// The peer that launches are measured with. It is here, and so in `demo`, that programs and tests need the same
/// features of what it depends on: what differs is compiled twice.
pub use sev;
pub use state::{State, VmTurn};
