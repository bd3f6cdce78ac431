//! The size of a running VM: what its containers need together, as far as it may grow.

use agent_api::{ErrorCode, GuestError};
use hypervisor::qmp::QmpError;

use super::Tasks;
use crate::container::Container;
use crate::process::Phase;
use crate::spec::oci::Resources;
use crate::spec::proto;
use crate::spec::size::{self, Limits};

impl Tasks {
    /// Makes the VM as large as the containers need that have not ended. It never shrinks: memory that is
    /// free goes back to the host as it is.
    pub(super) async fn fit_vm(&self) -> Result<(), GuestError> {
        let (Some(hotplug), Some(config)) = (self.sandbox.view().hotplug, self.config.get()) else {
            return Ok(());
        };
        let all = self.containers.all();
        let living = all
            .iter()
            .filter(|one| !matches!(one.init.phase(), Phase::Exited(_)));
        let wanted = size::needed(&config.vm, Limits::sum(living.map(|one| one.limits())));
        let now = hotplug.size().await;
        if wanted.vcpus <= now.vcpus && wanted.memory_mib <= now.memory_mib {
            return Ok(());
        }
        let guest = self.sandbox.guest()?;
        let block = guest.memory_block_mib().await?;
        let failed = |error: QmpError| GuestError::new(ErrorCode::Internal, "grow", error);
        let added = hotplug.grow_to(wanted, block).await.map_err(failed)?;
        if added.vcpus == 0 && added.memory_mib == 0 {
            return Ok(());
        }
        guest.online(added.vcpus, added.memory_mib > 0).await
    }

    /// Changes a container's limits. Processors are named by the host's numbers, which mean others in the
    /// guest. The VM grows before a limit does, or there would be nothing behind it.
    pub(super) async fn update(
        &self,
        container: &Container,
        resources: &Resources,
    ) -> Result<(), GuestError> {
        let guest = self.sandbox.guest()?;
        let before = container.limits();
        container.limit(before.changed(resources));
        let changed = async {
            self.fit_vm().await?;
            let mut resources = resources.clone();
            if let Some(cpu) = &mut resources.cpu {
                (cpu.cpus, cpu.mems) = (String::new(), String::new());
            }
            guest
                .update_container(&container.id, proto::resources(&resources))
                .await
        };
        let result = changed.await;
        if result.is_err() {
            container.limit(before);
        }
        result
    }
}
