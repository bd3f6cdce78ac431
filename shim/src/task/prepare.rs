//! What is read and decided of a container before anything is done for it.

use std::path::PathBuf;

use agent_api::agent::Storage;
use agent_api::{ErrorCode, GuestError};

use super::create::CreateRequest;
use crate::config::{Config, SharedFs};
use crate::container::Container;
use crate::rootfs::{self, RootfsError, Source};
use crate::spec::amend::{HostBind, amend};
use crate::spec::{self, Spec};
use crate::{cgroup, disk, network, volume};

/// What was read and decided before anything is done.
pub(super) struct Prepared {
    pub(super) config: Config,
    pub(super) spec: Spec,
    pub(super) source: Source,
    pub(super) binds: Vec<HostBind>,
    /// The pod's cgroup on the host, where it has one.
    pub(super) cgroup: Option<cgroup::Wanted>,
    /// What the guest has of its own for it, and what it is sent.
    pub(super) storages: Vec<Storage>,
    pub(super) slots: Vec<volume::Wanted>,
    /// The disks of the host that it is to have.
    pub(super) disks: Vec<disk::Wanted>,
    /// The root's path on the host, relative to the bundle or absolute.
    pub(super) host_root: String,
    /// The pod's network namespace, and its name servers.
    pub(super) network: Option<PathBuf>,
    pub(super) dns: Vec<String>,
}

pub(super) fn prepare(
    config: Config,
    container: &Container,
    request: &CreateRequest,
    mut spec: Spec,
    shm: Option<&str>,
) -> Result<Prepared, GuestError> {
    let source = rootfs::choose(&config, &container.role, &spec.annotations, &request.rootfs)
        .map_err(|error| rootfs::told(&error))?;
    if source == Source::Host && config.vm.shared_fs == SharedFs::None {
        return Err(rootfs::told(&RootfsError::NotShared));
    }
    // Its first container speaks for the pod.
    let (network, dns) = match container.role.owns_vm() {
        true => (network::wanted(&spec)?, network::resolv_conf(&spec)),
        false => (None, Vec::new()),
    };
    let apart = std::env::var_os(cgroup::SHIM_VARIABLE);
    let cgroup = match container.role.owns_vm() && config.sandbox_cgroup {
        true => cgroup::wanted(&spec, &container.role, apart.is_some())?,
        false => None,
    };
    let mut disks = disk::plan(&config, &container.role, &source, &mut spec)?;
    let binds = amend(
        &mut spec,
        config.disable_guest_seccomp,
        &container.role,
        shm,
    );
    spec::seccomp::check(&spec)?;
    let binds = disk::without_volumes(binds, &disks);
    let sandbox = container.role.sandbox_of(&container.id);
    let planned = volume::plan(&config, sandbox, &container.id, &mut spec, binds)
        .map_err(|error| GuestError::new(ErrorCode::FailedPrecondition, "volume", error))?;
    disks.extend(planned.disks);
    let destination = |bind: &HostBind| {
        let mount = spec.mounts.get(bind.index);
        mount.map(|m| m.destination.clone()).unwrap_or_default()
    };
    rootfs::check_binds(&config, &planned.binds, destination)
        .map_err(|error| rootfs::told(&error))?;
    let root = spec.root.get_or_insert_default();
    let host_root = std::mem::replace(&mut root.path, rootfs::guest_path(&source, &container.id));
    Ok(Prepared {
        config,
        spec,
        source,
        binds: planned.binds,
        cgroup,
        storages: planned.storages,
        slots: planned.slots,
        disks,
        host_root,
        network,
        dns,
    })
}
