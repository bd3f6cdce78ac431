//! The directory of one sandbox on the host, and what is needed to clean up after a dead shim.
//!
//! Everything that a sandbox leaves on the host is in or points to
//! `<root>/<namespace>/<sandbox id>`: the pid file of each process, sockets, the shared directory.
//! The root is `/run/cloister`, that of a user other than root in `$XDG_RUNTIME_DIR`, or what
//! `CLOISTER_STATE_ROOT` names: the same for `start`, the server and `delete`, which see the same
//! environment.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::mountinfo;

/// The environment variable that names another root.
pub const ROOT_VARIABLE: &str = "CLOISTER_STATE_ROOT";
/// The root where nothing names another, and its name in the directory that a user has for such things.
const DEFAULT_ROOT: &str = "/run/cloister";
const USER_NAME: &str = "cloister";
const USER_VARIABLE: &str = "XDG_RUNTIME_DIR";
/// Every process of a sandbox but the shim has this in its environment or is in the directory.
pub const OWNER_VARIABLE: &str = "CLOISTER_STATE_DIR";

/// A process as the pid file knows it. The start time tells it from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// Clock ticks from the host's boot to the process's start (proc(5), `stat`, field 22).
    pub start_time: u64,
}

impl Process {
    /// The process of this number, if there is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may have spaces and parentheses; the last one ends it.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let is_zombie = fields.next()? == "Z";
        let start_time = fields.nth(18)?.parse().ok()?;
        (!is_zombie).then_some(Self { pid, start_time })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Kills it, if it still is the same process. The descriptor is opened before the start time
    /// is compared, so that no other process can be hit.
    pub fn kill(self) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return;
        };
        if let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty())
            && self.is_alive()
        {
            let _ = pidfd_send_signal(&descriptor, Signal::KILL);
        }
    }
}

/// The directory of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Where the directory of a sandbox is. Namespace and id were checked by containerd, and are
    /// checked here again to be single components.
    ///
    /// # Errors
    /// `InvalidInput` where one of them is not a plain name.
    pub fn of(namespace: &str, sandbox: &str) -> io::Result<Self> {
        Self::under(&root(), namespace, sandbox)
    }

    /// The same below a root that is named.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn under(root: &Path, namespace: &str, sandbox: &str) -> io::Result<Self> {
        for name in [namespace, sandbox] {
            if !is_plain_name(name) {
                let text =
                    format!("{name:?} is not a name: use A-Z a-z 0-9 . _ -, at most 128 of them");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        Ok(Self(root.join(namespace).join(sandbox)))
    }

    #[cfg(test)]
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// containerd's namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        let name = self.0.parent().and_then(Path::file_name);
        name.map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// What virtio-fs serves: [`Self::mounts`] as the guest sees it.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.0.join("shared")
    }

    /// Where the containers' mount points are made and removed. The guest never sees it.
    #[must_use]
    pub fn mounts(&self) -> PathBuf {
        self.0.join("mounts")
    }

    /// Where the layers of a container's root file system are mounted while that is made.
    #[must_use]
    pub fn layers(&self, container: &str) -> PathBuf {
        self.0.join(format!("layers-{container}"))
    }

    /// Makes the directory, for root only.
    ///
    /// # Errors
    /// As `mkdir` fails.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
    }

    /// Notes a process that belongs to the sandbox.
    ///
    /// # Errors
    /// As the write fails.
    pub fn record(&self, role: &str, pid: u32) -> io::Result<()> {
        let Some(process) = Process::of(pid) else {
            return Ok(());
        };
        let text = serde_json::to_string(&process)?;
        write_whole(&self.0.join(format!("{role}.pid")), text.as_bytes())
    }

    /// A noted process.
    #[must_use]
    pub fn recorded(&self, role: &str) -> Option<Process> {
        let text = fs::read(self.0.join(format!("{role}.pid"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes a file so that a reader sees all of it or the one before.
    ///
    /// # Errors
    /// As the write fails.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        write_whole(&self.0.join(name), bytes)
    }

    /// Writes a record, for whoever cleans up.
    ///
    /// # Errors
    /// As the write fails.
    pub fn write_json(&self, name: &str, record: &impl Serialize) -> io::Result<()> {
        self.write(name, &serde_json::to_vec(record)?)
    }

    /// A record of at most so many bytes; none where none was written, or what is there is none.
    #[must_use]
    pub fn read_json<T: DeserializeOwned>(&self, name: &str, most: u64) -> Option<T> {
        let path = self.0.join(name);
        let mut bytes = Vec::new();
        let file = fs::File::open(&path).ok()?;
        io::Read::read_to_end(&mut io::Read::take(file, most), &mut bytes).ok()?;
        serde_json::from_slice(&bytes)
            .inspect_err(
                |error| tracing::warn!(%error, path = %path.display(), "a record does not parse"),
            )
            .ok()
    }

    /// The processes that belong to the sandbox by where they are or by their environment, noted or
    /// not: a shim that is killed between a fork and its note leaves one that is in no pid file.
    #[must_use]
    pub fn owned_processes(&self) -> Vec<Process> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid != std::process::id() && self.owns(*pid))
            .filter_map(Process::of)
            .collect()
    }

    fn owns(&self, pid: u32) -> bool {
        if fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.0) {
            return true;
        }
        let expected = [
            OWNER_VARIABLE.as_bytes(),
            b"=",
            self.0.as_os_str().as_encoded_bytes(),
        ]
        .concat();
        fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
            environ
                .split(|byte| *byte == 0)
                .any(|entry| entry == expected)
        })
    }

    /// Removes what is in the directory, but for the files whose names are to be kept. Mounts that are left
    /// in it are detached first.
    ///
    /// # Errors
    /// As a removal fails.
    pub fn remove_but(&self, kept: impl Fn(&str) -> bool) -> io::Result<()> {
        detach_mounts_under(&self.0)?;
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(&kept) {
                continue;
            }
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Removes the directory with all that is in it, and the namespace's if it is the last. Mounts
    /// that are left in it are detached first. What is gone already is no error.
    ///
    /// # Errors
    /// As a removal fails.
    pub fn remove(&self) -> io::Result<()> {
        detach_mounts_under(&self.0)?;
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(parent) = self.0.parent() {
            // Not empty, or gone: both are fine.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// The directory of all sandboxes.
#[must_use]
pub fn root() -> PathBuf {
    if let Some(named) = std::env::var_os(ROOT_VARIABLE) {
        return PathBuf::from(named);
    }
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from(DEFAULT_ROOT);
    }
    let own = std::env::var_os(USER_VARIABLE).map(PathBuf::from);
    own.filter(|path| path.is_absolute())
        .unwrap_or_else(|| PathBuf::from(format!("/run/user/{}", user.as_raw())))
        .join(USER_NAME)
}

/// Namespace and id of all sandboxes below a root, sorted.
#[must_use]
pub fn sandboxes(root: &Path) -> Vec<(String, String)> {
    let names = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| is_plain_name(name)).collect();
        names.sort();
        names
    };
    let mut all = Vec::new();
    for namespace in names(root) {
        for sandbox in names(&root.join(&namespace)) {
            all.push((namespace.clone(), sandbox));
        }
    }
    all
}

