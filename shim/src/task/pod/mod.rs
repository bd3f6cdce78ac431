//! The pod as containerd's sandbox service has it: a VM without a sandbox container.
//!
//! ```text
//!   CreateSandbox ─► what the pod is to be ─► StartSandbox ─► VM ─► tasks of its containers ─► ShutdownSandbox
//!                                                │                    (the task service)
//!                                                └─► a process that waits, where the pod shares its processes
//! ```
//!
//! What the pod is to be arrives as the container runtime interface has it, and is made into the specification
//! of a sandbox container: the way from there is that of a pod with one. A container of the host's is in none
//! of it: no image, no bundle of its own, and no process but where processes need a parent.

mod files;
pub mod service;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use agent_api::{ErrorCode, GuestError};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::mount::Mount;
use tracing::{info, warn};

use super::make::make;
use super::{CreateRequest, Tasks};
use crate::cgroup;
use crate::container::Container;
use crate::guest::ProcessId;
use crate::io::Stdio;
use crate::process::{Exit, KILLED, Phase, Process};
use crate::spec::cri::{self, PodConfig};
use crate::spec::group::{self, Role};
use crate::spec::{self, Spec, oci, refuse};
use crate::stats::{self, CgroupMode};
use files::Files;

const PHASE: &str = "sandbox";

/// What containerd asks for.
#[derive(Debug)]
pub(super) struct PodRequest {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: Vec<Mount>,
    /// The pod's configuration.
    pub(super) options: Option<Any>,
    pub(super) netns: String,
    pub(super) annotations: HashMap<String, String>,
}

/// A pod that was asked for.
#[derive(Debug)]
pub(super) struct Pod {
    /// It stands for the pod, and is none of the tasks. Its process is the pod's life.
    container: Container,
    request: CreateRequest,
    spec: Spec,
    files: Files,
    /// Whether a process is to be there that the others' PID namespace begins with.
    waits: bool,
    created_at: SystemTime,
}

/// Where a pod is.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodStatus {
    pub(super) phase: Phase,
    pub(super) pid: u32,
    pub(super) created_at: SystemTime,
}

impl Tasks {
    /// Decides what the pod is to be. Nothing of it is there yet.
    pub(super) async fn create_pod(&self, request: PodRequest) -> Result<(), GuestError> {
        if request.id != self.sandbox_id {
            let text = format!("sandbox {} is not {}", request.id, self.sandbox_id);
            return Err(GuestError::new(ErrorCode::InvalidArgument, PHASE, text));
        }
        let config = pod_config(request.options.as_ref())?;
        let spec = config.spec(cri::Place {
            id: &request.id,
            namespace: &self.directory.namespace(),
            netns: &request.netns,
            annotations: &request.annotations,
        });
        refuse::check(&spec)
            .map_err(|error| GuestError::new(ErrorCode::FailedPrecondition, "spec", error))?;
        let id = ProcessId {
            container: request.id.clone(),
            exec: String::new(),
        };
        let init = Process::new(id, Stdio::default(), None);
        let container = Container::new(&request.id, request.bundle.clone(), Role::Sandbox, init);
        let request = CreateRequest {
            id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            stdio: Stdio::default(),
            options: None,
        };
        // What is wrong with it is told before a network or a VM waits for it.
        self.config(&request, &Role::Sandbox, &spec).await?;
        let has_sysctls = |spec: &Spec| {
            spec.linux
                .as_ref()
                .is_some_and(|all| !all.sysctl.is_empty())
        };
        let files = Files::new(&self.directory, &config);
        let shm = files.shm();
        let pod = Pod {
            files,
            waits: config.shares_processes() || has_sysctls(&spec),
            container,
            request,
            spec,
            created_at: SystemTime::now(),
        };
        if !self.containers.all().is_empty() {
            let text = format!(
                "sandbox {} has tasks, and came without this service",
                self.sandbox_id
            );
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        }
        self.pod.set(Arc::new(pod)).map_err(|_| {
            let text = format!("sandbox {} exists", self.sandbox_id);
            GuestError::new(ErrorCode::AlreadyExists, PHASE, text)
        })?;
        self.containers.hold();
        let _ = self.shm.set(shm);
        Ok(())
    }

    /// The pod of this id.
    fn pod(&self, id: &str) -> Result<Arc<Pod>, GuestError> {
        let pod = self.pod.get().filter(|_| id == self.sandbox_id);
        pod.cloned().ok_or_else(|| {
            let text = format!("there is no sandbox {id}");
            GuestError::new(ErrorCode::NotFound, PHASE, text)
        })
    }

    /// Boots the VM, and returns when the pod can have containers.
    pub(super) async fn start_pod(self: Arc<Self>, id: String) -> Result<PodStatus, GuestError> {
        let pod = self.pod(&id)?;
        let turn = pod.container.init.turn.lock().await;
        pod.container.init.check_startable()?;
        let started = tokio::select! {
            biased;
            () = pod.container.cancel.cancelled() => Err(pod.container.cancelled()),
            started = self.start_steps(&pod) => started,
        };
        if let Err(error) = started {
            warn!(%error, "the sandbox does not start");
            self.sandbox.stop().await;
            pod.container.init.exited(KILLED);
            return Err(error);
        }
        pod.container.init.started();
        drop(turn);
        tokio::spawn(Arc::clone(&self).follow_pod(Arc::clone(&pod)));
        info!("{}", self.timeline.line(&id));
        self.telemetry.started(&self.timeline.phases(&id));
        self.pod_status(&id)
    }

