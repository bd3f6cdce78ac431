//! The containers of a sandbox. The table is locked only to look something up or put it in: no lock
//! is held while the guest works, so the creation of one container holds up no other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::creation::Progress;
use crate::disk;
use crate::process::{Phase, Process};
use crate::reason::Reason;
use crate::rootfs::Shared;
use crate::spec::group::Role;
use crate::spec::size::Limits;
use crate::volume::Volumes;

/// Further processes of one container at a time.
const MAX_EXECS: usize = 1024;
/// Containers of one sandbox at a time.
const MAX_CONTAINERS: usize = 1024;

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

/// The containers of one sandbox.
#[derive(Debug, Default)]
pub struct Containers {
    table: Mutex<BTreeMap<String, Arc<Container>>>,
    usage: watch::Sender<Usage>,
}

/// Whether somebody uses the sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Usage {
    /// Nobody has had a container in it.
    #[default]
    New,
    /// There are containers.
    Used,
    /// There were.
    Empty,
    /// It lives on without containers, until it is closed.
    Held,
    /// There will be no more.
    Closed,
}

/// How long a sandbox without containers waits for one.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the first.
    pub first: Duration,
    /// For the next, when the last is gone.
    pub next: Duration,
}

impl Containers {
    /// Adds one.
    ///
    /// # Errors
    /// The id is taken, or there are too many.
    pub fn insert(&self, container: Container) -> Result<Arc<Container>, GuestError> {
        let mut table = lock(&self.table);
        if *self.usage.borrow() == Usage::Closed {
            let text = "the sandbox is ending: ask for a new one";
            return Err(GuestError::new(
                ErrorCode::FailedPrecondition,
                "create",
                text,
            ));
        }
        if table.contains_key(&container.id) {
            let text = format!("container {} exists", container.id);
            return Err(GuestError::new(ErrorCode::AlreadyExists, "create", text));
        }
        if table.len() >= MAX_CONTAINERS {
            let text = format!("the sandbox has {MAX_CONTAINERS} containers already");
            return Err(GuestError::new(
                ErrorCode::ResourceExhausted,
                "create",
                text,
            ));
        }
        let container = Arc::new(container);
        table.insert(container.id.clone(), Arc::clone(&container));
        self.move_on(&[Usage::New, Usage::Empty], Usage::Used);
        Ok(container)
    }

    /// The container of this id.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, GuestError> {
        lock(&self.table).get(id).cloned().ok_or_else(|| {
            GuestError::new(
                ErrorCode::NotFound,
                "task",
                format!("there is no container {id}"),
            )
        })
    }

    /// Forgets one.
    pub fn remove(&self, id: &str) {
        let mut table = lock(&self.table);
        if table.remove(id).is_some() && table.is_empty() {
            self.move_on(&[Usage::Used], Usage::Empty);
        }
    }

    /// Lives on without containers, until it is closed.
    pub fn hold(&self) {
        self.move_on(&[Usage::New, Usage::Used, Usage::Empty], Usage::Held);
    }

    /// Takes no more, whatever is there.
    pub fn close(&self) {
        let _table = lock(&self.table);
        self.usage.send_replace(Usage::Closed);
    }

    fn move_on(&self, from: &[Usage], to: Usage) {
        self.usage
            .send_if_modified(|usage| from.contains(usage) && std::mem::replace(usage, to) != to);
    }

    /// Takes no more, if there is none and none may come: returns whether that is so.
    pub fn close_if_empty(&self) -> bool {
        let table = lock(&self.table);
        let closes = table.is_empty() && *self.usage.borrow() != Usage::Held;
        if closes {
            self.usage.send_replace(Usage::Closed);
        }
        closes
    }

    /// Waits until it is closed, and closes it when it has been without containers for too long.
    pub async fn closed(&self, patience: Patience) {
        let mut usage = self.usage.subscribe();
        loop {
            let seen = *usage.borrow_and_update();
            let wait = match seen {
                Usage::Closed => return,
                Usage::Used | Usage::Held => None,
                Usage::New => Some(patience.first),
                Usage::Empty => Some(patience.next),
            };
            let overdue = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is in this value, so there always is one.
                _ = usage.changed() => {}
                () = overdue => {
                    self.close_if_empty();
                }
            }
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.table).values().cloned().collect()
    }
}

/// The tables are whole after every statement, so a panic elsewhere leaves nothing to distrust.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
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

    fn container() -> Container {
        Container::new("c", PathBuf::from("/b"), Role::Single, process(""))
    }

    #[test]
    fn ids_are_taken_once_and_free_again() {
        let containers = Containers::default();
        containers.insert(container()).unwrap();
        assert_eq!(
            containers.insert(container()).unwrap_err().code,
            ErrorCode::AlreadyExists
        );
        containers.remove("c");
        assert!(containers.all().is_empty());
        assert_eq!(containers.get("c").unwrap_err().code, ErrorCode::NotFound);
    }

    const PATIENCE: Patience = Patience {
        first: Duration::from_secs(8),
        next: Duration::from_secs(3),
    };

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_closes_after_a_while_without_containers_and_never_with_one() {
        let containers = Containers::default();
        let began = tokio::time::Instant::now();
        let busy = async {
            tokio::time::sleep(PATIENCE.first / 2).await;
            containers.insert(container()).unwrap();
            tokio::time::sleep(PATIENCE.first * 9).await;
            containers.remove("c");
            // A container that comes in time, such as the next try of a pod.
            tokio::time::sleep(PATIENCE.next / 2).await;
            containers.insert(container()).unwrap();
            tokio::time::sleep(PATIENCE.next * 9).await;
            containers.remove("c");
            began.elapsed()
        };
        let ((), emptied) = tokio::join!(containers.closed(PATIENCE), busy);
        assert_eq!(began.elapsed(), emptied + PATIENCE.next);
        assert_eq!(
            containers.insert(container()).unwrap_err().code,
            ErrorCode::FailedPrecondition
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_nobody_used_closes_too() {
        let began = tokio::time::Instant::now();
        Containers::default().closed(PATIENCE).await;
        assert_eq!(began.elapsed(), PATIENCE.first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_is_closed_at_once_only_when_it_is_empty() {
        let containers = Containers::default();
        containers.insert(container()).unwrap();
        assert!(!containers.close_if_empty());
        containers.remove("c");
        assert!(containers.close_if_empty());
        let began = tokio::time::Instant::now();
        containers.closed(PATIENCE).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_is_held_ends_when_it_is_closed_and_not_before() {
        let containers = Containers::default();
        containers.hold();
        let busy = async {
            tokio::time::sleep(PATIENCE.first * 9).await;
            containers.insert(container()).unwrap();
            containers.remove("c");
            assert!(!containers.close_if_empty());
            tokio::time::sleep(PATIENCE.next * 9).await;
            containers.insert(container()).unwrap();
            containers.close();
        };
        let began = tokio::time::Instant::now();
        tokio::join!(containers.closed(PATIENCE), busy);
        assert_eq!(began.elapsed(), PATIENCE.first * 9 + PATIENCE.next * 9);
        containers.remove("c");
        assert!(containers.insert(container()).is_err(), "closed is closed");
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
        container.created(None);
        container.check_created("kill").unwrap();
    }
}
