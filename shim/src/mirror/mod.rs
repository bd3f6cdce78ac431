//! The node's mirror: blobs by digest, kept on the host for all pods of the node.
//!
//! ```text
//!   guest ─ MIRROR on the host port ─► serve: GET, HEAD, uploads ─► store: blobs/ ◄─ rename ─ fill/ ◄─ ingest
//! ```
//!
//! The host sees no credentials and dials no registry for it: the guest that pulls a blob first offers it while it
//! streams. Nothing is believed by where it came from. The host checks a digest before it publishes, so that no
//! guest can poison another's pull for long; the guest checks it again, because the host is not trusted. A guest
//! reaches blobs by digest and nothing else: of what it says only a parsed [`image_rs::Digest`] reaches a path.

mod answer;
mod ingest;
mod lock;
mod read;
mod request;
mod serve;
mod store;
mod upload;

pub use ingest::Ingest;
pub use read::Reading;
pub use serve::Mirror;
pub use store::{Store, StoreError};
