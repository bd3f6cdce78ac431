//! How images are pulled: by which policy, for which machine, within which limits.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::manifest::Platform;
use crate::policy::Policy;
use crate::signature::Lookaside;
use crate::unpack::{Devices, Limits, Options, Ownership, Trusted};

/// Layers at once: enough for one to be on its way while another is decoded, and little enough for a small guest.
const LAYERS_AT_ONCE: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);

/// How images are pulled.
#[derive(Debug, Clone)]
pub struct PullConfig {
    /// Which images may be pulled. There is no default: in a TEE, no policy must be [`Policy::reject`].
    pub policy: Policy,
    /// Whom an image must be for.
    pub platform: Platform,
    /// The caps.
    pub limits: Limits,
    /// Layers at once. Each takes two threads, and memory for its window and what is on its way, mostly up to 12 MiB.
    pub concurrency: NonZeroUsize,
    /// Device nodes.
    pub devices: Devices,
    /// Owners.
    pub ownership: Ownership,
    /// `trusted.*` attributes.
    pub trusted: Trusted,
    /// What to change when there is no room, in the words of the one who configures it.
    pub space_setting: String,
    /// Where simple signatures are kept, for a policy that asks for some.
    pub lookaside: Lookaside,
}

impl PullConfig {
    /// For this machine, with the default caps, and owners kept.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            platform: Platform::host(),
            limits: Limits::default(),
            concurrency: LAYERS_AT_ONCE,
            devices: Devices::Create,
            ownership: Ownership::Keep,
            trusted: Trusted::Keep,
            space_setting: "the memory of the VM (default_memory)".to_owned(),
            lookaside: Lookaside::default(),
        }
    }

    pub(super) fn options(&self) -> Arc<Options> {
        Arc::new(Options {
            limits: self.limits.clone(),
            devices: self.devices,
            ownership: self.ownership,
            trusted: self.trusted,
        })
    }
}
