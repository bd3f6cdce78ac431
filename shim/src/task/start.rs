//! The start of a container's first process, or of a further one.

use std::sync::Arc;

use agent_api::GuestError;
use containerd_shim_protos::events::task as told;
use containerd_shim_protos::topics;
use tracing::info;

use super::kill::SIGKILL;
use super::{Tasks, terminal};
use crate::guest::Guest;
use crate::io::{self, Connections, Copies, Owner, Streams};
use crate::process::Process;
use crate::spec::group::Role;
use crate::spec::proto;

impl Tasks {
    /// Starts a container's first process, or a further one.
    pub(super) async fn start(
        self: Arc<Self>,
        id: String,
        exec: String,
    ) -> Result<u32, GuestError> {
        let is_first = exec.is_empty();
        let telemetry = self.telemetry.clone();
        let started = self.start_process(id, exec).await;
        // An exec that fails is no start.
        started.inspect_err(|error| {
            if is_first {
                telemetry.failed(error.code);
            }
        })
    }

    async fn start_process(self: Arc<Self>, id: String, exec: String) -> Result<u32, GuestError> {
        let container = self.containers.get(&id)?;
        container.check_created("start")?;
        let process = container.process(&exec)?;
        let turn = process.turn.lock().await;
        process.check_startable()?;
        // It would join those that stand still, and its start would wait with them.
        container.check_not_paused("start")?;
        let guest = self.sandbox.guest()?;
        let began = std::time::Instant::now();
        let pid = self.pid();
        let owner = Owner {
            namespace: self.directory.namespace(),
            id: match exec.as_str() {
                "" => id.clone(),
                exec => exec.to_owned(),
            },
        };
        let (streams, stdin) = io::open(&process.stdio, &owner).await?;
        process.hold_stdin(stdin);
        let connections = if exec.is_empty() {
            let connections = Connections::open(&guest, &process.id, &streams).await?;
            let is_last_look = container.role != Role::Sandbox;
            self.sandbox.look_at_network(&guest, is_last_look).await?;
            guest.start_container(&id).await?;
            self.timeline.note("start", began.elapsed(), Some(&id));
            info!("{}", self.timeline.line(&id));
            self.telemetry.started(&self.timeline.phases(&id));
            connections
        } else {
            exec_process(&guest, &process, &streams).await?
        };
        let copies = Copies::start(streams, connections, &guest, &process.id);
        process.started();
        self.tell_started(&process, pid);
        drop(turn);
        if exec.is_empty() {
            // Who asked for the start, and the container's end, wait for no program of the host.
            let (tasks, container) = (Arc::clone(&self), Arc::clone(&container));
            tokio::spawn(async move { tasks.hooks_started(&container).await });
            // What the way to here took is not needed to stay here.
            tokio::task::spawn_blocking(footprint::give_back);
        }
        tokio::spawn(self.follow(container, process, guest, copies));
        Ok(pid)
    }

    fn tell_started(&self, process: &Process, pid: u32) {
        let container_id = process.id.container.clone();
        if process.id.exec.is_empty() {
            let event = told::TaskStart {
                container_id,
                pid,
                ..Default::default()
            };
            self.events.publish(topics::TASK_START_EVENT_TOPIC, &event);
        } else {
            let exec_id = process.id.exec.clone();
            let event = told::TaskExecStarted {
                container_id,
                exec_id,
                pid,
                ..Default::default()
            };
            self.events
                .publish(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        }
    }
}

/// Starts a further process. One whose streams cannot be had does not go on.
async fn exec_process(
    guest: &Guest,
    process: &Process,
    streams: &Streams,
) -> Result<Connections, GuestError> {
    let spec = process.spec.as_ref().map(proto::process);
    guest
        .exec_process(&process.id, spec.unwrap_or_default())
        .await?;
    terminal::sized(guest, process).await;
    let opened = Connections::open(guest, &process.id, streams).await;
    if opened.is_err() {
        let _ = guest.signal_process(&process.id, SIGKILL).await;
    }
    opened
}
