//! The creation of a container: configuration, VM (for the first of a pod), root file system,
//! specification, and the guest's part. Every step that fails undoes those before it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use containerd_shim_protos::events::task as told;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::topics;
use containerd_shim_protos::types::mount::Mount;
use tracing::warn;

use super::Tasks;
use super::make::make;
use super::prepare::{Prepared, prepare};
use crate::container::Container;
use crate::creation::Step;
use crate::guest::{Guest, NewContainer, ProcessId};
use crate::idmap::Users;
use crate::io::{self, Stdio};
use crate::process::{KILLED, Phase, Process};
use crate::rootfs::{self, RootfsError, Shared, Source};
use crate::spec::group::Role;
use crate::spec::oci::IdMapping;
use crate::spec::pod::{self, Processes, Sibling};
use crate::spec::pod_name::PodName;
use crate::spec::size::Limits;
use crate::spec::{Spec, proto, refuse, users};
use crate::state_dir::is_plain_name;

/// What containerd asks for.
#[derive(Debug)]
pub struct CreateRequest {
    /// The container's id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The mounts of its root file system.
    pub rootfs: Vec<Mount>,
    /// Its stdio.
    pub stdio: Stdio,
    /// The runtime's options.
    pub options: Option<Any>,
}

/// What the guest is asked for.
pub(super) struct Ready {
    pub(super) guest: Guest,
    pub(super) new: NewContainer,
    /// What the host has mounted for it.
    shared: Option<Shared>,
    pub(super) within: Duration,
}

impl Tasks {
    /// Creates a container and returns its process id.
    pub(super) async fn create(self: Arc<Self>, request: CreateRequest) -> Result<u32, GuestError> {
        if !is_plain_name(&request.id) {
            let text = format!("{:?} is not an id", request.id);
            return Err(GuestError::new(ErrorCode::InvalidArgument, "create", text));
        }
        let (role, spec) = self.read(&request.id, &request.bundle)?;
        refuse::check(&spec)
            .map_err(|error| GuestError::new(ErrorCode::FailedPrecondition, "spec", error))?;
        if role.sandbox_of(&request.id) != self.sandbox_id {
            let text = format!(
                "container {} is not of sandbox {}",
                request.id, self.sandbox_id
            );
            return Err(GuestError::new(ErrorCode::InvalidArgument, "create", text));
        }
        let id = ProcessId {
            container: request.id.clone(),
            exec: String::new(),
        };
        let init = Process::new(id, request.stdio.clone(), None);
        let joins_pid = pod::joins(&spec);
        let container = Container::new(&request.id, request.bundle.clone(), role, init);
        let container = self.containers.insert(container.joining_pid(joins_pid))?;

        match self.create_steps(&container, &request, spec).await {
            Ok(shared) => {
                container.created(shared);
                container.settled.cancel();
                self.tell_created(&container, &request);
                if let Ok(guest) = self.sandbox.guest() {
                    tokio::spawn(Arc::clone(&self).guard_created(Arc::clone(&container), guest));
                }
                Ok(self.pid())
            }
            Err(error) => {
                warn!(%error, container = container.id, "create");
                self.undo_create(&container).await;
                container.settled.cancel();
                Err(error)
            }
        }
    }

    async fn create_steps(
        self: &Arc<Self>,
        container: &Container,
        request: &CreateRequest,
        spec: Spec,
    ) -> Result<Option<Shared>, GuestError> {
        let ready = tokio::select! {
            biased;
            () = container.cancel.cancelled() => return Err(container.cancelled()),
            ready = self.make_ready(container, request, spec) => ready?,
        };
        let began = Instant::now();
        let made = make(&ready.guest, container, ready.new, ready.within).await;
        self.timeline.made(&container.id);
        made?;
        self.timeline
            .note("create", began.elapsed(), Some(&container.id));
        Ok(ready.shared)
    }

    /// All that the guest needs for a container, and the guest.
    pub(super) async fn make_ready(
        self: &Arc<Self>,
        container: &Container,
        request: &CreateRequest,
        mut spec: Spec,
    ) -> Result<Ready, GuestError> {
        let config = self.config(request, &container.role, &spec).await?;
        let processes = self.processes(container)?;
        if container.role.owns_vm()
            && let Some(name) = PodName::of(&spec.annotations)
        {
            name.write(&self.directory);
        }
        if container.role == Role::Sandbox
            && let Some(shm) = pod::shm_source(&spec)
        {
            let _ = self.shm.set(shm);
        }
        self.hooks_before(container, request, &mut spec).await?;
        let shm = self.shm.get().map(String::as_str);
        let mut prepared = prepare(config, container, request, spec, shm)?;
        if let Processes::Of(other) = &processes {
            pod::join(&mut prepared.spec, other);
        }
        io::check(&container.init.stdio)?;
        self.disks.check_free(&prepared.disks).await?;
        if container.role.owns_vm() {
            container.note(|progress| progress.enter(Step::Boot));
            self.boot(container, &prepared).await?;
        }
        let guest = self.sandbox.guest()?;
        if container.role != Role::Sandbox {
            let linux = prepared.spec.linux.as_ref();
            let resources = linux.and_then(|linux| linux.resources.as_ref());
            container.limit(Limits::of(resources));
            self.fit_vm().await?;
        }
        let orders = self.attach_disks(container, &mut prepared).await?;
        let shared = self.share(container, request, &mut prepared).await?;
        container.note(|progress| progress.enter(Step::Make));
        self.fill_slots(&guest, container, &mut prepared).await?;
        let image = match &prepared.source {
            Source::GuestPull { image, metadata } => {
                // A pod's sandbox container has nothing to pull.
                if container.role != Role::Sandbox {
                    container.note(|progress| progress.pull(image));
                }
                Some(rootfs::guest_pull_storage(image, metadata, &container.id))
            }
            Source::Host | Source::Disk(..) | Source::Layers(_) => None,
        };
        let volumes = std::mem::take(&mut prepared.storages);
        let volumes = orders.storages.into_iter().chain(volumes);
        let new = NewContainer {
            id: container.id.clone(),
            storages: image.into_iter().chain(volumes).collect(),
            devices: orders.devices,
            spec: proto::spec(&prepared.spec),
            sandbox_pidns: processes == Processes::Pod,
            trace: self.timeline.making(&container.id),
        };
        Ok(Ready {
            guest,
            new,
            shared,
            within: prepared.config.create_timeout,
        })
    }

