//! Images: their names, the registry, the pull pipeline, unpacking, encryption and upload.
//!
//! ```text
//! Reference ─► policy ─► manifest, config ─► keys (one round) ─► layers, side by side:
//!   fetch ─► digest ─► decrypt ─► decompress ─► diff_id ─► unpack ─► merge in order ─► one rename
//! ```
//!
//! Nothing of an image becomes visible before every HMAC, digest and `diff_id` of it holds; a failure leaves nothing.
//! This crate knows nothing of TEEs: who holds the keys is behind [`ocicrypt::KeySource`], and how a byte reaches a
//! registry is behind [`transport::Dial`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod digest;
pub mod inspect;
mod layer;
pub mod layout;
pub mod manifest;
pub mod place;
pub mod policy;
pub mod pull;
pub mod recrypt;
pub mod reference;
pub mod registry;
mod shown;
pub mod signature;
pub mod unpack;

pub use digest::Digest;
pub use layer::LayerError;
pub use place::Place;
pub use policy::{Policy, PolicyFile};
pub use pull::{PullConfig, PullError, Pulled, Puller};
pub use reference::Reference;
pub use shown::{shown, shown_list, shown_up_to};
