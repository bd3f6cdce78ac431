//! Overlays of a test, mounted where it runs and ended with the value.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses a part of it"
)]

use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use tempfile::TempDir;

/// Lower directories as one tree that can only be read.
pub struct Overlay(TempDir, TempDir);

impl Overlay {
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The highest first. The kernel wants two, so an empty one is added.
    pub fn mount<'a>(lowers: impl IntoIterator<Item = &'a Path>) -> Self {
        let point = TempDir::new().unwrap();
        let empty = TempDir::new().unwrap();
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        for lower in lowers {
            fsconfig_set_string(&context, "lowerdir+", lower).unwrap();
        }
        fsconfig_set_string(&context, "lowerdir+", empty.path()).unwrap();
        fsconfig_create(&context).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = fsmount(&context, flags, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap();
        let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", rustix::fs::CWD, point.path(), from).unwrap();
        Self(point, empty)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// Whether overlays can be mounted here: by root only.
pub fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(
        is_root || std::env::var_os("CLOISTER_NO_SKIP").is_none(),
        "an overlay needs root"
    );
    if !is_root {
        eprintln!("skipped: an overlay needs root");
    }
    is_root
}
