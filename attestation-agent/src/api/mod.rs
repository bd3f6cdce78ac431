//! What workloads may ask of their guest: CoCo's services on CoCo's addresses, and an owner who decides for each
//! container.
//!
//! ```text
//!  ttRPC  /run/confidential-containers/…sock ─┐ accept ─► Peer: which processes hold the other end
//!  REST   127.0.0.1:8006 ─────────────────────┤            └─► Authorize::identify ─► Caller: which container
//!                                             │
//!         request ─► Client (one caller) ─────┴─► Authorize::allow(caller, ask) ─► Hub
//! ```
//!
//! A connection belongs to the caller that it was accepted from; each request is decided anew. The private key of the
//! pod is handed out to nobody, which CoCo's `/aa/token` does. An interface that comes beside these (SPIFFE's Workload
//! API, say) is one more module that takes a [`Client`].

mod ask;
mod client;
mod hold;
mod peer;
mod rest;
mod rpc;
mod seldom;
mod serve;

pub use ask::{Ask, Reading};
pub use client::{ApiError, Client, Info};
pub use peer::Peer;
pub use seldom::Seldom;
pub use serve::{Addresses, ServeError, Serving, serve};

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use crate::EventLog;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The container's id; on a machine without containers the user's.
    pub id: String,
    /// The container's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// A refusal, in words for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Knows callers, and what their owner allows them.
#[async_trait]
pub trait Authorize: Send + Sync {
    /// Who is at the other end of a connection that was just accepted.
    ///
    /// # Errors
    /// It is nobody that may ask anything.
    async fn identify(&self, peer: Peer) -> Result<Caller, Refused>;

    /// Whether a caller may have what it asks for.
    ///
    /// # Errors
    /// It may not.
    fn allow(&self, caller: &Caller, ask: &Ask<'_>) -> Result<(), Refused>;
}

/// What a guest may have beside its hub.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "traits of those who serve")]
pub struct Abilities {
    /// A log that is measured.
    pub log: Option<Arc<EventLog>>,
    /// Disks for volumes.
    pub volumes: Option<Arc<dyn Volumes>>,
}

/// `api.SecureMountRequest` of CoCo's confidential-data-hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountRequest {
    /// The kind of volume.
    pub volume_type: String,
    /// By their names in CoCo.
    pub options: BTreeMap<String, String>,
    /// Of the mount.
    pub flags: Vec<String>,
    /// Where.
    pub mount_point: String,
}

impl MountRequest {
    /// The option with the address of a disk's key, for which the policy is asked as for any resource.
    pub const KEY: &'static str = "key";
}

/// Makes volumes that nobody outside of the guest can read.
#[async_trait]
pub trait Volumes: Send + Sync {
    /// Encrypts a disk and mounts it.
    ///
    /// # Errors
    /// Says why not.
    async fn mount(&self, request: MountRequest) -> Result<(), String>;
}

/// What the code generator wrote; its style is not ours.
#[allow(warnings, clippy::all, reason = "generated code")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/index.rs"));
}
