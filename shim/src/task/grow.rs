//! The size of a running VM: what its containers need together, as far as it may grow.

use agent_api::{ErrorCode, GuestError};
use hypervisor::Size;
use hypervisor::qmp::QmpError;
use tokio::sync::Mutex;

use super::Tasks;
use crate::container::Container;
use crate::process::Phase;
use crate::spec::oci::Resources;
use crate::spec::proto;
use crate::spec::size::{self, Limits};

/// What the guest has taken into use of what is plugged in; nothing is known before the first growth. Who
/// holds it makes the VM grow, and has the guest take what came: growths take turns.
#[derive(Debug, Default)]
pub(super) struct Online(Mutex<Option<Size>>);

/// What the guest is asked to take into use at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Processor,
    /// All that is there, up to this size in MiB.
    Memory(u32),
}

fn is_within(wanted: Size, size: Size) -> bool {
    wanted.vcpus <= size.vcpus && wanted.memory_mib <= size.memory_mib
}

/// The next part that is plugged and not online. Processors come one by one: of a request for several that
/// fails, nobody could say how many the guest has.
fn next(online: Size, plugged: Size) -> Option<Part> {
    if online.vcpus < plugged.vcpus {
        return Some(Part::Processor);
    }
    (online.memory_mib < plugged.memory_mib).then_some(Part::Memory(plugged.memory_mib))
}

impl Part {
    /// As the guest is asked: how many processors, and whether memory.
    fn request(self) -> (u32, bool) {
        match self {
            Self::Processor => (1, false),
            Self::Memory(_) => (0, true),
        }
    }

    /// Notes that the guest has it.
    fn note(self, online: &mut Size) {
        match self {
            Self::Processor => online.vcpus += 1,
            Self::Memory(mib) => online.memory_mib = mib,
        }
    }
}

impl Tasks {
    /// Makes the VM as large as the containers need that have not ended. It never shrinks: memory that is
    /// free goes back to the host as it is. What an earlier growth plugged in and the guest did not take is
    /// asked for again: no limit rises with nothing behind it.
    pub(super) async fn fit_vm(&self) -> Result<(), GuestError> {
        let (Some(hotplug), Some(config)) = (self.sandbox.view().hotplug, self.config.get()) else {
            return Ok(());
        };
        let mut turn = self.online.0.lock().await;
        let all = self.containers.all();
        let living = all
            .iter()
            .filter(|one| !matches!(one.init.phase(), Phase::Exited(_)));
        let wanted = size::needed(&config.vm, Limits::sum(living.map(|one| one.limits())));
        let mut plugged = hotplug.size().await;
        // Nothing was plugged in before, and what it started with it has.
        let online = turn.get_or_insert(plugged);
        if is_within(wanted, *online) {
            return Ok(());
        }
        let guest = self.sandbox.guest()?;
        if !is_within(wanted, plugged) {
            let block = guest.memory_block_mib().await?;
            let failed = |error: QmpError| GuestError::new(ErrorCode::Internal, "grow", error);
            hotplug.grow_to(wanted, block).await.map_err(failed)?;
            plugged = hotplug.size().await;
        }
        while let Some(part) = next(*online, plugged) {
            let (vcpus, has_memory) = part.request();
            guest.online(vcpus, has_memory).await?;
            part.note(online);
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_plugged_and_not_taken_is_asked_for_until_it_is() {
        let size = |vcpus, memory_mib| Size { vcpus, memory_mib };
        let (mut online, plugged) = (size(1, 512), size(3, 768));
        // What is plugged in does not count before the guest has it, and a request that fails is not noted.
        assert!(is_within(plugged, plugged) && !is_within(plugged, online));
        assert_eq!(next(online, plugged), Some(Part::Processor));
        assert_eq!(next(online, plugged), Some(Part::Processor));
        let mut asked = Vec::new();
        while let Some(part) = next(online, plugged) {
            asked.push(part.request());
            part.note(&mut online);
        }
        assert_eq!(asked, [(1, false), (1, false), (0, true)]);
        assert_eq!(online, plugged);
        // More came meanwhile.
        assert_eq!(next(online, size(3, 1024)), Some(Part::Memory(1024)));
    }
}
