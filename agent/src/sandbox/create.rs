//! How a container comes to be: id, storages, root file system, specification, libcontainer; and back,
//! when one of these steps fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use agent_api::{ErrorCode, GuestError, Phase, agent, oci};

use super::bundle::save;
use super::making::{self, Maker, Making};
use super::root::Root;
use super::{MAX_CONTAINERS, STDIO_PORTS, Sandbox, Slot};
use crate::cgroup::Cgroup;
use crate::container::{Container, Parts, apply_user, remove_state};
use crate::fault::{OrFail, invalid, unimplemented};
use crate::gate::Allowed;
use crate::path::{self, check_container_id};
use crate::process::Process;
use crate::spec::{self, Place};
use crate::storage::Held;
use crate::trace::PullTrace;
use crate::users::{Map, Namespace};
use crate::{image, oom, pause, sealed, user, workload};

impl Sandbox {
    /// Makes a container; its process waits for [`Sandbox::start_container`]. Ends early when the container
    /// is to be removed, or when nobody waits for this any more: ttRPC drops a call whose time is over.
    ///
    /// # Errors
    ///
    /// The step that failed. Nothing is left of the container then.
    pub async fn create_container(
        self: &Arc<Self>,
        request: Allowed<agent::CreateContainerRequest>,
        trace: Option<PullTrace>,
    ) -> Result<(), GuestError> {
        let id = request.container_id.clone();
        check_container_id("create", &id)?;
        self.check_created("create")?;
        refuse_unsupported(&request)?;
        let (making, maker) = making::pair();
        let _abandon = making.abandon();
        self.reserve(&id, making)?;
        let maker = maker.traced(trace);
        let (sandbox, request) = (Arc::clone(self), request.into_request());
        // What was begun is undone also when this call is dropped.
        tokio::spawn(async move { sandbox.make_or_undo(id, request, maker).await })
            .await
            .or_internal("create", "the task ended")?
    }

    async fn make_or_undo(
        &self,
        id: String,
        request: agent::CreateContainerRequest,
        maker: Maker,
    ) -> Result<(), GuestError> {
        let began = Instant::now();
        let mut storages = Held::default();
        let error = match self.make(request, &mut storages, &maker).await {
            Ok(container) => match self.keep(&id, container, &maker) {
                None => {
                    self.tell(Phase::Create, began, &id);
                    return Ok(());
                }
                Some(unwanted) => {
                    if let Err(error) = unwanted.remove().await {
                        tracing::warn!(container = id, %error, "not wanted any more");
                    }
                    storages.extend(&*unwanted.held().lock().await);
                    let message = format!("container {id} is not wanted any more");
                    GuestError::new(ErrorCode::Cancelled, "create", message)
                }
            },
            Err(error) => error,
        };
        // The id stays taken until nothing is left of it.
        self.undo(&id, &mut storages).await;
        self.containers().remove(&id);
        Err(error)
    }

    /// Puts the container in its place, or gives it back when it is not wanted any more.
    fn keep(&self, id: &str, container: Container, maker: &Maker) -> Option<Container> {
        let mut containers = self.containers();
        if maker.is_cancelled() {
            return Some(container);
        }
        containers.insert(id.to_owned(), Slot::Made(Arc::new(container)));
        None
    }

    async fn make(
        &self,
        mut request: agent::CreateContainerRequest,
        storages: &mut Held,
        maker: &Maker,
    ) -> Result<Container, GuestError> {
        let id = std::mem::take(&mut request.container_id);
        let bundle = bundle(&id);
        fs::create_dir_all(&bundle).or_internal("create", bundle.display())?;
        let asked = &request.OCI.Linux.Resources.HugepageLimits;
        storages.pages = self.pages.reserve(asked).await?;
        let shared = self.users_of(&request).await?;
        let users = shared.as_deref();
        let owner = users.map(|users| users.map().root()).unwrap_or_default();
        let root = self.root(&id, &request, storages, maker, users).await?;
        let oci = request.OCI.mut_or_insert_default();
        let process = oci.Process.mut_or_insert_default();
        if let Root::Pulled(rootfs) = &root {
            image::fill_process(process, &rootfs.config)?;
            image::make_volumes(&rootfs.path, &rootfs.config, owner)?;
        }
        let sealed = sealed::open_environment(self.images.hub(), &mut process.Env, &[]).await?;
        if process.Args.is_empty() && !matches!(root, Root::Pause(_)) {
            return Err(invalid("create", "OCI.Process.Args is empty"));
        }
        apply_user(root.path(), request.string_user.as_ref(), process)?;
        if users.is_some() {
            user::fill_home(root.path(), process)?;
        }
        if !matches!(root, Root::Pause(_)) {
            path::make_in_root(root.path(), Path::new(&process.Cwd), owner).or_fail(
                ErrorCode::InvalidArgument,
                "create",
                format!("working directory {}", process.Cwd),
            )?;
        }
        let terminal = process.Terminal;
        let first = process.clone();
        let cgroup = Cgroup::of(&id);
        let joined = self.joined_pid_namespace(oci, request.sandbox_pidns)?;
        let place = Place {
            root: root.path(),
            cgroup: cgroup.name(),
            pid_namespace: joined.as_deref(),
        };
        if matches!(root, Root::Pause(_)) {
            // Its process is the agent's own, for whose system calls no profile was written.
            oci.Linux.mut_or_insert_default().Seccomp.take();
        }
        let filtered = oci.Linux.Seccomp.is_some();
        let wanted = &mut oci.Linux.mut_or_insert_default().Devices;
        let nodes = self.disks.nodes(&request.devices, wanted, storages).await?;
        let disks: Vec<_> = nodes.iter().map(|node| node.access).collect();
        let mut confined = spec::confine(oci, place)?;
        workload::mount_sockets(self.images.workload_api(), &mut confined.spec);
        if let Some(linux) = confined
            .spec
            .linux_mut()
            .as_mut()
            .filter(|_| !nodes.is_empty())
        {
            linux.set_devices(Some(nodes.into_iter().map(|node| node.device).collect()));
        }
        for (name, value) in &confined.sysctls {
            self.users.set_sysctl(name, value)?;
        }
        save(&mut confined.spec, &id, root.path(), users)?;
        let init = match &root {
            Root::Pause(_) => self.runtime.pause(&id, &bundle).await?,
            Root::Shared(_) | Root::Pulled(_) => {
                self.runtime.create(&id, &bundle, terminal).await?
            }
        };
        // Its process waits, and has opened nothing yet.
        cgroup.confine(&disks).or_internal("create", "devices")?;
        if request.sandbox_pidns || matches!(root, Root::Pause(_)) {
            self.share_pid_namespace(&init);
        }
        let oom = oom::watch(&id, &cgroup, self.oom_sender.clone())
            .map_err(|error| tracing::warn!(%error, "memory is not watched"))
            .ok();
        let storages = std::mem::take(storages);
        let (root, layers) = root.into_parts();
        Ok(Container::new(Parts {
            id,
            root,
            bundle,
            cgroup,
            process: first,
            sealed,
            annotations: oci.Annotations.clone().into_iter().collect(),
            init,
            filtered,
            users: shared,
            storages,
            layers,
            oom,
            joins_pid: joined.is_some(),
        }))
    }

