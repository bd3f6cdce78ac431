//! A loop device of the host, as the block device that a storage driver would bring.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::State;
use support::run::{Finished, within};

use super::LIMIT;

/// Bytes of a disk: what ext4 needs with a journal.
pub(crate) const BYTES: u64 = 16 << 20;

/// The device; it is let go when this is dropped.
pub(crate) struct Disk {
    pub(crate) device: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// An empty one; none where this machine has no loop devices.
    pub(crate) fn new(state: &State, name: &str) -> Option<Self> {
        let image = state.path().join(name);
        File::create(&image).unwrap().set_len(BYTES).unwrap();
        let mut losetup = Command::new("losetup");
        let made = within(LIMIT, losetup.args(["--find", "--show"]).arg(&image)).unwrap();
        let device = made.ok().ok()?.stdout.trim().into();
        Some(Self { device, image })
    }

    /// With a file system, and what is below `root` in it.
    pub(crate) fn ext4(state: &State, name: &str, root: &Path) -> Option<Self> {
        let disk = Self::new(state, name)?;
        let mut mkfs = Command::new("mkfs.ext4");
        said(mkfs.args(["-q", "-d"]).arg(root).arg(&disk.device));
        Some(disk)
    }

    /// What is at an offset of the image, as the host reads it.
    pub(crate) fn at(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        let file = File::open(&self.image).unwrap();
        file.read_exact_at(&mut found, offset).unwrap();
        found
    }

    /// Makes it larger, as its driver would.
    pub(crate) fn grow(&self, bytes: u64) {
        let image = File::options().write(true).open(&self.image).unwrap();
        image.set_len(bytes).unwrap();
        said(Command::new("losetup").arg("-c").arg(&self.device));
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let device = File::options().write(true).open(&self.device).unwrap();
        device.write_all_at(bytes, offset).unwrap();
        device.sync_all().unwrap();
    }

    /// A file of its ext4, which is whole.
    pub(crate) fn file(&self, path: &str) -> String {
        let mut check = Command::new("e2fsck");
        said(check.args(["-f", "-n"]).arg(&self.image));
        let mut cat = Command::new("debugfs");
        said(cat.args(["-R", &format!("cat {path}")]).arg(&self.image)).stdout
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = within(LIMIT, Command::new("losetup").arg("-d").arg(&self.device));
    }
}

#[track_caller]
pub(crate) fn said(command: &mut Command) -> Finished {
    within(LIMIT, command).unwrap().ok().unwrap()
}