/// Whether a namespace's or sandbox's name is one path component of plain characters.
#[must_use]
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= agent_api::limit::MAX_ID
        && !name.bytes().all(|byte| byte == b'.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Detaches every mount at or below `directory`, innermost first.
fn detach_mounts_under(directory: &Path) -> io::Result<()> {
    let list = mountinfo::read()?;
    let mut points: Vec<PathBuf> = mountinfo::mounts(&list)
        .map(|mount| mount.point)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in points {
        match rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes a file for its owner alone, so that a reader sees all of it or the one before.
///
/// # Errors
/// As the write fails.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // After the whole name: an id may have dots, and another be like it up to the last.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    io::Write::write_all(&mut file, bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_components() {
        for bad in ["", ".", "..", "a/b", "a b", "ä"] {
            assert!(!is_plain_name(bad), "{bad}");
        }
        assert!(is_plain_name("k8s.io"));
        assert!(StateDir::under(Path::new("/r"), "ns", "..").is_err());
        assert_eq!(
            StateDir::under(Path::new("/r"), "ns", "a").unwrap().path(),
            Path::new("/r/ns/a")
        );
    }

    #[test]
    fn a_recorded_process_is_found_alive_and_then_killed() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::under(root.path(), "ns", "pod").unwrap();
        dir.create().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        dir.record("vmm", child.id()).unwrap();
        let process = dir.recorded("vmm").unwrap();
        assert!(process.is_alive());
        assert!(dir.owned_processes().contains(&process));
        process.kill();
        assert!(!child.wait().unwrap().success());
        assert!(!process.is_alive());
    }

    #[test]
    fn another_process_of_the_same_number_is_not_killed() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let other = Process {
            start_time: 1,
            ..Process::of(child.id()).unwrap()
        };
        other.kill();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn only_plain_names_are_sandboxes() {
        let root = tempfile::tempdir().unwrap();
        for path in ["default/a", "default/b", "@run/default", "@s"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let of_default = |id: &str| ("default".to_owned(), id.to_owned());
        assert_eq!(sandboxes(root.path()), [of_default("a"), of_default("b")]);
    }

    #[test]
    fn removing_twice_is_fine() {
        let root = tempfile::tempdir().unwrap();
        let dir = StateDir::under(root.path(), "ns", "pod").unwrap();
        dir.create().unwrap();
        dir.write("x", b"y").unwrap();
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!root.path().join("ns").exists());
    }
}
