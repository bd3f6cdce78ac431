//! From the kernel's initramfs to a running system: modules, file systems, a root that containers
//! can pivot away from, loopback.
//!
//! `pivot_root(2)` does not work while the root is the kernel's own `rootfs`, so the agent moves
//! to a tmpfs first. Its executable stays in the old root, unlinked but held by the process:
//! `/proc/self/exe` still starts it.

use std::path::Path;
use std::{fs, io};

use evidence::Tee;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::cmdline::Cmdline;
use crate::module::{self, Ability};
use crate::{cgroup, disk, hotplug, scratch};

/// Where the new root is while the old one is still `/`.
const NEW_ROOT: &str = "/newroot";

/// The step of the boot that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel module did not load.
    #[error(transparent)]
    Module(#[from] module::Error),
    /// A file system did not mount.
    #[error("mount {kind} on {target}: {cause}")]
    Mount {
        /// The file system.
        kind: &'static str,
        /// Where.
        target: String,
        /// Why.
        cause: io::Error,
    },
    /// Some other step.
    #[error("{step}: {cause}")]
    Step {
        /// Which.
        step: String,
        /// Why.
        cause: io::Error,
    },
}

/// A file system that every guest has.
struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static str,
}

const NO_DEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_EXEC: MountFlags = NO_DEV.union(MountFlags::NOEXEC);

/// Of `/run`; its size is set by [`limit_run`], when it is known what else takes memory.
const RUN_OPTIONS: &str = "mode=0755";
/// Bytes of free memory that `/run` must leave to the agent, its decoders and the kernel. Images are
/// unpacked there: a file system that takes the last page ends the guest, a full one is an error.
const MEMORY_KEPT: u64 = 64 << 20;

/// In order: a later one may lie in an earlier one.
const FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem {
        kind: "proc",
        target: "/proc",
        flags: NO_EXEC,
        options: "",
    },
    FileSystem {
        kind: "sysfs",
        target: "/sys",
        flags: NO_EXEC,
        options: "",
    },
    FileSystem {
        kind: "devtmpfs",
        target: "/dev",
        flags: MountFlags::NOSUID,
        options: "mode=0755",
    },
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: "gid=5,mode=0620,ptmxmode=0666",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: NO_EXEC,
        options: "mode=1777",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/run",
        flags: NO_DEV,
        options: RUN_OPTIONS,
    },
    // The agent's own state: a workload that fills its root must not keep the agent from working.
    FileSystem {
        kind: "tmpfs",
        target: crate::path::STATE,
        flags: NO_EXEC,
        options: "mode=0700,size=16m",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/tmp",
        flags: NO_DEV,
        options: "mode=1777",
    },
    FileSystem {
        kind: "cgroup2",
        target: "/sys/fs/cgroup",
        flags: NO_EXEC,
        options: "",
    },
];

/// Modules that are loaded later, or never.
#[derive(Debug)]
pub struct Modules {
    /// What a scratch disk needs.
    pub scratch: Ability,
    /// What gives free memory back to the host.
    pub balloon: Ability,
    /// What disks need that come later.
    pub disks: Ability,
    /// What reads layers of images on them.
    pub layers: Ability,
    /// What encrypts them.
    pub encryption: Ability,
}

/// Brings the system up, and answers the modules that may be needed later. Called once, by PID 1, before it
/// has threads.
///
/// # Errors
///
/// Names the step; the guest cannot go on.
pub fn bring_up() -> Result<Modules, Error> {
    module::load_boot()?;
    let scratch = Ability::open(scratch::ABILITY)?;
    mount_new_root()?;
    for ability in abilities() {
        Ability::open(ability)?.load()?;
    }
    let sys = Path::new(NEW_ROOT).join("sys");
    let balloon = hotplug::balloon(&sys)?;
    let disks = disk::ability(&sys)?;
    let layers = disk::layers(&sys)?;
    let encryption = disk::encryption(&sys)?;
    switch_root()?;
    mount_configfs()?;
    enable_controllers()?;
    crate::network::bring_up_loopback().map_err(step("loopback"))?;
    Ok(Modules {
        scratch,
        balloon,
        disks,
        layers,
        encryption,
    })
}

/// The drivers of this guest's TEE. They refuse another machine: then it is not what it was configured to be.
/// A command line that cannot be read is told later, when the host can be.
fn abilities() -> &'static [&'static str] {
    let text = fs::read_to_string(Path::new(NEW_ROOT).join("proc/cmdline"));
    let cmdline = text.ok().and_then(|text| text.parse::<Cmdline>().ok());
    match cmdline.and_then(|cmdline| cmdline.tee) {
        Some(Tee::Snp) => &["tsm", "sev-guest"],
        Some(Tee::Tdx) => &["tsm", "tdx-guest"],
        None | Some(Tee::SimSnp | Tee::SimTdx | Tee::Sample) => &[],
    }
}

