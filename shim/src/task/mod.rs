//! containerd's task service: a request comes in, the sandbox or the guest does the work, an answer
//! goes out. What is here decides; [`service`] only translates messages.

mod create;
mod disks;
mod grow;
mod hooked;
mod kill;
mod make;
mod monitored;
pub mod observed;
pub(crate) mod options;
mod plan;
pub mod pod;
mod prepare;
pub mod service;
mod settings;
mod start;
mod terminal;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use containerd_shim_protos::events::task as told;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::topics;
use tracing::{debug, info, warn};

use crate::clock;
use crate::container::Container;
use crate::containers::{Containers, Patience};
use crate::event::Publisher;
use crate::exposition;
use crate::guest::{Guest, ProcessId};
use crate::io::{Copies, Stdio};
use crate::process::{Exit, KILLED, Phase, Process, exit_status};
use crate::sandbox::Sandbox;
use crate::spec::oci;
use crate::state_dir::{StateDir, is_plain_name};
use crate::stats::{self, CgroupMode};
use crate::telemetry::Telemetry;
use crate::timeline::Timeline;

pub use create::CreateRequest;

/// The tasks of one sandbox.
#[derive(Debug)]
pub struct Tasks {
    sandbox_id: String,
    directory: StateDir,
    sandbox: Sandbox,
    containers: Containers,
    events: Publisher,
    timeline: Timeline,
    telemetry: Telemetry,
    /// What was taken of the guest's metrics.
    guests: std::sync::Mutex<exposition::Guests>,
    config: tokio::sync::OnceCell<crate::config::Config>,
    config_variable: Option<PathBuf>,
    /// The host's directory that is the pod's `/dev/shm`.
    shm: std::sync::OnceLock<String>,
    /// What of a grown VM is in use.
    online: grow::Online,
    /// The disks of the host that the VM has.
    disks: crate::disk::Table,
    /// The pod, where it came by the sandbox service.
    pod: std::sync::OnceLock<Arc<pod::Pod>>,
    /// Holds the namespaces that hooks are led to.
    way: std::sync::Mutex<hooked::Way>,
}

impl Tasks {
    /// The tasks of a sandbox that has none yet. `config_variable` is the configuration file that
    /// the environment names.
    #[must_use]
    pub fn new(
        sandbox_id: &str,
        directory: StateDir,
        events: Publisher,
        config_variable: Option<PathBuf>,
    ) -> Arc<Self> {
        let telemetry = Telemetry::new(directory.clone());
        let timeline = Timeline::new(sandbox_id, directory.clone(), telemetry.clone());
        Arc::new(Self {
            sandbox_id: sandbox_id.to_owned(),
            sandbox: Sandbox::new(timeline.clone()),
            telemetry,
            directory,
            containers: Containers::default(),
            events,
            timeline,
            guests: std::sync::Mutex::default(),
            config: tokio::sync::OnceCell::new(),
            config_variable,
            shm: std::sync::OnceLock::new(),
            online: grow::Online::default(),
            disks: crate::disk::Table::default(),
            pod: std::sync::OnceLock::new(),
            way: std::sync::Mutex::default(),
        })
    }

    /// What is counted of it.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The process id that stands for every process of the sandbox on the host: the VMM's.
    fn pid(&self) -> u32 {
        self.sandbox.view().pid.unwrap_or_default()
    }

    /// Waits for a process's end, then for the last of its output, then tells containerd.
    async fn follow(
        self: Arc<Self>,
        container: Arc<Container>,
        process: Arc<Process>,
        guest: Guest,
        copies: Copies,
    ) {
        let status = match guest.wait_process(&process.id).await {
            Ok(status) => {
                let status = exit_status(status);
                if process.id.exec.is_empty() && status == KILLED {
                    container.reason.told().await;
                }
                status
            }
            Err(error) => {
                warn!(%error, container = process.id.container, exec = process.id.exec, "the process is lost");
                KILLED
            }
        };
        copies.finish().await;
        if process.id.exec.is_empty() {
            volumes::bring_back_message(&container, &guest).await;
        }
        self.ended(&process, status);
        if process.id.exec.is_empty() && container.role.owns_vm() {
            // Nothing can be done with the VM any more; its memory is better used by others.
            self.sandbox.stop().await;
        }
    }

