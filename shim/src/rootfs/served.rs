//! What the virtio-fs daemon serves: the containers' mount points, in a view in which nobody can make, rename or remove
//! one.
//!
//! Root of a pod that may mount file systems can mount the share itself, and then has of it what the daemon has: all
//! that the host's root may do. A name that it planted there, a link above all, would be followed by whoever acts on
//! the same path on the host. So names are made and removed in a directory that the guest never sees, and a read-only
//! bind mount of it is served. What is mounted on the names of that view is as writable as each mount says.
//!
//! Shim and daemon are in one mount namespace: what the shim mounts or unmounts later, the daemon sees at once, and no
//! mount has to be propagated.

use std::path::PathBuf;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount,
    unmount,
};

use super::RootfsError;
use crate::state_dir::StateDir;

/// Makes the view of a sandbox, and returns where it is.
///
/// # Errors
/// [`RootfsError`] names the directory; there is no view then that could be written to.
pub fn serve(directory: &StateDir) -> Result<PathBuf, RootfsError> {
    let (mounts, served) = (directory.mounts(), directory.shared());
    for path in [&mounts, &served] {
        std::fs::create_dir_all(path).map_err(|source| RootfsError::Make {
            path: path.clone(),
            source,
        })?;
    }
    let failed = |error: rustix::io::Errno| RootfsError::Mount {
        what: mounts.display().to_string(),
        path: served.clone(),
        cause: error.to_string(),
    };
    mount_bind(&mounts, &served).map_err(failed)?;
    // Of this mount alone. A user who is not root may add to the flags that the file system has, and take none away.
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    let closed = mount_change(&served, MountPropagationFlags::PRIVATE)
        .and_then(|()| mount_remount(&served, flags, c""));
    if let Err(error) = closed {
        let _ = unmount(&served, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        return Err(failed(error));
    }
    Ok(served)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::{self, Permissions};
    use std::io;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::libc::EROFS;

    use super::*;
    use crate::rootfs::Shared;
    use crate::spec::amend::HostBind;

    /// A sandbox that is served; what is mounted goes with it.
    pub(in crate::rootfs) struct Stage {
        pub(in crate::rootfs) root: tempfile::TempDir,
        pub(in crate::rootfs) directory: StateDir,
    }

    impl Stage {
        /// None, with a message, where this user mounts nothing.
        pub(in crate::rootfs) fn new() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                assert!(
                    std::env::var_os("CLOISTER_NO_SKIP").is_none_or(|v| v != "1"),
                    "CLOISTER_NO_SKIP=1, but this test mounts, which needs root"
                );
                eprintln!("SKIPPED: mounting needs root");
                return None;
            }
            let root = tempfile::tempdir().unwrap();
            let directory = StateDir::at(&root.path().join("pod"));
            directory.create().unwrap();
            assert_eq!(serve(&directory).unwrap(), directory.shared());
            Some(Self { root, directory })
        }

        /// A directory of the host with one file.
        pub(in crate::rootfs) fn source(&self, name: &str) -> PathBuf {
            let source = self.root.path().join(name);
            fs::create_dir(&source).unwrap();
            fs::write(source.join("file"), "of the host").unwrap();
            source
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            // Before the temporary directory is removed with all that is in it.
            self.directory.remove().unwrap();
        }
    }

    fn refused(what: &str, done: io::Result<()>) {
        let error = done.expect_err(what);
        assert_eq!(error.raw_os_error(), Some(EROFS), "{what}: {error}");
    }

    #[test]
    fn no_name_of_what_is_served_can_be_made_renamed_or_removed() {
        let Some(stage) = Stage::new() else { return };
        let served = stage.directory.shared();
        // As a container's that is about to be mounted on, or no longer is.
        fs::create_dir_all(stage.directory.mounts().join("c/rootfs")).unwrap();
        fs::write(stage.directory.mounts().join("c/mount-0"), "").unwrap();
        let at = |name: &str| served.join(name);
        assert!(at("c/rootfs").is_dir() && at("c/mount-0").is_file());
        refused("rename", fs::rename(at("c"), at("x")));
        refused("rename", fs::rename(at("c/rootfs"), at("c/x")));
        refused("link", symlink("/etc", at("x")));
        refused("link", symlink("/etc", at("c/mount-1")));
        refused("file", fs::write(at("c/mount-1"), ""));
        refused("overwrite", fs::write(at("c/mount-0"), "x"));
        refused("directory", fs::create_dir(at("c/x")));
        refused("unlink", fs::remove_file(at("c/mount-0")));
        refused("rmdir", fs::remove_dir(at("c/rootfs")));
        let mode = Permissions::from_mode(0o777);
        refused("mode", fs::set_permissions(at("c"), mode));
    }

    #[test]
    fn what_is_mounted_later_is_seen_and_as_writable_as_it_is() {
        let Some(stage) = Stage::new() else { return };
        let source = stage.source("volume");
        let served = stage.directory.shared();
        let mut shared = Shared::new(&stage.directory, "c").unwrap();
        let mut share = |index, source: &std::path::Path, read_only| {
            let bind = HostBind {
                index,
                source: source.display().to_string(),
                read_only,
            };
            shared.share(&bind, None).unwrap()
        };
        assert_eq!(
            share(3, &source, false),
            "/run/kata-containers/shared/containers/c/mount-3"
        );
        share(4, &source.join("file"), false);
        share(5, &source, true);
        refused("file", fs::write(served.join("c/mount-5/new"), "x"));
        refused("overwrite", fs::write(served.join("c/mount-5/file"), "x"));
        fs::write(served.join("c/mount-3/new"), "of the guest").unwrap();
        assert_eq!(fs::read(source.join("new")).unwrap(), b"of the guest");
        fs::write(served.join("c/mount-4"), "changed").unwrap();
        assert_eq!(fs::read(source.join("file")).unwrap(), b"changed");
        fs::rename(served.join("c/mount-3/new"), served.join("c/mount-3/old")).unwrap();
        refused("rename", fs::rename(served.join("c"), served.join("x")));
        drop(shared);
        assert!(fs::read_dir(&served).unwrap().next().is_none());
        assert!(source.join("old").exists(), "the host's files stay");
    }

    #[test]
    fn the_directory_goes_with_its_mounts_and_not_with_what_is_mounted() {
        let Some(stage) = Stage::new() else { return };
        let source = stage.source("volume");
        let mut shared = Shared::new(&stage.directory, "c").unwrap();
        shared
            .mount_rootfs(&[], stage.root.path(), "volume")
            .unwrap();
        let root = stage.directory.shared().join("c/rootfs");
        assert!(root.join("file").exists());
        // As whoever cleans up after a shim that was killed.
        std::mem::forget(shared);
        stage.directory.remove().unwrap();
        assert!(!stage.directory.path().exists());
        assert!(source.join("file").exists());
    }

    #[test]
    fn a_sandbox_that_is_served_twice_is_served_read_only() {
        let Some(stage) = Stage::new() else { return };
        let served = serve(&stage.directory).unwrap();
        refused("directory", fs::create_dir(served.join("x")));
    }
}
