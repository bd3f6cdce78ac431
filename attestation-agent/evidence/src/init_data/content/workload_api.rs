//! `[workload_api]` of `cdh.toml`: where containers find their guest's services. Cloister's own section.

use serde::Deserialize;

/// Which doors are open. What a container gets behind one is the policy's to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadApi {
    /// REST on 127.0.0.1:8006, as CoCo has it. It takes the port from the pod.
    pub rest: bool,
    /// The ttRPC sockets below `/run/confidential-containers`, mounted into each container.
    pub sockets: bool,
}

impl Default for WorkloadApi {
    fn default() -> Self {
        Self {
            rest: true,
            sockets: false,
        }
    }
}