    /// Tells containerd of a container that loses its VM before it is started.
    async fn guard_created(self: Arc<Self>, container: Arc<Container>, guest: Guest) {
        let init = &container.init;
        tokio::select! {
            biased;
            () = init.moved_on() => {}
            // Whatever ended it: a signal that is no SIGKILL, or the guest.
            Ok(status) = guest.wait_process(&init.id) => {
                // One that is being started is followed by who starts it.
                let _turn = init.turn.lock().await;
                if init.phase() == Phase::Created {
                    self.ended(init, exit_status(status));
                }
            }
            cause = guest.gone() => {
                warn!(%cause, container = container.id, "the container is lost");
                self.ended(&container.init, KILLED);
            }
        }
    }

    fn ended(&self, process: &Process, status: u32) {
        let pid = self.pid();
        if !process.exited(status) {
            return;
        }
        process.release_stdin();
        let id = match process.id.exec.as_str() {
            "" => process.id.container.clone(),
            exec => exec.to_owned(),
        };
        debug!(
            container = process.id.container,
            exec = process.id.exec,
            status,
            "exit"
        );
        let event = told::TaskExit {
            container_id: process.id.container.clone(),
            id,
            pid,
            exit_status: status,
            exited_at: MessageField::some(clock::timestamp(std::time::SystemTime::now())),
            ..Default::default()
        };
        self.events.publish(topics::TASK_EXIT_EVENT_TOPIC, &event);
    }

