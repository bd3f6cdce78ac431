//! The namespaces that the shim itself is in, so that what it mounts goes with it.

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags};

/// Where daemons of QEMU before 8.0 keep their locks.
const OLD_DAEMONS: &str = "/run/virtiofsd";

/// Gives the shim a mount namespace of its own, in which the host's later mounts still appear. What
/// the shim mounts is then gone when its last process is, however it ends. A user other than root gets a
/// user namespace with it, in which they are root and nobody else is there. Must be called before there
/// are threads.
///
/// # Errors
/// As the kernel refuses.
pub fn enter() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if user.is_root() {
        unshare(CloneFlags::CLONE_NEWNS)?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(refused)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
        std::fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))?;
    }
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downstream)?;
    if !user.is_root() {
        lend_directory_to_old_daemons();
    }
    Ok(())
}

/// Leaves the host's name and IPC, as a process does that others are to find no way into the host by. The mounts
/// that it has are the shim's already, and a copy of them would keep busy what the shim unmounts; its network is
/// the caller's business.
///
/// # Errors
/// As the kernel refuses.
pub fn leave_host() -> io::Result<()> {
    Ok(unshare(
        CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC,
    )?)
}

/// The virtio-fs daemon of QEMU before 8.0 notes its sockets in a directory that is root's. Where it is
/// there, it gets an empty one in its place, which nobody else sees; later daemons know none.
fn lend_directory_to_old_daemons() {
    if Path::new(OLD_DAEMONS).is_dir() {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        // Without it, the daemon says what it cannot write.
        let _ = rustix::mount::mount("tmpfs", OLD_DAEMONS, "tmpfs", flags, None);
    }
}

fn refused(error: nix::Error) -> io::Error {
    let error = io::Error::from(error);
    let text = format!(
        "{error}: a user other than root needs user namespaces; `cloister check` says why there are none"
    );
    io::Error::new(error.kind(), text)
}