    async fn start_steps(self: &Arc<Self>, pod: &Pod) -> Result<(), GuestError> {
        pod.files.write().map_err(|error| {
            GuestError::new(
                ErrorCode::Internal,
                PHASE,
                format!("the pod's files: {error}"),
            )
        })?;
        let mut spec = pod.spec.clone();
        pod.files.add_to(&mut spec);
        waiter(&mut spec);
        let ready = self.make_ready(&pod.container, &pod.request, spec).await?;
        if pod.waits {
            let made = make(&ready.guest, &pod.container, ready.new, ready.within).await;
            self.timeline.made(&pod.container.id);
            made?;
            ready.guest.start_container(&pod.container.id).await?;
        }
        Ok(())
    }

    /// Notes the pod's end, whoever brought it about.
    async fn follow_pod(self: Arc<Self>, pod: Arc<Pod>) {
        self.sandbox.ended().await;
        let was_asked = pod.container.cancel.is_cancelled();
        pod.container
            .init
            .exited(if was_asked { 0 } else { KILLED });
    }

    /// Ends the VM, with all that runs in it. Can be asked for any number of times. It takes no longer than a
    /// guest may take that does not answer; then it is killed.
    pub(super) async fn stop_pod(self: Arc<Self>, id: String) -> Result<(), GuestError> {
        let pod = self.pod(&id)?;
        pod.container.cancel.cancel();
        // One that is being started ends first.
        let _turn = pod.container.init.turn.lock().await;
        self.sandbox.stop().await;
        pod.container.init.exited(0);
        Ok(())
    }

    /// Waits for the pod's end.
    pub(super) async fn wait_pod(&self, id: &str) -> Result<Exit, GuestError> {
        Ok(self.pod(id)?.container.init.wait().await)
    }

    /// Where the pod is.
    pub(super) fn pod_status(&self, id: &str) -> Result<PodStatus, GuestError> {
        let pod = self.pod(id)?;
        Ok(PodStatus {
            phase: pod.container.init.phase(),
            pid: self.pid(),
            created_at: pod.created_at,
        })
    }

    /// Ends the pod and the shim. One that was never made ends too: nobody would ask again.
    pub(super) async fn shutdown_pod(self: Arc<Self>, id: String) -> Result<(), GuestError> {
        if id == self.sandbox_id && self.pod.get().is_none() {
            if self.containers.close_if_empty() {
                return Ok(());
            }
            let text = format!("sandbox {id} came without this service: delete its tasks");
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        }
        Arc::clone(&self).stop_pod(id).await?;
        self.containers.close();
        Ok(())
    }

    /// Checks that there is such a pod, and that its VM has not ended.
    pub(super) fn check_pod(&self, id: &str) -> Result<(), GuestError> {
        match self.pod(id)?.container.init.phase() {
            Phase::Created | Phase::Running => Ok(()),
            Phase::Exited(_) => {
                let text = format!("sandbox {id} has ended");
                Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text))
            }
        }
    }

    /// What the pod costs the host, as the host's cgroup of the pod counts it.
    pub(super) fn pod_metrics(&self, id: &str) -> Result<Any, GuestError> {
        self.pod(id)?;
        let usage = cgroup::usage(&self.directory).ok_or_else(|| {
            let text =
                "the pod has no cgroup on the host that counts: set sandbox_cgroup_only = true";
            GuestError::new(ErrorCode::FailedPrecondition, "stats", text)
        })?;
        stats::pack(CgroupMode::of_host(), &usage)
            .map_err(|error| GuestError::new(ErrorCode::Internal, "stats", error))
    }

    /// A container's specification, and what it is in its pod. One of a pod that came by this service is given
    /// what no container engine did, and the role that nobody wrote down where `ctr` makes it.
    pub(super) fn read(&self, id: &str, bundle: &Path) -> Result<(Role, Spec), GuestError> {
        let invalid = |error: &dyn std::fmt::Display| {
            GuestError::new(ErrorCode::InvalidArgument, "create", error)
        };
        let mut spec = spec::read(bundle).map_err(|error| invalid(&error))?;
        let role = group::role(&spec.annotations).map_err(|error| invalid(&error))?;
        let Some(pod) = self.pod.get() else {
            return Ok((role, spec));
        };
        if role == Role::Sandbox || id == self.sandbox_id {
            let text = format!("container {id} would be the sandbox, which is there");
            return Err(GuestError::new(ErrorCode::AlreadyExists, "create", text));
        }
        pod.files.add_to(&mut spec);
        let role = match role {
            Role::Single => Role::Member {
                sandbox: self.sandbox_id.clone(),
            },
            role => role,
        };
        Ok((role, spec))
    }
}

/// The pod's configuration; a client of the bare service may give none.
fn pod_config(options: Option<&Any>) -> Result<PodConfig, GuestError> {
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else {
        return Ok(PodConfig::default());
    };
    PodConfig::read(&options.type_url, &options.value)
        .map_err(|error| GuestError::new(ErrorCode::InvalidArgument, PHASE, error))
}

/// Where the agent's own program waits in the place of a container's: what libcontainer wants of every root.
fn waiter(spec: &mut Spec) {
    for (kind, destination, option) in [("proc", "/proc", "nodev"), ("tmpfs", "/dev", "mode=755")] {
        spec.mounts.push(oci::Mount {
            destination: destination.to_owned(),
            source: kind.to_owned(),
            kind: kind.to_owned(),
            options: ["nosuid", "noexec", option].map(str::to_owned).to_vec(),
            ..oci::Mount::default()
        });
    }
    let root = spec.root.get_or_insert_default();
    root.readonly = true;
    let process = spec.process.get_or_insert_default();
    process.cwd = "/".to_owned();
    process.no_new_privileges = true;
}
