//! The tap of a macvtap interface: a character device of the host, whose numbers are in the namespace's
//! own sysfs. The host's `/dev` may have a node of the same name for another namespace's interface, so a
//! node of our own is made and opened, in a file system that only the opening thread sees.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use super::NetworkError;
use super::plan::Wire;
use crate::state_dir::StateDir;

/// Below the sandbox's directory, empty for everybody else, and there only while a device is opened.
const PLACE: &str = "macvtap";

/// Opens the device of an interface of the calling thread's network namespace. The thread gets a mount
/// namespace of its own, in which it stays.
///
/// # Errors
/// [`NetworkError::Tap`] names the interface.
pub(super) fn open(wire: &Wire, directory: &StateDir) -> Result<OwnedFd, NetworkError> {
    let place = directory.path().join(PLACE);
    let opened = fs::create_dir_all(&place).and_then(|()| {
        let opened = open_at(&place, wire.index);
        fs::remove_dir(&place)?;
        opened
    });
    opened.map_err(|source| NetworkError::Tap {
        interface: wire.name.clone(),
        advice: "open its macvtap device; the kernel must have the module `macvtap`",
        source,
    })
}

fn open_at(place: &Path, index: u32) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let apart = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", apart)?;
    let numbers = numbers(place, index)?;
    // The file system of the sandbox's directory may allow no devices.
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("tmpfs", place, "tmpfs", flags, Some(c"mode=0700"))?;
    let opened = open_node(&place.join("tap"), numbers);
    unmount(place, UnmountFlags::DETACH)?;
    opened
}

/// Reads the numbers of the device: a sysfs shows the network namespace in which it was mounted.
fn numbers(place: &Path, index: u32) -> io::Result<(u64, u64)> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", place, "sysfs", flags, None)?;
    let text = fs::read_to_string(place.join(format!("class/macvtap/tap{index}/dev")));
    unmount(place, UnmountFlags::DETACH)?;
    parse(&text?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// `240:3`.
fn parse(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn open_node(path: &Path, (major, minor): (u64, u64)) -> io::Result<OwnedFd> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    mknod(path, SFlag::S_IFCHR, mode, makedev(major, minor))?;
    let opened = File::options().read(true).write(true).open(path)?;
    Ok(opened.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_two_numbers() {
        assert_eq!(parse("240:3\n"), Some((240, 3)));
        for text in ["", "240", "240:", ":3", "a:b"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
