//! What a container has in the directory that a plain guest shares with its host: mounts, undone when it goes.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use nix::libc::O_NOFOLLOW;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::{GUEST_SHARED, RootfsError, mapped};
use crate::idmap::Users;
use crate::spec::amend::HostBind;
use crate::state_dir::StateDir;
use crate::tree::{Reach, Tree};

/// What a container has mounted below the shared directory. Dropping it undoes the mounts.
#[derive(Debug)]
pub struct Shared {
    container: String,
    /// Where its mount points are made and removed. The guest does not see this directory.
    points: PathBuf,
    /// The same in what is served, where they are mounted on.
    served: PathBuf,
    /// Where layers are mounted meanwhile.
    layers: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Shared {
    /// Prepares the directory of one container.
    ///
    /// # Errors
    /// As the directory cannot be made.
    pub fn new(directory: &StateDir, container: &str) -> Result<Self, RootfsError> {
        let points = directory.mounts().join(container);
        make_directory(&points)?;
        Ok(Self {
            container: container.to_owned(),
            points,
            served: directory.shared().join(container),
            layers: directory.layers(container),
            mounted: Vec::new(),
        })
    }

    /// Mounts the root file system: containerd's mounts, or else the bundle's directory.
    ///
    /// # Errors
    /// [`RootfsError::Mount`] names the mount.
    pub fn mount_rootfs(
        &mut self,
        mounts: &[Mount],
        bundle: &Path,
        root: &str,
    ) -> Result<(), RootfsError> {
        let target = self.point("rootfs", true)?;
        if mounts.is_empty() {
            if root.is_empty() {
                return Err(RootfsError::Nothing);
            }
            return self.bind(&bundle.join(root), &target);
        }
        for mount in mounts {
            let owners = mapped::Owners::of(mount)?;
            self.note(&target);
            if let Some(owners) = owners {
                owners.mount(mount, &target, &self.layers)?;
                continue;
            }
            let failed = |cause: String| RootfsError::Mount {
                what: format!("{} {}", mount.type_, mount.source),
                path: target.clone(),
                cause,
            };
            let options: Vec<String> = mount.options.clone();
            containerd_shim::mount::mount_rootfs(
                Some(mount.type_.as_str()).filter(|kind| !kind.is_empty()),
                Some(mount.source.as_str()).filter(|source| !source.is_empty()),
                &options,
                &target,
            )
            .map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }

    /// Shares one file or directory, with its owners mapped where somebody maps them; returns its path in the guest.
    ///
    /// # Errors
    /// [`RootfsError`] names the path.
    pub fn share(&mut self, bind: &HostBind, users: Option<&Users>) -> Result<String, RootfsError> {
        let source = Path::new(&bind.source);
        let is_directory = fs::metadata(source)
            .map_err(|source| RootfsError::Make {
                path: PathBuf::from(&bind.source),
                source,
            })?
            .is_dir();
        let name = format!("mount-{}", bind.index);
        let target = self.point(&name, is_directory)?;
        match (users, bind.read_only) {
            (None, false) => self.bind(source, &target)?,
            (users, read_only) => self.bind_changed(source, &target, users, read_only)?,
        }
        Ok(format!("{GUEST_SHARED}/{}/{name}", self.container))
    }

    /// Makes a mount point, and says where it is served.
    fn point(&self, name: &str, is_directory: bool) -> Result<PathBuf, RootfsError> {
        let path = self.points.join(name);
        match is_directory {
            true => make_directory(&path)?,
            false => make_file(&path)?,
        }
        Ok(self.served.join(name))
    }

    /// Notes a mount before it is made: where a later step of it fails, it may be there all the same.
    fn note(&mut self, target: &Path) {
        self.mounted.push(target.to_owned());
    }

    /// The same with mapped owners, and for nobody to write to.
    fn bind_changed(
        &mut self,
        source: &Path,
        target: &Path,
        users: Option<&Users>,
        read_only: bool,
    ) -> Result<(), RootfsError> {
        let failed = |error: io::Error| RootfsError::Mount {
            what: source.display().to_string(),
            path: target.to_owned(),
            cause: error.to_string(),
        };
        self.note(target);
        let tree = Tree::of(source, Reach::All).map_err(failed)?;
        if let Some(users) = users {
            let mapped = tree.map_owners(users.namespace(), Reach::All);
            mapped.map_err(|error| RootfsError::Owners {
                path: source.to_owned(),
                cause: error.to_string(),
            })?;
        }
        if read_only {
            tree.make_read_only(Reach::All).map_err(failed)?;
        }
        tree.attach(target).map_err(failed)
    }

    fn bind(&mut self, source: &Path, target: &Path) -> Result<(), RootfsError> {
        let failed = |error: Errno| RootfsError::Mount {
            what: source.display().to_string(),
            path: target.to_owned(),
            cause: error.to_string(),
        };
        self.note(target);
        rustix::mount::mount_bind_recursive(source, target).map_err(failed)?;
        // Undoing it later must not undo anything of the host's.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(target, private).map_err(failed)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        for target in self.mounted.drain(..).rev() {
            match rustix::mount::unmount(&target, flags) {
                // Noted, and never made.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => tracing::warn!(%error, path = %target.display(), "unmount"),
            }
        }
        // Removes what was mounted on, and stops at anything that is still mounted.
        if let Err(error) = remove_empty_tree(&self.points) {
            tracing::warn!(%error, path = %self.points.display(), "remove");
        }
    }
}

/// A directory that was not there: nobody else makes any here, so another's is refused.
pub(super) fn make_directory(path: &Path) -> Result<(), RootfsError> {
    fs::create_dir(path).map_err(not_made(path))
}

/// An empty file that was not there; no link is followed.
fn make_file(path: &Path) -> Result<(), RootfsError> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(O_NOFOLLOW)
        .open(path);
    made.map(drop).map_err(not_made(path))
}

