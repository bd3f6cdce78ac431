//! One container of a sandbox. It is locked only to look something up or put it in, never while the guest works.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use agent_api::{ErrorCode, GuestError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::creation::Progress;
use crate::disk;
use crate::lock::lock;
use crate::process::{Phase, Process};
use crate::reason::Reason;
use crate::rootfs::Shared;
use crate::spec::group::Role;
use crate::spec::size::Limits;
use crate::volume::Volumes;

/// Further processes of one container at a time.
const MAX_EXECS: usize = 1024;
/// The name that conmon, and so CRI-O, has for it.
const OOM_FILE: &str = "oom";

/// One container.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What it is in its pod.
    pub role: Role,
    /// Whether it joins a PID namespace of its pod.
    pub joins_pid: bool,
    /// Its first process.
    pub init: Arc<Process>,
    /// Why it was killed.
    pub reason: Reason,
    /// Ends its creation.
    pub cancel: CancellationToken,
    /// Its creation has ended: it exists, or nothing of it is left.
    pub settled: CancellationToken,
    progress: watch::Sender<Progress>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_created: bool,
    is_paused: bool,
    execs: BTreeMap<String, Arc<Process>>,
    shared: Option<Shared>,
    limits: Limits,
    volumes: Volumes,
    disks: Vec<disk::Id>,
    is_doubtful: bool,
}

impl Container {
    /// Says in the bundle that memory ran out: CRI-O takes no events, and looks for this file when a container
    /// has ended.
    pub fn note_out_of_memory(&self) {
        if let Err(error) = std::fs::write(self.bundle.join(OOM_FILE), []) {
            tracing::warn!(%error, container = self.id, "file of the end of memory");
        }
    }

    /// A container that is about to be created.
    #[must_use]
    pub fn new(id: &str, bundle: PathBuf, role: Role, init: Process) -> Self {
        Self {
            id: id.to_owned(),
            bundle,
            role,
            joins_pid: false,
            init: Arc::new(init),
            reason: Reason::default(),
            cancel: CancellationToken::new(),
            settled: CancellationToken::new(),
            progress: watch::Sender::default(),
            state: Mutex::default(),
        }
    }

    /// The same that joins a PID namespace of its pod, or does not.
    #[must_use]
    pub fn joining_pid(self, joins_pid: bool) -> Self {
        Self { joins_pid, ..self }
    }

    /// How far its creation is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Notes how far its creation is.
    pub fn note(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// The error of a creation that was ended.
    #[must_use]
    pub fn cancelled(&self) -> GuestError {
        let how_far = self.progress.borrow().told(Instant::now());
        let text = format!(
            "the creation of container {} was cancelled while {how_far}",
            self.id
        );
        GuestError::new(ErrorCode::Cancelled, "create", text)
    }

    /// It exists in the guest now; what it has mounted on the host goes with it.
    pub fn created(&self, shared: Option<Shared>) {
        let mut state = lock(&self.state);
        state.is_created = true;
        state.shared = shared;
    }

    /// What it may use at most.
    #[must_use]
    pub fn limits(&self) -> Limits {
        lock(&self.state).limits
    }

    /// Notes what it may use.
    pub fn limit(&self, limits: Limits) {
        lock(&self.state).limits = limits;
    }

    /// Holds what it has in slots of the guest.
    pub fn hold(&self, volumes: Volumes) {
        lock(&self.state).volumes = volumes;
    }

    /// Holds a disk of the VM.
    pub fn hold_disk(&self, id: disk::Id) {
        lock(&self.state).disks.push(id);
    }

    /// The disks that it held; it holds none any more.
    #[must_use]
    pub fn take_disks(&self) -> Vec<disk::Id> {
        std::mem::take(&mut lock(&self.state).disks)
    }

    /// Notes that the guest did not say that it has let go of what this one had.
    pub fn doubt(&self) {
        lock(&self.state).is_doubtful = true;
    }

    /// Whether the guest may have kept something of it.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        lock(&self.state).is_doubtful
    }

    /// Whether it may have something in slots.
    #[must_use]
    pub fn has_slots(&self) -> bool {
        lock(&self.state).volumes.is_sent()
    }

    /// The host's file for its termination message, where the guest has the one that it writes.
    #[must_use]
    pub fn termination_log(&self) -> Option<PathBuf> {
        lock(&self.state)
            .volumes
            .termination_log()
            .map(PathBuf::from)
    }

    /// Whether it exists in the guest.
    #[must_use]
    pub fn is_created(&self) -> bool {
        lock(&self.state).is_created
    }

