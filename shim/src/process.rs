//! One process of a container: what containerd may do with it in each state.
//!
//! ```text
//!   Created ──start──► Running ──exit──► Exited
//!      └───────────────exit────────────────▲
//! ```

use std::time::SystemTime;

use agent_api::{ErrorCode, GuestError};
use tokio::sync::{Mutex, watch};

use crate::guest::ProcessId;
use crate::io::{StdinHolder, Stdio};
use crate::lock::lock;
use crate::spec::oci;

/// The status of a process that was killed with its VM: 128 + SIGKILL.
pub const KILLED: u32 = 137;

/// The status of a process as containerd has it, from what the agent answers.
#[must_use]
pub fn exit_status(status: i32) -> u32 {
    u32::try_from(status).unwrap_or(u32::from(u8::MAX))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + the signal.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Its width.
    pub columns: u32,
    /// Its height.
    pub rows: u32,
}

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Known, and not running yet.
    Created,
    /// Running.
    Running,
    /// Over.
    Exited(Exit),
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Its name in the guest.
    pub id: ProcessId,
    /// What containerd asked for.
    pub stdio: Stdio,
    /// Its description, for a further process that is not started yet.
    pub spec: Option<oci::Process>,
    phase: watch::Sender<Phase>,
    /// Held by the call that starts it or deletes it: these must not overlap for one process.
    pub turn: Mutex<()>,
    stdin: std::sync::Mutex<Stdin>,
    wanted_size: std::sync::Mutex<Option<TerminalSize>>,
}

/// The writing end of a process's input. The end may be asked for before there is one: a client is
/// quick once its FIFO has a reader.
#[derive(Debug, Default)]
struct Stdin {
    holder: Option<StdinHolder>,
    is_released: bool,
}

impl Process {
    /// A process that containerd has described.
    #[must_use]
    pub fn new(id: ProcessId, stdio: Stdio, spec: Option<oci::Process>) -> Self {
        Self {
            id,
            stdio,
            spec,
            phase: watch::Sender::new(Phase::Created),
            turn: Mutex::default(),
            stdin: std::sync::Mutex::default(),
            wanted_size: std::sync::Mutex::default(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Checks that it may be started.
    ///
    /// # Errors
    /// It was started before.
    pub fn check_startable(&self) -> Result<(), GuestError> {
        match self.phase() {
            Phase::Created => Ok(()),
            Phase::Running => Err(self.refuse("start", "is running already")),
            Phase::Exited(_) => Err(self.refuse("start", "has ended")),
        }
    }

    /// Checks that it may be deleted.
    ///
    /// # Errors
    /// It runs.
    pub fn check_deletable(&self) -> Result<Option<Exit>, GuestError> {
        match self.phase() {
            Phase::Created => Ok(None),
            Phase::Running => Err(self.refuse("delete", "is running: kill it first")),
            Phase::Exited(exit) => Ok(Some(exit)),
        }
    }

    /// It runs now, unless it has ended in the meantime.
    pub fn started(&self) {
        self.phase.send_if_modified(|phase| {
            let is_new = *phase == Phase::Created;
            if is_new {
                *phase = Phase::Running;
            }
            is_new
        });
    }

    /// It has ended. The first end counts: returns whether this is it.
    pub fn exited(&self, status: u32) -> bool {
        self.phase.send_if_modified(|phase| {
            let is_new = !matches!(phase, Phase::Exited(_));
            if is_new {
                *phase = Phase::Exited(Exit {
                    status,
                    at: SystemTime::now(),
                });
            }
            is_new
        })
    }

    /// Waits until it is no longer merely created.
    pub async fn moved_on(&self) {
        let mut phase = self.phase.subscribe();
        // This process holds the sender, so there always is one.
        let _ = phase.wait_for(|phase| *phase != Phase::Created).await;
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        let exited = phase
            .wait_for(|phase| matches!(phase, Phase::Exited(_)))
            .await;
        match exited.as_deref() {
            Ok(Phase::Exited(exit)) => *exit,
            // This process holds the sender, so there always is one.
            _ => Exit {
                status: KILLED,
                at: SystemTime::now(),
            },
        }
    }

    /// Keeps the writing end of its input.
    pub fn hold_stdin(&self, holder: StdinHolder) {
        if let Ok(mut stdin) = self.stdin.lock() {
            stdin.holder = Some(holder).filter(|_| !stdin.is_released);
        }
    }

    /// Lets its input end.
    pub fn release_stdin(&self) {
        if let Ok(mut stdin) = self.stdin.lock() {
            stdin.holder = None;
            stdin.is_released = true;
        }
    }

    /// Keeps the size that its terminal is to have once there is one.
    pub fn want_size(&self, size: TerminalSize) {
        *lock(&self.wanted_size) = Some(size);
    }

    /// The size that was asked for before it was started.
    #[must_use]
    pub fn wanted_size(&self) -> Option<TerminalSize> {
        *lock(&self.wanted_size)
    }

    /// Its name for people.
    #[must_use]
    pub fn name(&self) -> String {
        match self.id.exec.as_str() {
            "" => format!("container {}", self.id.container),
            exec => format!("process {exec} of container {}", self.id.container),
        }
    }

    fn refuse(&self, phase: &'static str, state: &str) -> GuestError {
        GuestError::new(
            ErrorCode::FailedPrecondition,
            phase,
            format!("{} {state}", self.name()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(exec: &str) -> Process {
        let id = ProcessId {
            container: "c".into(),
            exec: exec.into(),
        };
        Process::new(id, Stdio::default(), None)
    }

    #[test]
    fn a_process_starts_once_and_is_deleted_only_when_it_does_not_run() {
        let process = process("");
        process.check_startable().unwrap();
        assert_eq!(process.check_deletable().unwrap(), None);
        process.started();
        assert_eq!(
            process.check_startable().unwrap_err().code,
            ErrorCode::FailedPrecondition
        );
        assert_eq!(
            process.check_deletable().unwrap_err().code,
            ErrorCode::FailedPrecondition
        );
        assert!(process.exited(3));
        assert_eq!(process.check_deletable().unwrap().unwrap().status, 3);
        assert!(process.check_startable().is_err());
    }

    #[test]
    fn the_first_end_counts() {
        let process = process("x");
        assert!(process.exited(1));
        assert!(!process.exited(2));
        process.started();
        assert!(matches!(
            process.phase(),
            Phase::Exited(Exit { status: 1, .. })
        ));
    }

    #[tokio::test]
    async fn an_input_that_was_ended_early_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let stdio = Stdio {
            stdin: crate::io::tests::fifo(dir.path()),
            ..Stdio::default()
        };
        let process = process("x");
        process.release_stdin();
        let (_streams, holder) = crate::io::open(&stdio, &crate::io::tests::owner())
            .await
            .unwrap();
        process.hold_stdin(holder);
        assert!(process.stdin.lock().unwrap().holder.is_none());
    }

    #[tokio::test]
    async fn every_waiter_gets_the_end_also_when_late() {
        let process = process("x");
        let (exit, ()) = tokio::join!(process.wait(), async {
            process.exited(5);
        });
        assert_eq!(exit.status, 5);
        assert_eq!(process.wait().await, exit);
    }
}