fn mount_new_root() -> Result<(), Error> {
    fs::create_dir_all(NEW_ROOT).map_err(step(NEW_ROOT))?;
    mount_one(
        "tmpfs",
        NEW_ROOT,
        MountFlags::NODEV | MountFlags::NOSUID,
        "mode=0755",
    )?;
    for file_system in FILE_SYSTEMS {
        let target = format!("{NEW_ROOT}{}", file_system.target);
        fs::create_dir_all(&target).map_err(step(&target))?;
        mount_one(
            file_system.kind,
            &target,
            file_system.flags,
            file_system.options,
        )?;
    }
    for directory in ["/etc", "/root", "/var"] {
        let path = format!("{NEW_ROOT}{directory}");
        fs::create_dir_all(&path).map_err(step(&path))?;
    }
    Ok(())
}

fn switch_root() -> Result<(), Error> {
    empty_initramfs();
    std::env::set_current_dir(NEW_ROOT).map_err(step(NEW_ROOT))?;
    mount_move(".", "/").map_err(|e| step("move the root")(e.into()))?;
    rustix::process::chroot(".").map_err(|e| step("chroot")(e.into()))?;
    std::env::set_current_dir("/").map_err(step("/"))
}

/// Lets `/run` take what is free once the initramfs is gone, without what is kept back and what is
/// `promised` to others; in a guest so small that this would leave little, half of it.
///
/// # Errors
///
/// Those of mount(2).
pub fn limit_run(promised: u64) -> Result<(), Error> {
    let info = rustix::system::sysinfo();
    let free = info.freeram.saturating_mul(u64::from(info.mem_unit));
    let free = free.saturating_sub(promised);
    let options = format!("{RUN_OPTIONS},size={}", run_size(free));
    let options = std::ffi::CString::new(options).map_err(|e| step("options of /run")(e.into()))?;
    rustix::mount::mount_remount("/run", NO_DEV, options.as_c_str())
        .map_err(|e| step("limit /run")(e.into()))
}

fn run_size(free: u64) -> u64 {
    free.saturating_sub(MEMORY_KEPT).max(free / 2)
}

/// The initramfs stays in memory for ever; what is not needed any more is taken off it. Nothing
/// depends on it, so that an error is not one.
fn empty_initramfs() {
    let Ok(entries) = fs::read_dir("/") else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path == Path::new(NEW_ROOT) {
            continue;
        }
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let _ = if is_directory {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
}

/// Evidence of real TEEs comes through configfs; a kernel without it has no TEE to ask.
fn mount_configfs() -> Result<(), Error> {
    let target = "/sys/kernel/config";
    if Path::new(target).exists() {
        mount_one("configfs", target, NO_EXEC, "")?;
    }
    Ok(())
}

/// Containers get the controllers that the root and their parent pass down. The parent is made here: of two containers
/// that begin at once each would find it missing, and only one could make it.
fn enable_controllers() -> Result<(), Error> {
    let root = Path::new(cgroup::MOUNT);
    let parent = format!("{}{}", cgroup::MOUNT, cgroup::PARENT);
    let parent = Path::new(&parent);
    let available = fs::read_to_string(root.join("cgroup.controllers")).map_err(step("cgroup"))?;
    fs::create_dir(parent).map_err(step("cgroup of the containers"))?;
    for directory in [root, parent] {
        let control = directory.join("cgroup.subtree_control");
        for controller in available.split_ascii_whitespace() {
            fs::write(&control, format!("+{controller}"))
                .map_err(step(&format!("cgroup controller {controller}")))?;
        }
    }
    Ok(())
}

fn mount_one(
    kind: &'static str,
    target: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), Error> {
    let options = std::ffi::CString::new(options).map_err(|e| step("options")(e.into()))?;
    mount(kind, target, kind, flags, options.as_c_str()).map_err(|e| Error::Mount {
        kind,
        target: target.to_owned(),
        cause: e.into(),
    })
}

fn step(step: &str) -> impl FnOnce(io::Error) -> Error {
    let step = step.to_owned();
    move |cause| Error::Step { step, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_leaves_memory_to_the_agent_however_small_the_guest() {
        assert_eq!(run_size(400 << 20), 336 << 20);
        assert_eq!(run_size(100 << 20), 50 << 20);
        assert_eq!(run_size(0), 0);
    }
}
