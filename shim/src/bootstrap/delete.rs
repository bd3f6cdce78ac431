//! `delete`: removes what a server that died has left: the VMM, the virtio-fs daemon, mounts,
//! sockets, the pod's cgroup, what stands in its network namespace, and the state directory. It can be run
//! any number of times, at any moment.

use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim::Flags;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};
use tracing::warn;

use super::{BootstrapError, bundle, socket_path, step};
use crate::cgroup;
use crate::clock;
use crate::hooks;
use crate::network;
use crate::process::KILLED;
use crate::spec;
use crate::spec::group::{self, Role};
use crate::state_dir::StateDir;

/// How long killed processes may take to be gone. The kernel may have 1 TiB of guest to free.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How long all may take before programs of others end: containerd kills a `delete` after 5 s.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a server that ends may go on answering: its own last answers have a second.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// The record of where a server listens, in the sandbox's directory, and the longest path in it.
const SOCKET: &str = "socket.json";
const MAX_SOCKET: u64 = 4096;

/// Cleans up after the server of a container's sandbox, and tells containerd that the container
/// was killed.
pub(super) fn delete(flags: &Flags) -> Result<(), BootstrapError> {
    // A bundle that is half gone still names a container, which then is its own sandbox's.
    let role = match bundle(flags)
        .ok()
        .and_then(|bundle| spec::read(&bundle).ok())
    {
        Some(spec) => group::role(&spec.annotations).unwrap_or(Role::Single),
        None => Role::Single,
    };
    let sandbox = role.sandbox_of(&flags.id);
    let directory =
        StateDir::of(&flags.namespace, sandbox).map_err(step("name the state directory"))?;
    let serves = directory
        .recorded("shim")
        .is_some_and(|shim| shim.is_alive());
    // A container of a pod whose server lives is that server's to clean up.
    if role.owns_vm() || !serves {
        // The record goes with the directory.
        let socket = recorded_socket(&directory)
            .unwrap_or_else(|| socket_path(&flags.address, &flags.namespace, sandbox, None));
        clean(&directory, Some(&socket)).map_err(step("clean up"))?;
    }
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: MessageField::some(clock::timestamp(SystemTime::now())),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().unwrap_or_default();
    std::io::stdout()
        .write_all(&bytes)
        .map_err(step("write the answer"))
}

/// Notes where a server is going to listen: containerd tells the directory to `start` alone. The bundle
/// says it too, but each container's says it of the whole pod's server.
pub(super) fn record_socket(directory: &StateDir, socket: &Path) -> io::Result<()> {
    directory.write_json(SOCKET, &socket)
}

fn recorded_socket(directory: &StateDir) -> Option<PathBuf> {
    directory.read_json(SOCKET, MAX_SOCKET)
}

/// Removes the socket of a dead server, and nothing else: one at which somebody goes on answering is in use. A server
/// that ends is given a moment: the kernel lets go of its socket with its last thread, after it counts as dead.
fn remove_socket(path: &Path) -> io::Result<()> {
    let until = Instant::now() + LAST_ANSWERS;
    loop {
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
        if !is_socket {
            return Ok(());
        }
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
            _ if Instant::now() >= until => return Ok(()),
            _ => std::thread::sleep(LOOK_INTERVAL),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Kills every process that belongs to a sandbox, the server first, so that it starts no other, and takes
/// away what it has on the host. Hooks come last: they are others' programs, and may take the time that is
/// left or be cut off with us. What then has not run stays on record, for whoever cleans up next.
///
/// # Errors
/// The directory or the socket, where one is named, cannot be removed.
pub(super) fn clean(directory: &StateDir, socket: Option<&Path>) -> io::Result<()> {
    let began = Instant::now();
    let own = std::process::id();
    let recorded: Vec<_> = ["shim", "vmm", "virtiofsd"]
        .into_iter()
        .filter_map(|role| directory.recorded(role))
        .filter(|process| process.pid != own)
        .collect();
    for process in &recorded {
        process.kill();
    }
    loop {
        let mut owned = directory.owned_processes();
        // The shim is in its bundle, and answers at its socket until it is gone.
        owned.extend(recorded.iter().filter(|process| process.is_alive()));
        if owned.is_empty() || began.elapsed() >= DEATH_TIMEOUT {
            break;
        }
        for process in owned {
            process.kill();
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    network::undo(directory);
    cgroup::undo(directory);
    let socket = socket.map_or(Ok(()), remove_socket);
    let removed = directory.remove_but(hooks::is_record);
    if hooks::after_all(directory, PATIENCE.saturating_sub(began.elapsed())) {
        directory.remove().and(socket)
    } else {
        warn!(path = %directory.path().display(), "hooks had no time to run: their record stays");
        removed.and(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_kills_what_was_recorded_and_what_was_not() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(&root.path().join("pod"));
        directory.create().unwrap();
        let sleeper = |in_directory: bool| {
            let mut command = std::process::Command::new("sleep");
            command.arg("60");
            if in_directory {
                command.current_dir(directory.path());
            }
            command.spawn().unwrap()
        };
        let (mut recorded, mut stray, mut other) = (sleeper(false), sleeper(true), sleeper(false));
        directory.record("vmm", recorded.id()).unwrap();
        // Reaped meanwhile, as the kernel's init does it for a dead shim's children.
        let reaper = std::thread::spawn(move || (recorded.wait().unwrap(), stray.wait().unwrap()));
        clean(&directory, None).unwrap();
        clean(&directory, None).unwrap();
        let (recorded, stray) = reaper.join().unwrap();
        assert!(!recorded.success() && !stray.success());
        assert!(other.try_wait().unwrap().is_none());
        assert!(!directory.path().exists());
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_socket_goes_only_when_nobody_answers_at_it() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(&root.path().join("pod"));
        directory.create().unwrap();
        let socket = root.path().join("s");
        record_socket(&directory, &socket).unwrap();
        assert_eq!(recorded_socket(&directory), Some(socket.clone()));
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        remove_socket(&socket).unwrap();
        assert!(socket.exists(), "a live server's");
        drop(listener);
        remove_socket(&socket).unwrap();
        assert!(!socket.exists());
        remove_socket(&socket).unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        remove_socket(&file).unwrap();
        assert!(file.exists(), "no socket");
    }

    #[test]
    fn what_a_hook_has_no_time_for_stays_on_record_and_all_else_goes() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(&root.path().join("pod"));
        directory.create().unwrap();
        directory.write("other", b"x").unwrap();
        std::fs::create_dir_all(directory.shared().join("c")).unwrap();
        directory.write("poststop-c", b"x").unwrap();
        directory.remove_but(hooks::is_record).unwrap();
        let left: Vec<_> = std::fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["poststop-c"]);
    }
}
