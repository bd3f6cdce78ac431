//! What a container has in the directory that a plain guest shares with its host: mounts, undone when it goes.

use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::{GUEST_SHARED, RootfsError, mapped};
use crate::idmap::Users;
use crate::spec::amend::HostBind;
use crate::state_dir::StateDir;

/// What a container has mounted below the shared directory. Dropping it undoes the mounts.
#[derive(Debug)]
pub struct Shared {
    directory: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Shared {
    /// Prepares the directory of one container.
    ///
    /// # Errors
    /// As the directory cannot be made.
    pub fn new(directory: &StateDir, container: &str) -> Result<Self, RootfsError> {
        let directory = directory.shared().join(container);
        make_directory(&directory)?;
        Ok(Self {
            directory,
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
        let target = self.directory.join("rootfs");
        make_directory(&target)?;
        if mounts.is_empty() {
            if root.is_empty() {
                return Err(RootfsError::Nothing);
            }
            return self.bind(&bundle.join(root), target);
        }
        for mount in mounts {
            if let Some(owners) = mapped::Owners::of(mount)? {
                owners.mount(mount, &target)?;
                self.mounted.push(target.clone());
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
            self.mounted.push(target.clone());
        }
        Ok(())
    }

    /// Shares one file or directory, with its owners mapped where somebody maps them; returns its path in the guest.
    ///
    /// # Errors
    /// [`RootfsError`] names the path.
    pub fn share(&mut self, bind: &HostBind, users: Option<&Users>) -> Result<String, RootfsError> {
        let source = Path::new(&bind.source);
        let is_directory = std::fs::metadata(source)
            .map_err(|source| RootfsError::Make {
                path: PathBuf::from(&bind.source),
                source,
            })?
            .is_dir();
        let name = format!("mount-{}", bind.index);
        let target = self.directory.join(&name);
        if is_directory {
            make_directory(&target)?;
        } else {
            std::fs::File::create(&target).map_err(|source| RootfsError::Make {
                path: target.clone(),
                source,
            })?;
        }
        match users {
            Some(users) => self.bind_mapped(source, target, users)?,
            None => self.bind(source, target)?,
        }
        let container = self
            .directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(format!("{GUEST_SHARED}/{container}/{name}"))
    }

    fn bind_mapped(
        &mut self,
        source: &Path,
        target: PathBuf,
        users: &Users,
    ) -> Result<(), RootfsError> {
        users
            .bind(source, &target, true)
            .map_err(|error| RootfsError::Owners {
                path: source.to_owned(),
                cause: error.to_string(),
            })?;
        self.mounted.push(target);
        Ok(())
    }

    fn bind(&mut self, source: &Path, target: PathBuf) -> Result<(), RootfsError> {
        let failed = |error: rustix::io::Errno| RootfsError::Mount {
            what: source.display().to_string(),
            path: target.clone(),
            cause: error.to_string(),
        };
        rustix::mount::mount_bind_recursive(source, &target).map_err(failed)?;
        // Undoing it later must not undo anything of the host's.
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(&target, private).map_err(failed)?;
        self.mounted.push(target);
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for target in self.mounted.drain(..).rev() {
            if let Err(error) = rustix::mount::unmount(&target, UnmountFlags::DETACH) {
                tracing::warn!(%error, path = %target.display(), "unmount");
            }
        }
        // Removes what was mounted on, and stops at anything that is still mounted.
        if let Err(error) = remove_empty_tree(&self.directory) {
            tracing::warn!(%error, path = %self.directory.display(), "remove");
        }
    }
}

fn make_directory(path: &Path) -> Result<(), RootfsError> {
    std::fs::create_dir_all(path).map_err(|source| RootfsError::Make {
        path: path.to_owned(),
        source,
    })
}

/// Removes a directory whose entries are empty files and empty directories.
fn remove_empty_tree(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    std::fs::remove_dir(directory)
}
