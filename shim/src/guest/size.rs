//! What is asked of the guest about its own size.

use agent_api::GuestError;
use agent_api::agent as api;
use ttrpc::context::Context;

use super::{Guest, REQUEST_TIMEOUT};

impl Guest {
    /// The size in MiB of the blocks in which the guest takes memory into use; zero where it does not say.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn memory_block_mib(&self) -> Result<u32, GuestError> {
        let request = api::GuestDetailsRequest {
            mem_block_size: true,
            ..Default::default()
        };
        let call = self.client.get_guest_details(Context::default(), &request);
        let details = self.call("grow", REQUEST_TIMEOUT, call).await?;
        Ok(u32::try_from(details.mem_block_size_bytes >> 20).unwrap_or(u32::MAX))
    }

    /// Has the guest take processors into use that were added, and memory where there is some.
    ///
    /// # Errors
    /// As [`Self::create_sandbox`].
    pub async fn online(&self, vcpus: u32, has_memory: bool) -> Result<(), GuestError> {
        let request = api::OnlineCPUMemRequest {
            wait: true,
            nb_cpus: vcpus,
            cpu_only: !has_memory,
            ..Default::default()
        };
        let call = self.client.online_cpu_mem(Context::default(), &request);
        self.call("grow", REQUEST_TIMEOUT, call).await.map(drop)
    }
}
