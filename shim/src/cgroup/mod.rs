//! The pod's cgroup on the host: it holds the VMM, its helpers and the shim, so that whatever a pod
//! costs is counted and limited where the kubelet looks.
//!
//! ```text
//!   cgroupsPath ─place─► directories below each hierarchy ─record─► mkdir ─► the shim enters ─► VMM, virtiofsd
//!                                                            │
//!                                            undo: the shim leaves, rmdir
//! ```
//!
//! The shim enters before it starts anything, so nothing of a pod is ever outside. What is made is on
//! record before, and [`undo`] takes it away: at the end, or after a kill, by whoever cleans up. Limits of
//! a pod are its parent's, where the kubelet sets them with the overhead; here stand only those that
//! containerd gives for the sandbox itself.

mod hierarchy;
mod place;
mod record;
mod usage;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_api::{ErrorCode, GuestError};
use thiserror::Error;
use tracing::{debug, warn};

use crate::spec::group::Role;
use crate::spec::{Spec, oci};
use crate::state_dir::StateDir;
use hierarchy::Host;
use place::Place;
use record::Record;

pub use place::PlaceError;
pub use usage::usage;

/// The environment variable by which `start` tells the server in which cgroup containerd wants the shim.
pub const SHIM_VARIABLE: &str = "CLOISTER_SHIM_CGROUP";
/// The file of a cgroup that takes processes in.
const PROCESSES: &str = "cgroup.procs";
/// How long a cgroup may take to be empty after its last process was killed.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How often a directory is made again whose parent another pod removes at the same moment.
const ATTEMPTS: usize = 8;
/// What of a path is in an error, in characters.
const MAX_SHOWN: usize = 256;

/// Why there is no cgroup for a pod.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The specification names no cgroup that can be.
    #[error("linux.cgroupsPath {path:?}: {cause}")]
    Place {
        /// As written.
        path: String,
        /// What is wrong with it.
        cause: PlaceError,
    },
    /// The shim cannot go where containerd wants it.
    #[error(
        "ShimCgroup {path:?}: {cause}; name a cgroup that exists, or leave ShimCgroup out of the runtime's options in containerd's configuration"
    )]
    Shim {
        /// As containerd gives it.
        path: String,
        /// Why not.
        cause: String,
    },
    /// The record of what is made cannot be written.
    #[error("record of the pod's cgroup: {0}")]
    Record(#[source] io::Error),
    /// A file or directory of the hierarchy.
    #[error(
        "cgroup {path:?}: {source}; set sandbox_cgroup_only = false in [runtime] to leave pods in containerd's cgroup"
    )]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<CgroupError> for GuestError {
    fn from(error: CgroupError) -> Self {
        let code = match error {
            CgroupError::Place { .. } | CgroupError::Shim { .. } => ErrorCode::InvalidArgument,
            CgroupError::Record(_) | CgroupError::File { .. } => ErrorCode::Internal,
        };
        Self::new(code, "cgroup", error)
    }
}

/// The cgroup that a pod is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    place: Place,
    settings: Settings,
    /// Whether the shim goes back to where it was when the VM runs.
    pub shim_apart: bool,
}

/// What is set in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Settings {
    cpus: String,
    mems: String,
    shares: Option<u64>,
}

/// The cgroup that a specification asks for; none where it names none. `shim_apart` says that containerd has
/// put the shim elsewhere.
///
/// # Errors
/// [`CgroupError::Place`].
pub fn wanted(spec: &Spec, role: &Role, shim_apart: bool) -> Result<Option<Wanted>, CgroupError> {
    let Some(linux) = &spec.linux else {
        return Ok(None);
    };
    let place = Place::parse(&linux.cgroups_path).map_err(|cause| CgroupError::Place {
        path: shown(&linux.cgroups_path),
        cause,
    })?;
    let cpu = linux.resources.as_ref().and_then(|all| all.cpu.as_ref());
    Ok(place.map(|place| Wanted {
        place,
        settings: Settings::of(cpu, role),
        shim_apart,
    }))
}

/// A path as an error says it.
fn shown(path: &str) -> String {
    path.chars().take(MAX_SHOWN).collect()
}

impl Settings {
    /// Of a pod's sandbox the weight is that of a container that does nothing, and not the pod's.
    fn of(cpu: Option<&oci::Cpu>, role: &Role) -> Self {
        let Some(cpu) = cpu else {
            return Self::default();
        };
        Self {
            cpus: cpu.cpus.clone(),
            mems: cpu.mems.clone(),
            shares: cpu.shares.filter(|_| *role == Role::Single),
        }
    }
}