    /// Checks that there is something of it to tell. Of one that is being created there is not: a containerd that
    /// takes the place of one that died meanwhile would have a task that is gone a moment later.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn check_there(&self) -> Result<(), GuestError> {
        let missing = |error: GuestError| GuestError {
            code: ErrorCode::NotFound,
            ..error
        };
        self.check_created("state").map_err(missing)
    }

    /// Checks that it exists in the guest.
    ///
    /// # Errors
    /// It is being created.
    pub fn check_created(&self, phase: &'static str) -> Result<(), GuestError> {
        if self.is_created() {
            return Ok(());
        }
        let text = format!("container {} is being created", self.id);
        Err(GuestError::new(ErrorCode::FailedPrecondition, phase, text))
    }

    /// Checks that its first process runs.
    ///
    /// # Errors
    /// It is being created, is not started, or has ended.
    pub fn check_running(&self, phase: &'static str) -> Result<(), GuestError> {
        self.check_created(phase)?;
        if self.init.phase() == Phase::Running {
            return Ok(());
        }
        let text = format!("container {} is not running", self.id);
        Err(GuestError::new(ErrorCode::FailedPrecondition, phase, text))
    }

    /// Checks that it is not frozen.
    ///
    /// # Errors
    /// It is.
    pub fn check_not_paused(&self, phase: &'static str) -> Result<(), GuestError> {
        if !self.is_paused() {
            return Ok(());
        }
        let text = format!("container {} is paused: resume it first", self.id);
        Err(GuestError::new(ErrorCode::FailedPrecondition, phase, text))
    }

    /// Whether it is frozen.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        lock(&self.state).is_paused
    }

    /// Notes whether it is frozen.
    pub fn set_paused(&self, paused: bool) {
        lock(&self.state).is_paused = paused;
    }

    /// Its first process, or a further one.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, GuestError> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        lock(&self.state).execs.get(exec).cloned().ok_or_else(|| {
            let text = format!("container {} has no process {exec}", self.id);
            GuestError::new(ErrorCode::NotFound, "exec", text)
        })
    }

    /// Adds a further process.
    ///
    /// # Errors
    /// The name is taken, or there are too many.
    pub fn add_process(&self, process: Process) -> Result<(), GuestError> {
        let mut state = lock(&self.state);
        if state.execs.contains_key(&process.id.exec) {
            return Err(GuestError::new(
                ErrorCode::AlreadyExists,
                "exec",
                format!("{} exists", process.name()),
            ));
        }
        if state.execs.len() >= MAX_EXECS {
            let text = format!("container {} has {MAX_EXECS} processes already", self.id);
            return Err(GuestError::new(ErrorCode::ResourceExhausted, "exec", text));
        }
        state
            .execs
            .insert(process.id.exec.clone(), Arc::new(process));
        Ok(())
    }

    /// The names of its further processes.
    pub fn execs(&self) -> Vec<String> {
        lock(&self.state).execs.keys().cloned().collect()
    }

    /// Forgets a further process.
    pub fn remove_process(&self, exec: &str) {
        lock(&self.state).execs.remove(exec);
    }

    /// Undoes what it has mounted on the host.
    pub fn unmount(&self) {
        let mut state = lock(&self.state);
        let held = (state.shared.take(), std::mem::take(&mut state.volumes));
        drop(state);
        drop(held);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::guest::ProcessId;
    use crate::io::Stdio;

    fn process(exec: &str) -> Process {
        Process::new(
            ProcessId {
                container: "c".into(),
                exec: exec.into(),
            },
            Stdio::default(),
            None,
        )
    }

    pub(crate) fn container() -> Container {
        Container::new("c", PathBuf::from("/b"), Role::Single, process(""))
    }

    #[test]
    fn processes_are_found_by_name() {
        let container = container();
        container.add_process(process("x")).unwrap();
        assert_eq!(
            container.add_process(process("x")).unwrap_err().code,
            ErrorCode::AlreadyExists
        );
        assert_eq!(container.process("x").unwrap().id.exec, "x");
        assert_eq!(container.process("").unwrap().id.exec, "");
        container.remove_process("x");
        assert_eq!(
            container.process("x").unwrap_err().code,
            ErrorCode::NotFound
        );
    }

    #[test]
    fn what_needs_a_running_container_is_refused_before_and_while_it_stands_still() {
        let container = container();
        assert!(container.check_running("exec").is_err());
        container.created(None);
        assert!(container.check_running("exec").is_err());
        container.init.started();
        container.check_running("exec").unwrap();
        container.check_not_paused("exec").unwrap();
        container.set_paused(true);
        let error = container.check_not_paused("exec").unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        container.init.exited(0);
        assert!(container.check_running("exec").is_err());
    }

    #[test]
    fn a_container_under_creation_says_so() {
        let container = container();
        assert_eq!(
            container.check_created("kill").unwrap_err().code,
            ErrorCode::FailedPrecondition
        );
        let error = container.check_there().unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("being created"), "{error}");
        container.created(None);
        container.check_created("kill").unwrap();
        container.check_there().unwrap();
    }

    #[test]
    fn who_takes_no_events_finds_the_end_of_memory_in_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().to_owned();
        let container = Container::new("c", path, Role::Single, process(""));
        container.note_out_of_memory();
        assert!(bundle.path().join("oom").exists());
    }
}
