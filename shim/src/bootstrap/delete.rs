//! `delete`: removes what a server that died has left: the VMM, the virtio-fs daemon, mounts,
//! sockets, the pod's cgroup, what stands in its network namespace, and the state directory. It can be run
//! any number of times, at any moment.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use containerd_shim::Flags;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};

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
        clean(&directory);
        match std::fs::remove_file(socket_of(flags, sandbox)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(step("remove the socket")(error));
            }
            _ => {}
        }
        directory
            .remove()
            .map_err(step("remove the state directory"))?;
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

/// Where the server listened: as `start` noted it, which was told a directory that nobody tells here.
fn socket_of(flags: &Flags, sandbox: &str) -> PathBuf {
    let noted = bundle(flags).and_then(|bundle| {
        std::fs::read_to_string(bundle.join("address")).map_err(step("read the address"))
    });
    match noted
        .ok()
        .as_deref()
        .and_then(|text| text.strip_prefix("unix://"))
    {
        Some(path) => PathBuf::from(path),
        None => socket_path(&flags.address, &flags.namespace, sandbox, None),
    }
}

/// Kills every process that belongs to a sandbox, the server first, so that it starts no other.
pub(super) fn clean(directory: &StateDir) {
    let own = std::process::id();
    for role in ["shim", "vmm", "virtiofsd"] {
        if let Some(process) = directory
            .recorded(role)
            .filter(|process| process.pid != own)
        {
            process.kill();
        }
    }
    let until = Instant::now() + DEATH_TIMEOUT;
    loop {
        let owned = directory.owned_processes();
        if owned.is_empty() || Instant::now() >= until {
            break;
        }
        for process in owned {
            process.kill();
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    network::undo(directory);
    hooks::after_all(directory);
    cgroup::undo(directory);
    // What is left in it is of no use to anyone.
    let _ = directory.remove();
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
        clean(&directory);
        clean(&directory);
        let (recorded, stray) = reaper.join().unwrap();
        assert!(!recorded.success() && !stray.success());
        assert!(other.try_wait().unwrap().is_none());
        assert!(!directory.path().exists());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
