//! A container's hooks, at the moments of its life.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError};
use tracing::warn;

use super::{CreateRequest, Tasks};
use crate::container::Container;
use crate::hooks::{self, Holder};
use crate::lock::lock;
use crate::network;
use crate::spec::Spec;
use crate::spec::oci::Namespace;

/// What hooks are led to.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// The pod's network namespace, as its first container names it: what further ones name is the VMM's.
    network: Option<PathBuf>,
    /// The process whose id they are told. It is there once a container has hooks.
    holder: Option<Holder>,
}

impl Tasks {
    /// Runs the hooks that come before a container. One that brings the VM gets its network namespace from
    /// here, so that they find it and the VM is tied to what they make in it.
    pub(super) async fn hooks_before(
        self: &Arc<Self>,
        container: &Container,
        request: &CreateRequest,
        spec: &mut Spec,
    ) -> Result<(), GuestError> {
        let owns_vm = container.role.owns_vm();
        if owns_vm {
            self.way().network = named(spec);
        }
        if !hooks::any(spec) {
            return Ok(());
        }
        let tasks = Arc::clone(self);
        let (pid, namespace) = blocking(move || tasks.hold()).await??;
        if owns_vm {
            name(spec, &namespace);
        }
        let (directory, id) = (self.directory.clone(), container.id.clone());
        let (bundle, spec) = (request.bundle.clone(), spec.clone());
        blocking(move || hooks::before(&directory, &id, &bundle, &spec, pid)).await?
    }

    /// The process that stands for the pod on the host, and its network namespace.
    fn hold(&self) -> Result<(u32, PathBuf), GuestError> {
        let mut way = self.way();
        let holder = match way.holder.take() {
            Some(holder) => holder,
            None => Holder::start(way.network.as_deref(), &self.directory)?,
        };
        let found = (holder.pid(), holder.namespace());
        way.holder = Some(holder);
        Ok(found)
    }

    /// Runs those that follow the start of a container.
    pub(super) async fn hooks_started(&self, container: &Container) {
        let Ok(spec) = crate::spec::read(&container.bundle) else {
            return;
        };
        let Some(all) = spec.hooks.clone().filter(|all| !all.poststart.is_empty()) else {
            return;
        };
        let Some(pid) = self.way().holder.as_ref().map(Holder::pid) else {
            return warn!(container = container.id, "it is gone: no poststart");
        };
        let told = hooks::told(&container.id, &container.bundle, &spec);
        let _ = blocking(move || hooks::started(&told, &all.poststart, pid)).await;
    }

    /// Runs those that follow the end of a container.
    pub(super) async fn hooks_after(&self, container: &Container) {
        if container.role.owns_vm() {
            self.release_hooks();
        }
        let (directory, id) = (self.directory.clone(), container.id.clone());
        let _ = blocking(move || hooks::after(&directory, &id)).await;
    }

    /// Lets go of the namespace, with what hooks have put into it.
    pub(super) fn release_hooks(&self) {
        drop(self.way().holder.take());
    }

    fn way(&self) -> std::sync::MutexGuard<'_, Way> {
        lock(&self.way)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GuestError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| GuestError::new(ErrorCode::Internal, "hook", error))
}

/// The network namespace that a specification names. QEMU's own network is in none.
fn named(spec: &Spec) -> Option<PathBuf> {
    let mut all = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    let network = all.find(|one| one.kind == "network" && !one.path.is_empty())?;
    if network.path == network::USER {
        return None;
    }
    Some(PathBuf::from(&network.path))
}

fn name(spec: &mut Spec, path: &Path) {
    let all = spec
        .linux
        .iter_mut()
        .flat_map(|linux| &mut linux.namespaces);
    let is_namespace = |one: &&mut Namespace| one.kind == "network" && one.path != network::USER;
    for network in all.filter(is_namespace) {
        network.path = path.display().to_string();
    }
}
