//! Signals, and what ends a process that takes none.
//!
//! ```text
//! a signal to a first process ─► agent answers in STUCK ─► the process ends in UNKILLABLE ─► its end is told
//!                                  └─ it does not           └─ it does not, after SIGKILL
//!                                       └────────────► the VM is ended ◄┘   and with it every process of the pod
//! ```
//!
//! Which signal stops a container its image says, so none is told from another here. Who asks may give up sooner
//! than the guest is given up: what was begun goes on.
//!
//! containerd stops a pod by stopping its containers, and gives up at the first that cannot be. So a guest that
//! answers no more, or in which a process waits in the kernel for ever, would hold the pod and its memory until
//! somebody looks. What only the VM can end, ends with the VM; containerd is told of all its processes.

use std::sync::Arc;
use std::time::Duration;

use agent_api::{ErrorCode, GuestError};
use tokio::time::timeout;
use tracing::error;

use super::Tasks;
use crate::guest::{Guest, ProcessId};
use crate::process::{KILLED, Phase, Process};

/// Their numbers on every architecture of Linux.
pub(super) const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// How long an agent may take to pass a signal on. It takes milliseconds, under emulation too.
const STUCK: Duration = Duration::from_secs(15);
/// How long a container may take to die of SIGKILL. What its processes write to disks is let go, and the kernel has
/// its memory to free; what lasts longer waits for something that does not come.
const UNKILLABLE: Duration = Duration::from_secs(45);

impl Tasks {
    pub(super) async fn kill(
        self: &Arc<Self>,
        id: &str,
        exec: &str,
        signal: u32,
    ) -> Result<(), GuestError> {
        let (tasks, id, exec) = (Arc::clone(self), id.to_owned(), exec.to_owned());
        tokio::spawn(async move { tasks.pass_on(&id, &exec, signal).await })
            .await
            .map_err(|error| GuestError::new(ErrorCode::Internal, "kill", error))?
    }

    /// Passes a signal on to all further processes of a container, which go with the first where it is SIGKILL.
    /// Those that have ended meanwhile, or are not started, are passed over.
    pub(super) async fn kill_further(
        self: &Arc<Self>,
        id: &str,
        signal: u32,
    ) -> Result<(), GuestError> {
        if signal == SIGKILL {
            return Ok(());
        }
        for exec in self.containers.get(id)?.execs() {
            match self.kill(id, &exec, signal).await {
                Err(error)
                    if !matches!(
                        error.code,
                        ErrorCode::NotFound | ErrorCode::FailedPrecondition
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn pass_on(
        self: &Arc<Self>,
        id: &str,
        exec: &str,
        signal: u32,
    ) -> Result<(), GuestError> {
        let container = self.containers.get(id)?;
        let is_end = exec.is_empty() && matches!(signal, SIGKILL | SIGTERM);
        if !container.is_created() && is_end {
            container.cancel.cancel();
            container.settled.cancelled().await;
            if !container.is_created() {
                return Ok(());
            }
        }
        container.check_created("kill")?;
        let process = container.process(exec)?;
        match process.phase() {
            Phase::Exited(_) => {
                let text = format!("{} has ended", process.name());
                return Err(GuestError::new(ErrorCode::NotFound, "kill", text));
            }
            Phase::Created if !exec.is_empty() => {
                let text = format!("{} is not started", process.name());
                return Err(GuestError::new(ErrorCode::FailedPrecondition, "kill", text));
            }
            Phase::Created | Phase::Running => {}
        }
        let guest = match self.sandbox.guest() {
            Ok(guest) => guest,
            Err(_) => return Err(went(&process)),
        };
        // The agent ends by SIGKILL what does not handle SIGTERM.
        if is_end {
            container.reason.asked();
        }
        let signalled = match exec.is_empty() {
            true => self.signal_first(&process, &guest, signal).await,
            false => guest.signal_process(&process.id, signal).await,
        };
        // Its VM may end in the middle of this; the driver is about to say so where it has not yet.
        signalled.map_err(|error| match error.code {
            ErrorCode::VmmExited | ErrorCode::GuestPanicked => went(&process),
            _ => error,
        })?;
        if process.phase() == Phase::Created && signal == SIGKILL {
            // It never ran, so no one follows it.
            self.ended(&process, KILLED);
        }
        Ok(())
    }

    /// Signals a container's first process, and ends it with the VM if it must be.
    async fn signal_first(
        self: &Arc<Self>,
        process: &Arc<Process>,
        guest: &Guest,
        signal: u32,
    ) -> Result<(), GuestError> {
        let id = &process.id;
        match timeout(STUCK, guest.signal_process(id, signal)).await {
            Ok(answer) => answer?,
            Err(_) => {
                error!(
                    container = id.container,
                    signal, "the guest is stuck: its VM is ended"
                );
                self.sandbox.kill().await;
                return Ok(());
            }
        }
        if signal == SIGKILL && process.phase() == Phase::Running {
            let (tasks, id, guest) = (Arc::clone(self), id.clone(), guest.clone());
            tokio::spawn(async move { tasks.see_dead(&id, &guest).await });
        }
        Ok(())
    }

    /// Output that is read slowly keeps a process's end from being told, and not the process: what counts is what
    /// the guest says.
    async fn see_dead(&self, id: &ProcessId, guest: &Guest) {
        if timeout(UNKILLABLE, guest.wait_process(id)).await.is_err() {
            error!(
                container = id.container,
                "a process cannot be killed: its VM is ended"
            );
            self.sandbox.stop().await;
        }
    }
}

/// Without a VM there is no process: it has ended, and who follows it is about to say so.
fn went(process: &Process) -> GuestError {
    let text = format!("{} went with its VM", process.name());
    GuestError::new(ErrorCode::NotFound, "kill", text)
}
