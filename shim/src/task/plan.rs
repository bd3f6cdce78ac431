//! What a pod's VM is booted from: the configuration, sized by the specification, with the disks, the
//! shared directory and the network that the pod needs.

use std::os::unix::fs::DirBuilderExt;

use agent_api::agent::Storage;
use agent_api::{ErrorCode, GuestError};
use hypervisor::{Machine, Scratch, VmSpec};

use super::Tasks;
use super::prepare::Prepared;
use crate::config::Config;
use crate::container::Container;
use crate::kernel_line;
use crate::rootfs::{self, Source};
use crate::sandbox::Plan;
use crate::spec::group::Role;
use crate::spec::{pod, size};
use crate::tee;
use crate::{dev_tee, init_data};

/// The file in the state directory that keeps the guest's console.
const CONSOLE_LOG: &str = "console.log";
/// The serial by which the agent finds the scratch disk.
const SCRATCH_SERIAL: &str = "cloister-scratch";

impl Tasks {
    /// The plan for the first container of a pod.
    pub(super) fn plan(
        &self,
        container: &Container,
        prepared: &Prepared,
    ) -> Result<Plan, GuestError> {
        let internal = |error: std::io::Error| GuestError::new(ErrorCode::Internal, "vmm", error);
        let Prepared { config, spec, .. } = prepared;
        self.directory.create().map_err(internal)?;
        let mut vm = config.vm.clone();
        size::fit(&mut vm, spec);
        // What a confidential guest is made of is measured, and is what it stays.
        let is_plain = !config.tee.is_confidential();
        let grows = is_plain && !config.static_size && vm.machine == Machine::Q35;
        let growth = grows.then(|| size::growth(&vm, size::of_host()));
        let mut disks = Vec::new();
        let init_data = init_data::prepare(
            &spec.annotations,
            config.init_data.as_deref(),
            &self.directory,
        )
        .map_err(|error| GuestError::new(ErrorCode::InitDataInvalid, "init-data", error))?;
        let digest = init_data.as_ref().map(|prepared| prepared.digest.clone());
        let confidential = tee::confidential(config, digest.as_ref())
            .map_err(|error| GuestError::new(ErrorCode::FailedPrecondition, "vmm", error))?;
        disks.extend(init_data.map(|prepared| prepared.disk));
        let kernel_params = kernel_line::words(config, digest.as_ref());
        let scratch =
            scratch(config).map_err(|error| GuestError::new(ErrorCode::Internal, "vmm", error))?;
        // A pod's later containers may need files of the host; one on its own is known already.
        let may_share = config.shares_files();
        let needs_share = container.role == Role::Sandbox
            || prepared.source == Source::Host
            || !prepared.binds.is_empty();
        let is_shared = may_share && needs_share;
        let needs_disks = container.role == Role::Sandbox || !prepared.disks.is_empty();
        // In a TEE too: no device of the machine comes, but a unit of one that is there.
        let hot_disks = needs_disks && !vm.disable_block_devices;
        Ok(Plan {
            id: self.sandbox_id.clone(),
            hostname: spec.hostname.clone(),
            network: prepared.network.clone(),
            late_network: is_plain && vm.machine == Machine::Q35,
            forwards: container.role == Role::Sandbox,
            dns: prepared.dns.clone(),
            shared: is_shared.then(|| vm.clone()),
            storages: self.storages(container, is_shared),
            directory: self.directory.clone(),
            cgroup: prepared.cgroup.clone(),
            relay_allow: config.relay_allow.clone(),
            mirror: config.mirror.open(),
            health_timeout: config.health_timeout,
            within: config.boot_timeout,
            dev_tee: config.tee.simulated().map(|tee| dev_tee::Wanted {
                directory: config.dev_tee.clone(),
                tee,
                init_data: digest,
            }),
            vm: VmSpec {
                machine: vm.machine,
                accel: vm.accel,
                vcpus: vm.vcpus,
                memory_mib: vm.memory_mib,
                growth,
                reclaims: is_plain && vm.reclaims,
                initrd: vm.initrd,
                firmware: vm.firmware,
                igvm: vm.igvm,
                confidential,
                qemu: vm.qemu,
                kernel_params,
                disks,
                scratch,
                hot_disks,
                vhost_net: vm.vhost_net,
                console_log: Some(self.directory.path().join(CONSOLE_LOG)),
                ..VmSpec::new(
                    &vm_name(&self.sandbox_id),
                    &vm.kernel,
                    self.directory.path(),
                )
            },
        })
    }
}

impl Tasks {
    /// What the guest mounts for the whole pod.
    fn storages(&self, container: &Container, is_shared: bool) -> Vec<Storage> {
        let shared = is_shared.then(rootfs::shared_storage);
        let shm = || pod::shm_storage(self.shm.get().map(String::as_str));
        let shm = (container.role == Role::Sandbox).then(shm);
        shared.into_iter().chain(shm).collect()
    }
}

/// The guest's scratch disk, in a directory that is made where it is missing.
fn scratch(config: &Config) -> Result<Option<Scratch>, String> {
    if config.scratch_mib == 0 {
        return Ok(None);
    }
    let directory = config.scratch_dir.clone();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|error| format!("cloister.scratch_dir {directory:?}: {error}"))?;
    Ok(Some(Scratch {
        directory,
        mib: config.scratch_mib,
        serial: SCRATCH_SERIAL.to_owned(),
    }))
}

/// A name for the process list: ids may be longer than names of VMs.
fn vm_name(id: &str) -> String {
    id.chars().take(hypervisor::spec::MAX_NAME).collect()
}