    /// Whose processes a container sees.
    fn processes(&self, container: &Container) -> Result<Processes, GuestError> {
        let is_member = matches!(container.role, Role::Member { .. });
        if !is_member || !container.joins_pid {
            return Ok(Processes::Own);
        }
        let private: Vec<_> = self
            .containers
            .all()
            .iter()
            .filter(|other| matches!(other.role, Role::Member { .. }) && !other.joins_pid)
            .map(|other| Sibling {
                id: other.id.clone(),
                is_running: other.init.phase() == Phase::Running,
            })
            .collect();
        pod::processes(&private)
    }

    async fn boot(
        self: &Arc<Self>,
        container: &Container,
        prepared: &Prepared,
    ) -> Result<(), GuestError> {
        let plan = self.plan(container, prepared)?;
        self.sandbox.boot(plan).await?;
        if let Ok(guest) = self.sandbox.guest() {
            tokio::spawn(Arc::clone(self).watch_memory(guest));
        }
        Ok(())
    }

    /// Puts the host's files where the guest sees them, and their guest paths into the
    /// specification.
    async fn share(
        &self,
        container: &Container,
        request: &CreateRequest,
        prepared: &mut Prepared,
    ) -> Result<Option<Shared>, GuestError> {
        if prepared.source != Source::Host && prepared.binds.is_empty() {
            return Ok(None);
        }
        let (directory, id) = (self.directory.clone(), container.id.clone());
        let (mounts, bundle) = (request.rootfs.clone(), request.bundle.clone());
        let binds = prepared.binds.clone();
        let root = prepared.host_root.clone();
        let is_host = prepared.source == Source::Host;
        let users = mapped_binds(prepared);
        // Mounting may wait for a disk.
        let work = move || -> Result<(Shared, Vec<String>), RootfsError> {
            let mut shared = Shared::new(&directory, &id)?;
            if is_host {
                shared.mount_rootfs(&mounts, &bundle, &root)?;
            }
            let maps = users.is_mapped.contains(&true);
            let by = maps
                .then(|| Users::new(&users.uids, &users.gids))
                .transpose();
            let by = by.map_err(|error| RootfsError::Owners {
                path: bundle,
                cause: error.to_string(),
            })?;
            let paths = binds
                .iter()
                .zip(&users.is_mapped)
                .map(|(bind, is_mapped)| shared.share(bind, by.as_ref().filter(|_| *is_mapped)))
                .collect::<Result<_, _>>()?;
            Ok((shared, paths))
        };
        let (shared, paths) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| GuestError::new(ErrorCode::Internal, "rootfs", error))?
            .map_err(|error| rootfs::told(&error))?;
        for (bind, path) in prepared.binds.iter().zip(paths) {
            if let Some(mount) = prepared.spec.mounts.get_mut(bind.index) {
                mount.source = path;
            }
        }
        Ok(Some(shared))
    }

    fn tell_created(&self, container: &Container, request: &CreateRequest) {
        let event = told::TaskCreate {
            container_id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(told::TaskIO {
                stdin: request.stdio.stdin.clone(),
                stdout: request.stdio.stdout.clone(),
                stderr: request.stdio.stderr.clone(),
                terminal: request.stdio.terminal,
                ..Default::default()
            }),
            pid: self.pid(),
            ..Default::default()
        };
        self.events.publish(topics::TASK_CREATE_EVENT_TOPIC, &event);
    }

    async fn undo_create(&self, container: &Container) {
        if container.role.owns_vm() {
            self.sandbox.stop().await;
        }
        if container.has_slots()
            && let Ok(guest) = self.sandbox.guest()
        {
            // It may know no such container; the content goes all the same.
            let _ = guest.remove_container(&container.id).await;
        }
        if self.release_disks(container).await.is_err() {
            // Nobody else will ask again.
            let _ = self.release_disks(container).await;
        }
        container.unmount();
        self.hooks_after(container).await;
        self.containers.remove(&container.id);
        // Who waits for its end must not wait for ever.
        container.init.exited(KILLED);
    }
}

/// Which of the shared mounts have mapped owners, and how.
struct MappedBinds {
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
    is_mapped: Vec<bool>,
}

/// Takes from the guest what is done here.
fn mapped_binds(prepared: &mut Prepared) -> MappedBinds {
    let mounts = &mut prepared.spec.mounts;
    let is_mapped = prepared.binds.iter().map(|bind| {
        let mount = mounts.get_mut(bind.index);
        mount.is_some_and(users::unmark)
    });
    let is_mapped = is_mapped.collect();
    let linux = prepared.spec.linux.clone().unwrap_or_default();
    MappedBinds {
        uids: linux.uid_mappings,
        gids: linux.gid_mappings,
        is_mapped,
    }
}