    /// The user namespace of a container that is to have one. The process of the sandbox container is the agent's own.
    async fn users_of(
        &self,
        request: &agent::CreateContainerRequest,
    ) -> Result<Option<Arc<Namespace>>, GuestError> {
        let map = Map::of(&request.OCI.Linux)?;
        match map.filter(|_| !pause::is_sandbox(&request.OCI.Annotations)) {
            Some(map) => self.users.get(&self.runtime, map).await.map(Some),
            None => Ok(None),
        }
    }

    /// Takes away what a container that could not be made has left.
    async fn undo(&self, id: &str, storages: &mut Held) {
        if let Err(error) = Cgroup::of(id).remove().await {
            tracing::warn!(container = id, %error, "cgroup left behind");
        }
        if let Err(error) = remove_state(id.to_owned(), bundle(id)).await {
            tracing::warn!(container = id, %error, "state left behind");
        }
        // A warning says what is not let go; the disk's address is looked at before it is used again.
        let _ = self.let_go(storages).await;
        self.content().release(id);
    }

    fn reserve(&self, id: &str, making: Making) -> Result<(), GuestError> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            let message = format!("container {id} exists");
            return Err(GuestError::new(ErrorCode::AlreadyExists, "create", message));
        }
        if containers.len() >= MAX_CONTAINERS {
            let message = format!("more than {MAX_CONTAINERS} containers");
            return Err(GuestError::new(
                ErrorCode::ResourceExhausted,
                "create",
                message,
            ));
        }
        containers.insert(id.to_owned(), Slot::Making(making));
        Ok(())
    }

    /// The PID namespace that a container is to join: the pod's, or that of another container, which is named
    /// by its bundle.
    fn joined_pid_namespace(
        &self,
        oci: &oci::Spec,
        with_pod: bool,
    ) -> Result<Option<String>, GuestError> {
        if with_pod {
            let shared = self
                .pid_namespace
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            return Ok(shared.clone());
        }
        let mut namespaces = oci.Linux.Namespaces.iter();
        let named =
            namespaces.find(|namespace| namespace.Type == "pid" && !namespace.Path.is_empty());
        let Some(named) = named else { return Ok(None) };
        let other = Path::new(&named.Path)
            .strip_prefix(path::BASE)
            .ok()
            .and_then(Path::to_str)
            .ok_or_else(|| invalid("create", format!("{} is no container", named.Path)))?;
        let process = self.container(other)?.process("")?;
        Ok(Some(namespace_of(&process)))
    }

    /// The pod's sandbox container brings the namespace, or else the first that shares.
    fn share_pid_namespace(&self, init: &Process) {
        let mut shared = self
            .pid_namespace
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        shared.get_or_insert_with(|| namespace_of(init));
    }
}

fn refuse_unsupported(request: &agent::CreateContainerRequest) -> Result<(), GuestError> {
    let unsupported = [
        (!request.shared_mounts.is_empty(), "shared_mounts"),
        (request.stdin_port != 0, STDIO_PORTS),
        (request.stdout_port != 0, STDIO_PORTS),
        (request.stderr_port != 0, STDIO_PORTS),
    ];
    match unsupported.iter().find(|(present, _)| *present) {
        Some((_, what)) => Err(unimplemented("create", format!("not supported: {what}"))),
        None => Ok(()),
    }
}

/// The PID namespace of a process.
fn namespace_of(process: &Process) -> String {
    let pid = process.child().pid().as_raw_nonzero();
    format!("/proc/{pid}/ns/pid")
}

pub(super) fn bundle(id: &str) -> PathBuf {
    Path::new(path::BASE).join(id)
}