/// Makes a pod's cgroup and moves the shim into it: what it starts from now on begins there.
///
/// # Errors
/// [`CgroupError`]; what was made, [`undo`] takes away.
pub fn enter(wanted: &Wanted, directory: &StateDir) -> Result<(), CgroupError> {
    let host = Host::find();
    if host.is_empty() {
        warn!("the host has no cgroups: the pod gets none");
        return Ok(());
    }
    let own = std::process::id();
    let origins = host.cgroups_of(own);
    enter_on(&host, wanted, origins, directory)?;
    for leaf in host.directories(&wanted.place) {
        move_into(&leaf, own)?;
    }
    debug!(place = %wanted.place.path().display(), "the pod's cgroup");
    Ok(())
}

fn enter_on(
    host: &Host,
    wanted: &Wanted,
    origins: Vec<PathBuf>,
    directory: &StateDir,
) -> Result<(), CgroupError> {
    let mut record = Record {
        shim: std::process::id(),
        origins,
        directories: Vec::new(),
    };
    for leaf in host.directories(&wanted.place) {
        record.directories.extend(host.missing_above(&leaf));
        // It may be a dead pod's of the same name, and is ours now.
        record.directories.push(leaf);
    }
    record.write(directory).map_err(CgroupError::Record)?;
    host.make(&wanted.place, ATTEMPTS)?;
    host.set(&wanted.place, &wanted.settings)
}

/// Moves the shim back to where it was, and leaves the VMM in the pod's cgroup.
pub fn leave(directory: &StateDir) {
    if let Some(record) = Record::read(directory) {
        go_home(&record);
    }
}

/// Puts a shim into the cgroup that containerd names for it, which exists, in every hierarchy that has it.
///
/// # Errors
/// [`CgroupError::Shim`]: the path is none, no hierarchy has it, or the kernel refuses.
pub fn join(path: &str, pid: u32) -> Result<(), CgroupError> {
    join_on(&Host::find(), path, pid)
}

fn join_on(host: &Host, path: &str, pid: u32) -> Result<(), CgroupError> {
    let fault = |cause: String| CgroupError::Shim {
        path: shown(path),
        cause,
    };
    let place = Place::parse(path).and_then(|place| place.ok_or(PlaceError::Empty));
    let place = place.map_err(|cause| fault(cause.to_string()))?;
    let mut there = host.directories(&place);
    there.retain(|leaf| leaf.is_dir());
    if there.is_empty() {
        return Err(fault(PlaceError::Missing.to_string()));
    }
    there.iter().try_for_each(|leaf| {
        let file = leaf.join(PROCESSES);
        put(&file, &pid.to_string()).map_err(|error| fault(format!("{}: {error}", file.display())))
    })
}

/// Takes away what [`enter`] made for a sandbox, in this process or in one that is dead. Can be called
/// any number of times: of what is still in use the record stays, for the next one.
pub fn undo(directory: &StateDir) {
    let Some(record) = Record::read(directory) else {
        return;
    };
    go_home(&record);
    let until = Instant::now() + EMPTY_TIMEOUT;
    let mut is_done = true;
    // Those below were noted after those above.
    for path in record.directories.iter().rev() {
        is_done &= remove(path, until);
    }
    if is_done {
        Record::remove(directory);
    }
}

fn go_home(record: &Record) {
    if record.shim != std::process::id() {
        return;
    }
    for origin in &record.origins {
        if let Err(error) = move_into(origin, record.shim) {
            // It is gone: the shim must not keep the pod's.
            let root = hierarchy::root_of(origin);
            let moved = root.map(|root| move_into(&root, record.shim));
            debug!(%error, moved = ?moved.is_some_and(|moved| moved.is_ok()), "the shim's own cgroup");
        }
    }
}

/// Removes a cgroup once it is empty; one that others use stays. Says whether nothing is left to do.
fn remove(path: &Path, until: Instant) -> bool {
    loop {
        match std::fs::remove_dir(path) {
            Ok(()) => return true,
            Err(error) => match error.kind() {
                // Gone already, or a parent of other pods.
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty => return true,
                io::ErrorKind::ResourceBusy if has_children(path) => return true,
                io::ErrorKind::ResourceBusy if Instant::now() < until => {}
                _ => {
                    warn!(%error, path = %path.display(), "cgroup left behind");
                    return false;
                }
            },
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn has_children(path: &Path) -> bool {
    let mut entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

/// Moves all threads of a process.
fn move_into(cgroup: &Path, pid: u32) -> Result<(), CgroupError> {
    write(&cgroup.join(PROCESSES), &pid.to_string())
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    put(path, text).map_err(|source| CgroupError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes to a file that the kernel has made: none is made here.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

#[cfg(test)]
mod tests;
