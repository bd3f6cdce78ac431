//! One container: its processes, its cgroup, what it holds.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::{ErrorCode, GuestError, agent, oci};
use attestation_agent::Hub;
use image_rs::pull::Layers;
use rustix::process::Signal;

use crate::cgroup::Cgroup;
use crate::fault::{OrFail, invalid};
use crate::idmap;
use crate::image;
use crate::oom;
use crate::path::check_id;
use crate::process::Process;
use crate::runtime::{CONTAINERS, Runtime};
use crate::sealed::{self, Variable};
use crate::spec;
use crate::storage::Held;
use crate::user;
use crate::users::Namespace;

/// Further processes of one container that nobody has waited for yet.
const MAX_EXECS: usize = 1024;

/// A container that was made.
#[derive(Debug)]
pub struct Container {
    id: String,
    root: PathBuf,
    bundle: PathBuf,
    cgroup: Cgroup,
    process: oci::Process,
    sealed: Vec<Variable>,
    annotations: BTreeMap<String, String>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    started: Mutex<bool>,
    filtered: bool,
    users: Option<Arc<Namespace>>,
    /// To release. Who takes the container away has the lock.
    held: tokio::sync::Mutex<Held>,
    /// What its image shares with others.
    _layers: Layers,
    _oom: Option<oom::Watch>,
    joins_pid: bool,
}

/// What a container is made of.
#[derive(Debug)]
pub struct Parts {
    /// Its id.
    pub id: String,
    /// Its root file system.
    pub root: PathBuf,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// What its first process was made of.
    pub process: oci::Process,
    /// What of its environment was sealed.
    pub sealed: Vec<Variable>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its first process.
    pub init: Process,
    /// Whether it has a seccomp profile.
    pub filtered: bool,
    /// Its user namespace, where that is not the guest's.
    pub users: Option<Arc<Namespace>>,
    /// Mount points and disks that it uses.
    pub storages: Held,
    /// What its image shares with others, held for as long as the container is there.
    pub layers: Layers,
    /// The watch over its memory, where there is a memory controller.
    pub oom: Option<oom::Watch>,
    /// Whether its processes are in another container's PID namespace.
    pub joins_pid: bool,
}

impl Container {
    /// A container whose first process waits to be started.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let init = Arc::new(parts.init);
        if parts.joins_pid {
            end_with(Arc::clone(&init), parts.cgroup.clone());
        }
        Self {
            id: parts.id,
            root: parts.root,
            bundle: parts.bundle,
            cgroup: parts.cgroup,
            process: parts.process,
            sealed: parts.sealed,
            annotations: parts.annotations,
            init,
            execs: Mutex::default(),
            started: Mutex::new(false),
            filtered: parts.filtered,
            users: parts.users,
            held: tokio::sync::Mutex::new(parts.storages),
            _layers: parts.layers,
            _oom: parts.oom,
            joins_pid: parts.joins_pid,
        }
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its annotations, as the owner's policy has seen them.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// What it holds of the pod's; less and less while it is taken away, for which the lock is the turn.
    #[must_use]
    pub fn held(&self) -> &tokio::sync::Mutex<Held> {
        &self.held
    }

    /// Lets the first process go.
    ///
    /// # Errors
    ///
    /// It has been started, or has ended.
    pub async fn start(&self, runtime: &Runtime) -> Result<(), GuestError> {
        {
            let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
            if *started || self.init.child().status().is_some() {
                let message = format!("container {} has been started or has ended", self.id);
                return Err(GuestError::new(
                    ErrorCode::FailedPrecondition,
                    "start",
                    message,
                ));
            }
            *started = true;
        }
        runtime.start(&self.id).await
    }

