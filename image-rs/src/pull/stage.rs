//! The place where an image is put together, beside its target and removed with all that is in it.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, statvfs};
use tempfile::TempDir;
use tokio::task::JoinError;

use super::PullError;
use crate::unpack::Root;

/// A directory on the target's file system; dropping it removes it.
pub(super) struct Stage(TempDir);

impl Stage {
    pub(super) fn new(target: &Path) -> Result<Self, PullError> {
        let parent = parent_of(target);
        if target.symlink_metadata().is_ok() {
            return Err(failed(
                "publish",
                target,
                std::io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let made = tempfile::Builder::new()
            .prefix(".pull-")
            .tempdir_in(&parent);
        let stage = Self(made.map_err(|source| failed("make a directory in", &parent, source))?);
        let rootfs = stage.rootfs_path();
        std::fs::create_dir(&rootfs).map_err(|source| failed("make directory", &rootfs, source))?;
        set_mode(&rootfs)?;
        Ok(stage)
    }

    pub(super) fn place(&self) -> PathBuf {
        parent_of(self.0.path())
    }

    pub(super) fn rootfs(&self) -> Result<Root, PullError> {
        open(&self.rootfs_path())
    }

    pub(super) fn new_layer(&self, index: usize) -> Result<Root, PullError> {
        let path = self.layer_path(index);
        std::fs::create_dir(&path).map_err(|source| failed("make directory", &path, source))?;
        open(&path)
    }

    /// An empty directory in place of one with something in it.
    pub(super) fn renew_layer(&self, index: usize) -> Result<Root, PullError> {
        let path = self.layer_path(index);
        std::fs::remove_dir_all(&path).map_err(|source| failed("remove", &path, source))?;
        self.new_layer(index)
    }

    /// Moves a layer out of the stage, onto an empty directory.
    pub(super) fn give_layer(&self, index: usize, to: &Path) -> Result<(), PullError> {
        let path = self.layer_path(index);
        std::fs::rename(&path, to).map_err(|source| failed("move a layer to", to, source))
    }

    pub(super) fn layer(&self, index: usize) -> Result<Root, PullError> {
        open(&self.layer_path(index))
    }

    /// Makes the tree visible under its name: the one step that others see.
    pub(super) fn publish(&self, target: &Path) -> Result<(), PullError> {
        renameat_with(CWD, self.rootfs_path(), CWD, target, RenameFlags::NOREPLACE)
            .map_err(|errno| failed("publish", target, errno.into()))
    }

    /// A task that panicked or was stopped.
    pub(super) fn broken(&self, error: &JoinError) -> PullError {
        broken(self.0.path(), error)
    }

    fn rootfs_path(&self) -> PathBuf {
        self.0.path().join("rootfs")
    }

    fn layer_path(&self, index: usize) -> PathBuf {
        self.0.path().join(format!("layer-{index}"))
    }
}

/// A task of a pull that panicked or was stopped.
pub(super) fn broken(path: &Path, error: &JoinError) -> PullError {
    failed(
        "finish a task of",
        path,
        std::io::Error::other(error.to_string()),
    )
}

/// Where a target stands.
pub(super) fn parent_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Bytes that are free for us where `path` is.
pub(super) fn free_bytes(path: &Path) -> Result<u64, PullError> {
    let stat = statvfs(path).map_err(|errno| failed("look at", path, errno.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether there is room for another file, however small.
pub(super) fn has_files(path: &Path) -> bool {
    statvfs(path).is_ok_and(|stat| stat.f_favail > 0)
}

/// A root that no layer describes is readable by all, as a container's root has to be.
fn set_mode(path: &Path) -> Result<(), PullError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .map_err(|source| failed("set mode of", path, source))
}

fn open(path: &Path) -> Result<Root, PullError> {
    Root::open(path).map_err(|error| failed("open", path, std::io::Error::other(error)))
}

pub(super) fn failed(step: &'static str, path: &Path, source: std::io::Error) -> PullError {
    PullError::Store {
        step,
        path: path.to_owned(),
        source,
    }
}