    fn exec(
        &self,
        id: &str,
        exec: &str,
        stdio: Stdio,
        spec: oci::Process,
    ) -> Result<(), GuestError> {
        if !is_plain_name(exec) {
            let text = format!("{exec:?} is not a name for a process");
            return Err(GuestError::new(ErrorCode::InvalidArgument, "exec", text));
        }
        let container = self.containers.get(id)?;
        container.check_created("exec")?;
        container.check_running("exec")?;
        container.check_not_paused("exec")?;
        let process = ProcessId {
            container: id.to_owned(),
            exec: exec.to_owned(),
        };
        container.add_process(Process::new(process, stdio, Some(spec)))?;
        let event = told::TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.events
            .publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    async fn delete(self: Arc<Self>, id: String, exec: String) -> Result<(Exit, u32), GuestError> {
        let container = self.containers.get(&id)?;
        let pid = self.pid();
        if !exec.is_empty() {
            let process = container.process(&exec)?;
            let exit = process.check_deletable()?.unwrap_or(never_ran());
            container.remove_process(&exec);
            return Ok((exit, pid));
        }
        if !container.is_created() {
            // Who creates it cleans up, and answers the one who asked for it. The answer waits for
            // that: the shim is asked to end next, and does so only with nothing left.
            container.cancel.cancel();
            container.settled.cancelled().await;
        }
        if !container.is_created() {
            let text = format!("the creation of container {id} was ended");
            return Err(GuestError::new(ErrorCode::NotFound, "delete", text));
        }
        let _turn = container.init.turn.lock().await;
        let exit = container.init.check_deletable()?.unwrap_or(never_ran());
        if let Ok(guest) = self.sandbox.guest() {
            match guest.remove_container(&id).await {
                Ok(()) => {}
                Err(error)
                    if error.code == ErrorCode::NotFound || self.sandbox.guest().is_err() => {}
                Err(error) => return Err(error),
            }
        }
        if container.role.owns_vm() {
            self.sandbox.stop().await;
        }
        self.release_disks(&container).await?;
        container.unmount();
        self.hooks_after(&container).await;
        self.containers.remove(&id);
        // Who waits for one that never ran must not wait for ever.
        container.init.exited(exit.status);
        let event = told::TaskDelete {
            container_id: id.clone(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(clock::timestamp(exit.at)),
            ..Default::default()
        };
        self.events.publish(topics::TASK_DELETE_EVENT_TOPIC, &event);
        tokio::task::spawn_blocking(footprint::trim);
        Ok((exit, pid))
    }

    async fn set_paused(&self, id: &str, paused: bool) -> Result<(), GuestError> {
        let container = self.containers.get(id)?;
        container.check_running(if paused { "pause" } else { "resume" })?;
        let guest = self.sandbox.guest()?;
        let container_id = id.to_owned();
        if paused {
            guest.pause_container(id).await?;
            let event = told::TaskPaused {
                container_id,
                ..Default::default()
            };
            self.events.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        } else {
            guest.resume_container(id).await?;
            let event = told::TaskResumed {
                container_id,
                ..Default::default()
            };
            self.events
                .publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        }
        container.set_paused(paused);
        Ok(())
    }

    async fn stats(
        &self,
        id: &str,
    ) -> Result<containerd_shim_protos::protobuf::well_known_types::any::Any, GuestError> {
        let container = self.containers.get(id)?;
        container.check_created("stats")?;
        let stats = self.sandbox.guest()?.stats_container(id).await?;
        stats::pack(CgroupMode::of_host(), &stats)
            .map_err(|error| GuestError::new(ErrorCode::Internal, "stats", error))
    }

    /// Ends the shim, unless containers are left: each of a pod's containers asks for it.
    fn shutdown(&self) {
        if self.containers.close_if_empty() {
            info!(sandbox = self.sandbox_id, "shutdown");
        }
    }

    /// Waits for the end of the sandbox: asked for, or long without a container. Who asked for a
    /// container that failed ends the shim; where that one is gone too, as after a crash of
    /// containerd, nobody else does.
    pub async fn over(&self) {
        self.containers.closed(PATIENCE).await;
        info!(sandbox = self.sandbox_id, "no containers: the shim ends");
    }

    /// Ends the VM and removes what the sandbox has on the host.
    pub async fn close(&self) {
        self.sandbox.stop().await;
        for container in self.containers.all() {
            container.unmount();
            self.hooks_after(&container).await;
        }
        self.release_hooks();
        // With the directory goes the record of what was too busy to be removed when the VM ended.
        crate::cgroup::undo(&self.directory);
        if let Err(error) = self.directory.remove() {
            warn!(%error, path = %self.directory.path().display(), "remove the state directory");
        }
        self.events.flush().await;
        self.telemetry.flush().await;
    }

    /// Tells containerd of containers that run out of memory, until the guest is gone.
    async fn watch_memory(self: Arc<Self>, guest: Guest) {
        loop {
            match guest.oom_event().await {
                Ok(container_id) => {
                    info!(container = container_id, "out of memory");
                    let container = self.containers.get(&container_id);
                    let event = told::TaskOOM {
                        container_id,
                        ..Default::default()
                    };
                    self.events.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
                    if let Ok(container) = container {
                        if !self.events.has_listener() {
                            container.note_out_of_memory();
                        }
                        container.reason.ran_out();
                    }
                }
                Err(error) => return debug!(%error, "no more events of memory"),
            }
        }
    }
}

/// How long the shim waits for a container. containerd asks for the first within milliseconds of the
/// start, on a host that has them to spare; after the last it asks for the end.
const PATIENCE: Patience = Patience {
    first: Duration::from_secs(8),
    next: Duration::from_secs(3),
};

/// What is told of a process that was deleted before it ran.
fn never_ran() -> Exit {
    Exit {
        status: KILLED,
        at: std::time::SystemTime::now(),
    }
}
