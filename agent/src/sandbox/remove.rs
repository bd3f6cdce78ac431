//! How a container goes: its processes, its files, and then what it held of the pod's.
//!
//! ```text
//! RemoveContainer ─► being made? cancel, wait
//!                └─► turn ─► processes, state ─► mounts, disks, pages ─► the id is free ─► answered
//! ```
//!
//! The answer says that nothing is held any more: the host takes a container's disks away then. So the id stays
//! taken until the last disk is let go, who asks again waits for the first, and a host that gave up on its call
//! stops nothing in the middle.

use std::sync::Arc;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError, agent};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::making::Making;
use super::{Sandbox, Slot};
use crate::container::Container;
use crate::fault::OrFail;
use crate::gate::Allowed;
use crate::storage::Held;

/// How long the containers get to end when the pod is destroyed. What they wrote to disks has no such limit: the
/// host has.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Ends a container and takes it away; one that is being made is not made.
    ///
    /// # Errors
    ///
    /// There is no such container, it does not end in time, or a disk of it is not let go. The container is there
    /// still then, and can be removed again.
    pub async fn remove_container(
        self: &Arc<Self>,
        request: Allowed<agent::RemoveContainerRequest>,
    ) -> Result<(), GuestError> {
        let id = request.container_id.clone();
        let sandbox = Arc::clone(self);
        let removed = tokio::spawn({
            let id = id.clone();
            async move { sandbox.remove(&id).await }
        });
        let removed = async { removed.await.or_internal("remove", "the task ended")? };
        if request.timeout == 0 {
            return removed.await;
        }
        let within = Duration::from_secs(request.timeout.into());
        let removed = timeout(within, removed).await;
        removed.or_fail(ErrorCode::DeadlineExceeded, "remove", id)?
    }

    async fn remove(&self, id: &str) -> Result<(), GuestError> {
        if let Some(making) = self.cancel(id) {
            making.over().await;
            return Ok(());
        }
        let container = self.container(id).inspect_err(|_| {
            // The host may have given up before it asked for the container.
            self.content.release(id);
        })?;
        let mut held = container.held().lock().await;
        if !self.has(id, &container) {
            // Who had the turn before took it away.
            return Ok(());
        }
        container.remove().await?;
        self.let_go(&mut held).await?;
        self.content.release(id);
        self.containers().remove(id);
        tokio::task::spawn_blocking(footprint::trim);
        Ok(())
    }

    fn has(&self, id: &str, container: &Arc<Container>) -> bool {
        matches!(self.containers().get(id), Some(Slot::Made(known)) if Arc::ptr_eq(known, container))
    }

    /// Ends the use of what a container held. What is not let go is held still.
    pub(super) async fn let_go(&self, held: &mut Held) -> Result<(), GuestError> {
        for point in std::mem::take(&mut held.points) {
            self.storages.release(&point).await;
        }
        let mut outcome = Ok(());
        for address in std::mem::take(&mut held.disks) {
            if let Err(error) = self.disks.release(&address).await {
                tracing::warn!(address, %error, "a disk is not let go");
                held.disks.push(address);
                outcome = Err(error);
            }
        }
        self.pages.release(std::mem::take(&mut held.pages)).await;
        outcome
    }

    /// Cancels the making of a container, if it is being made.
    fn cancel(&self, id: &str) -> Option<Making> {
        // Under the lock: who makes it looks under the lock too, before it says that it is there.
        match self.containers().get(id) {
            Some(Slot::Making(making)) => {
                making.cancel();
                Some(making.clone())
            }
            Some(Slot::Made(_)) | None => None,
        }
    }

    /// Kills all containers, and has what they wrote to disks written. The guest powers off then.
    pub async fn destroy(self: &Arc<Self>, _request: Allowed<agent::DestroySandboxRequest>) {
        let slots: Vec<_> = self.containers().drain().map(|(_, slot)| slot).collect();
        let mut ends = JoinSet::new();
        for slot in slots {
            let sandbox = Arc::clone(self);
            ends.spawn(async move { sandbox.end(slot).await });
        }
        ends.join_all().await;
        self.destroyed.send_replace(true);
    }

    async fn end(&self, slot: Slot) {
        let container = match slot {
            Slot::Made(container) => container,
            Slot::Making(making) => {
                making.cancel();
                let _ = timeout(DESTROY_TIMEOUT, making.over()).await;
                return;
            }
        };
        let mut held = container.held().lock().await;
        match timeout(DESTROY_TIMEOUT, container.remove()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a container did not end"),
            Err(_) => tracing::warn!("a container did not end in time"),
        }
        // A warning says which disk.
        let _ = self.let_go(&mut held).await;
    }
}