fn not_made(path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    let path = path.to_owned();
    move |source| RootfsError::Make { path, source }
}

/// Removes a directory whose entries are empty files and empty directories. A link is removed, not followed.
fn remove_empty_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::rootfs::served::tests::Stage;

    /// A state directory in which nothing is served, and a directory of the host with one file.
    fn stage() -> (tempfile::TempDir, StateDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDir::at(&root.path().join("pod"));
        fs::create_dir_all(directory.mounts()).unwrap();
        let host = root.path().join("host");
        fs::create_dir(&host).unwrap();
        fs::write(host.join("file"), "of the host").unwrap();
        (root, directory, host)
    }

    #[test]
    fn a_link_in_the_place_of_a_mount_point_is_refused_and_leads_nowhere() {
        let (_root, directory, host) = stage();
        symlink(&host, directory.mounts().join("c")).unwrap();
        let error = Shared::new(&directory, "c").unwrap_err();
        assert!(matches!(error, RootfsError::Make { .. }), "{error}");
        let mut shared = Shared::new(&directory, "d").unwrap();
        symlink(host.join("file"), directory.mounts().join("d/mount-0")).unwrap();
        symlink(&host, directory.mounts().join("d/mount-1")).unwrap();
        symlink(&host, directory.mounts().join("d/rootfs")).unwrap();
        for (index, source) in [(0, host.join("file")), (1, host.clone())] {
            let source = source.display().to_string();
            let read_only = false;
            let bind = HostBind {
                index,
                source,
                read_only,
            };
            let error = shared.share(&bind, None);
            assert!(matches!(error, Err(RootfsError::Make { .. })), "{index}");
        }
        let error = shared.mount_rootfs(&[], &host, "rootfs").unwrap_err();
        assert!(matches!(error, RootfsError::Make { .. }), "{error}");
        drop(shared);
        assert_eq!(fs::read(host.join("file")).unwrap(), b"of the host");
        assert!(!directory.mounts().join("d").exists());
    }

    #[test]
    fn nothing_is_mounted_where_nothing_is_served() {
        let (_root, directory, host) = stage();
        let mut shared = Shared::new(&directory, "c").unwrap();
        let error = shared.mount_rootfs(&[], host.parent().unwrap(), "host");
        assert!(matches!(error, Err(RootfsError::Mount { .. })));
        drop(shared);
        assert!(fs::read_dir(directory.mounts()).unwrap().next().is_none());
    }

    #[test]
    fn mounts_on_one_point_are_all_undone_also_when_the_last_fails() {
        let Some(stage) = Stage::new() else { return };
        let source = stage.source("layer").display().to_string();
        let bind = Mount {
            type_: "bind".into(),
            source,
            options: vec!["rbind".into(), "ro".into()],
            ..Mount::default()
        };
        let wrong = Mount {
            source: "/nowhere/at/all".into(),
            ..bind.clone()
        };
        let mut shared = Shared::new(&stage.directory, "c").unwrap();
        let mounts = [bind.clone(), bind, wrong];
        let error = shared.mount_rootfs(&mounts, stage.root.path(), "");
        assert!(matches!(error, Err(RootfsError::Mount { .. })));
        let root = stage.directory.shared().join("c/rootfs");
        assert!(root.join("file").exists());
        drop(shared);
        let list = crate::mountinfo::read().unwrap();
        let left = crate::mountinfo::mounts(&list).filter(|mount| mount.point == root);
        assert_eq!(left.count(), 0);
        assert!(!root.exists() && stage.root.path().join("layer/file").exists());
    }
}