    /// Makes and starts a further process.
    ///
    /// # Errors
    ///
    /// The id is taken, or libcontainer cannot start it.
    pub async fn exec(
        &self,
        runtime: &Runtime,
        hub: &Arc<Hub>,
        request: &agent::ExecProcessRequest,
    ) -> Result<(), GuestError> {
        let id = &request.exec_id;
        check_id("exec", "exec_id", id)?;
        let mut process = request.process.clone().unwrap_or_default();
        if process.Args.is_empty() {
            return Err(invalid("exec", "process.Args is empty"));
        }
        self.lend(&mut process);
        sealed::open_environment(hub, &mut process.Env, &self.sealed).await?;
        apply_user(&self.root, request.string_user.as_ref(), &mut process)?;
        if self.users.is_some() {
            user::fill_home(&self.root, &mut process)?;
        }
        let mut process = spec::process(&process, self.filtered)?;
        let users = self.users.as_deref();
        let identity = users
            .map(|users| spec::users::lend_process(&mut process, users))
            .transpose()?;
        let json = serde_json::to_string(&process).or_internal("exec", "process.json")?;
        self.reserve(id)?;
        let terminal = process.terminal().unwrap_or(false);
        let made = runtime
            .exec(&self.id, &json, identity.as_ref(), terminal)
            .await;
        let mut execs = self.execs();
        match made {
            Ok(process) => {
                execs.insert(id.clone(), Some(Arc::new(process)));
                Ok(())
            }
            Err(error) => {
                execs.remove(id);
                Err(error)
            }
        }
    }

    /// Gives a further process what it leaves open of the first one's user, environment and directory.
    fn lend(&self, process: &mut oci::Process) {
        if process.User.is_none() {
            process.User.clone_from(&self.process.User);
        }
        image::fill_environment(&mut process.Env, &self.process.Env);
        if process.Cwd.is_empty() {
            process.Cwd.clone_from(&self.process.Cwd);
        }
    }

    /// The process of this id; the first one where it is empty.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, GuestError> {
        if exec_id.is_empty() || exec_id == self.id {
            return Ok(Arc::clone(&self.init));
        }
        self.execs().get(exec_id).cloned().flatten().ok_or_else(|| {
            let message = format!("container {} has no process {exec_id}", self.id);
            GuestError::new(ErrorCode::NotFound, "process", message)
        })
    }

    /// Forgets a further process that nobody needs any more.
    pub fn forget_spent(&self, exec_id: &str) {
        let mut execs = self.execs();
        if execs
            .get(exec_id)
            .is_some_and(|p| p.as_ref().is_some_and(|p| p.is_spent()))
        {
            execs.remove(exec_id);
        }
    }

    /// Sends a signal. To kill the first process is to kill the container.
    ///
    /// # Errors
    ///
    /// The process has ended, or kill(2) fails.
    pub fn signal(&self, runtime: &Runtime, exec_id: &str, number: u32) -> Result<(), GuestError> {
        let process = self.process(exec_id)?;
        let is_init = Arc::ptr_eq(&process, &self.init);
        let mut signal = parse_signal(number)?;
        if is_init && !self.joins_pid && signal == Signal::TERM && !handles(&process, signal) {
            // The kernel drops what the first process of a PID namespace does not handle; the
            // caller would only wait for its own time to run out.
            signal = Signal::KILL;
        }
        if is_init && signal == Signal::KILL {
            self.cgroup.kill().or_internal("signal", "cgroup.kill")?;
        }
        let alive = runtime
            .signal(&process, signal)
            .or_internal("signal", "kill")?;
        if alive {
            return Ok(());
        }
        let message = format!("the process has ended: container {} {exec_id}", self.id);
        Err(GuestError::new(ErrorCode::NotFound, "signal", message))
    }

    /// Kills everything and takes the container's own state away. Its storages stay.
    ///
    /// # Errors
    ///
    /// Something could not be ended or removed.
    pub async fn remove(&self) -> Result<(), GuestError> {
        self.cgroup.kill().or_internal("remove", "cgroup.kill")?;
        self.init.wait().await;
        self.cgroup.remove().await.or_internal("remove", "cgroup")?;
        remove_state(self.id.clone(), self.bundle.clone()).await
    }

    fn reserve(&self, exec_id: &str) -> Result<(), GuestError> {
        let mut execs = self.execs();
        if execs.contains_key(exec_id) || exec_id == self.id {
            let message = format!("container {} has a process {exec_id}", self.id);
            return Err(GuestError::new(ErrorCode::AlreadyExists, "exec", message));
        }
        if execs.len() >= MAX_EXECS {
            let message = format!("more than {MAX_EXECS} processes that nobody waited for");
            return Err(GuestError::new(
                ErrorCode::ResourceExhausted,
                "exec",
                message,
            ));
        }
        execs.insert(exec_id.to_owned(), None);
        Ok(())
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills what a first process leaves behind: in a namespace that it is not the first of, the kernel does not.
fn end_with(init: Arc<Process>, cgroup: Cgroup) {
    tokio::spawn(async move {
        init.child().wait().await;
        if let Err(error) = cgroup.kill() {
            tracing::warn!(%error, "processes left behind");
        }
    });
}

/// Takes away what a container leaves on the file system.
///
/// # Errors
///
/// Those of unlink(2); what is not there is no error.
pub async fn remove_state(id: String, bundle: PathBuf) -> Result<(), GuestError> {
    let image = image::place(&id);
    let state = PathBuf::from(CONTAINERS).join(&id);
    let remove = move || {
        idmap::leave(&id)?;
        image::leave(&image);
        for directory in [state, image, bundle] {
            match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).or_internal("remove", directory.display());
                }
                _ => {}
            }
        }
        Ok(())
    };
    // An image may have many files.
    tokio::task::spawn_blocking(remove)
        .await
        .or_internal("remove", "files")?
}

