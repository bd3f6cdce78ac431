//! A container's hooks, at the moments of its life.

use std::path::{Path, PathBuf};

use agent_api::{ErrorCode, GuestError};

use super::{CreateRequest, Tasks};
use crate::container::Container;
use crate::hooks::{self, Holder};
use crate::spec::Spec;

impl Tasks {
    /// Runs the hooks that come before a container. One that brings the VM gets its network namespace from
    /// here, so that they find it and the VM is tied to what they make in it.
    pub(super) async fn hooks_before(
        &self,
        container: &Container,
        request: &CreateRequest,
        spec: &mut Spec,
    ) -> Result<(), GuestError> {
        if !hooks::any(spec) {
            return Ok(());
        }
        let mut pid = self.pid();
        if container.role.owns_vm() && hooks::any_before(spec) {
            let holder = Holder::start(named(spec).as_deref(), &self.directory)?;
            pid = holder.pid();
            name(spec, &holder.namespace());
            *self.holder() = Some(holder);
        }
        let (directory, id) = (self.directory.clone(), container.id.clone());
        let (bundle, spec) = (request.bundle.clone(), spec.clone());
        blocking(move || hooks::before(&directory, &id, &bundle, &spec, pid)).await?
    }

    /// Runs those that follow the start of a container.
    pub(super) async fn hooks_started(&self, container: &Container) {
        let Ok(spec) = crate::spec::read(&container.bundle) else {
            return;
        };
        let Some(all) = spec.hooks.clone().filter(|all| !all.poststart.is_empty()) else {
            return;
        };
        let told = hooks::told(&container.id, &container.bundle, &spec);
        let (directory, pid) = (self.directory.clone(), self.pid());
        let _ = blocking(move || hooks::started(&directory, &told, &all.poststart, pid)).await;
    }

    /// Runs those that follow the end of a container.
    pub(super) async fn hooks_after(&self, container: &Container) {
        if container.role.owns_vm() {
            // With it goes the namespace, and what hooks have put into it.
            drop(self.holder().take());
        }
        let (directory, id) = (self.directory.clone(), container.id.clone());
        let _ = blocking(move || hooks::after(&directory, &id)).await;
    }

    fn holder(&self) -> std::sync::MutexGuard<'_, Option<Holder>> {
        self.holder
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GuestError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| GuestError::new(ErrorCode::Internal, "hook", error))
}

/// The network namespace that a specification names.
fn named(spec: &Spec) -> Option<PathBuf> {
    let mut all = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    let network = all.find(|one| one.kind == "network" && !one.path.is_empty())?;
    Some(PathBuf::from(&network.path))
}

fn name(spec: &mut Spec, path: &Path) {
    let all = spec
        .linux
        .iter_mut()
        .flat_map(|linux| &mut linux.namespaces);
    for network in all.filter(|one| one.kind == "network") {
        network.path = path.display().to_string();
    }
}
