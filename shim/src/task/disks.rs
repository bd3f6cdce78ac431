//! A container's disks: attached before it is made, and taken away when it is gone.

use std::sync::Arc;

use agent_api::agent::{Device, Storage};
use agent_api::{ErrorCode, GuestError};
use tracing::error;

use super::Tasks;
use super::prepare::Prepared;
use crate::container::Container;
use crate::disk::described::{self, Growth};
use crate::disk::{self, Order, Purpose};

/// What the guest is asked for of a container's disks.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// File systems, in the order of the specification; a root comes first.
    pub(super) storages: Vec<Storage>,
    pub(super) devices: Vec<Device>,
}

impl Tasks {
    /// Gives the VM the disks that a container needs.
    pub(super) async fn attach_disks(
        self: &Arc<Self>,
        container: &Container,
        prepared: &mut Prepared,
    ) -> Result<Orders, GuestError> {
        let mut orders = Orders::default();
        if prepared.disks.is_empty() {
            return Ok(orders);
        }
        let disks = self.sandbox.view().disks.ok_or_else(|| {
            let text = "the VM of this pod was made without disks that come later";
            GuestError::new(ErrorCode::FailedPrecondition, "disk", text)
        })?;
        let held = self.containers.get(&container.id)?;
        let (mut lowers, mut upper) = (Vec::new(), None);
        for wanted in std::mem::take(&mut prepared.disks) {
            let (tasks, held, disks) = (Arc::clone(self), Arc::clone(&held), disks.clone());
            let asked = wanted.clone();
            // What was begun is noted with the container also when this call is dropped.
            let work = async move { tasks.disks.attach(&disks, &held, &wanted).await };
            let address = tokio::spawn(work)
                .await
                .map_err(|error| GuestError::new(ErrorCode::Internal, "disk", error))??;
            match &asked.purpose {
                Purpose::Lower(_) => lowers.push(disk::point(address)),
                Purpose::Upper(_) => upper = Some(disk::point(address)),
                Purpose::Node(_)
                | Purpose::Volume(..)
                | Purpose::EmptyDir(..)
                | Purpose::Root(_) => {}
            }
            for order in asked.order(address, &mut prepared.spec) {
                match order {
                    Order::Device(device) => orders.devices.push(device),
                    Order::Storage(storage) => orders.storages.push(storage),
                }
            }
        }
        if !lowers.is_empty() {
            let stack = disk::stack(&container.id, &lowers, upper.as_deref());
            orders.storages.push(stack);
        }
        Ok(orders)
    }

    /// How full the volume is whose device on the host this is, as Kata's shim writes it.
    pub(super) async fn stats_of_volume(&self, device: &str) -> Result<String, GuestError> {
        let address = self.disks.mounted(device, false).await?;
        let guest = self.sandbox.guest()?;
        let told = guest.volume_stats(disk::point(address)).await?;
        Ok(described::stats(&told))
    }

    /// Makes a volume as large as its device has become, or as it says.
    pub(super) async fn make_volume_larger(&self, growth: &Growth) -> Result<(), GuestError> {
        let address = self.disks.mounted(&growth.device, true).await?;
        let failed = |error: String| GuestError::new(ErrorCode::FailedPrecondition, "disk", error);
        let disks = self.sandbox.view().disks;
        let disks = disks.ok_or_else(|| failed("the VM is gone".to_owned()))?;
        let grown = disks.grow(address, growth.bytes).await;
        grown.map_err(|error| failed(error.to_string()))?;
        let point = disk::point(address);
        self.sandbox
            .guest()?
            .resize_volume(point, growth.bytes)
            .await
    }

    /// Takes away what a container had; the guest has let go of it, or is no more. A disk that does not go when it
    /// is asked for again goes with the VM: nobody else on the host could use it.
    pub(super) async fn release_disks(&self, container: &Container) -> Result<(), GuestError> {
        let disks = self.sandbox.view().disks;
        match self.disks.release(disks.as_ref(), container).await {
            Ok(()) => Ok(()),
            Err(stuck) if stuck.again => {
                let error = stuck.error;
                error!(%error, container = container.id, "a disk does not go: its VM is ended");
                self.sandbox.stop().await;
                let gone = self.disks.release(None, container).await;
                gone.map_err(|stuck| stuck.error)
            }
            Err(stuck) => Err(stuck.error),
        }
    }
}