/// Resolves a user by name: that of the request, or that of the process.
///
/// # Errors
///
/// The container's files do not have the name.
pub fn apply_user(
    root: &std::path::Path,
    named: Option<&agent::StringUser>,
    process: &mut agent_api::oci::Process,
) -> Result<(), GuestError> {
    let text = match named {
        Some(user) if user.gid.is_empty() => user.uid.clone(),
        Some(user) => format!("{}:{}", user.uid, user.gid),
        None => process.User.Username.clone(),
    };
    let user = process.User.mut_or_insert_default();
    if !text.is_empty() {
        let found = user::look_up(root, &text)?;
        (user.UID, user.GID) = (found.uid, found.gid);
        for gid in found.additional_gids {
            if !user.AdditionalGids.contains(&gid) {
                user.AdditionalGids.push(gid);
            }
        }
    }
    for group in named
        .map(|user| user.additionalGids.as_slice())
        .unwrap_or_default()
    {
        let gid = group
            .parse()
            .map_err(|_| invalid("user", format!("group {group:?}")))?;
        user.AdditionalGids.push(gid);
    }
    let groups = user.AdditionalGids.iter().copied();
    groups.chain([user.UID, user.GID]).try_for_each(user::check)
}

fn parse_signal(number: u32) -> Result<Signal, GuestError> {
    let named = i32::try_from(number).ok().and_then(Signal::from_named_raw);
    named.ok_or_else(|| invalid("signal", format!("{number} is not a signal's number")))
}

/// Whether the process has a handler for the signal (proc_pid_status(5), `SigCgt`).
fn handles(process: &Process, signal: Signal) -> bool {
    let pid = process.child().pid().as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    is_caught(&status, signal)
}

fn is_caught(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    mask >> (signal.as_raw() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caught_signals_are_read_from_the_mask() {
        let status = "Name:\tsh\nSigCgt:\t0000000000004002\n";
        assert!(is_caught(status, Signal::TERM));
        assert!(is_caught(status, Signal::INT));
        assert!(!is_caught(status, Signal::HUP));
        assert!(!is_caught("", Signal::TERM));
    }

    #[test]
    fn signals_are_numbers_of_the_kernel() {
        assert_eq!(parse_signal(15).unwrap(), Signal::TERM);
        assert!(parse_signal(0).is_err());
        assert!(parse_signal(1000).is_err());
    }

    #[test]
    fn named_users_are_resolved_in_the_containers_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "web:x:33:34::/:\n").unwrap();
        let mut process = oci::Process::new();
        process.User.mut_or_insert_default().Username = "web".into();
        apply_user(root.path(), None, &mut process).unwrap();
        assert_eq!((process.User.UID, process.User.GID), (33, 34));
        let named = agent::StringUser {
            uid: "5".into(),
            gid: "6".into(),
            additionalGids: vec!["7".into()],
            ..Default::default()
        };
        apply_user(root.path(), Some(&named), &mut process).unwrap();
        assert_eq!((process.User.UID, process.User.GID), (5, 6));
        assert_eq!(process.User.AdditionalGids, [7]);
    }
}
