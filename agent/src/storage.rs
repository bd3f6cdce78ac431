//! What a request's `Storage` asks to be mounted, and how often it is in use.
//!
//! Containers of a pod name the same mount point more than once (an `emptyDir`, the shared
//! directory): the first use mounts, the last release unmounts.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use agent_api::{ErrorCode, GuestError, agent};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, unmount};

use crate::fault::{OrFail, invalid, unimplemented};
use crate::path;

const PHASE: &str = "storage";
/// The drivers of this file, as `GetGuestDetails` lists them.
pub const DRIVERS: [&str; 4] = ["virtio-fs", "ephemeral", "local", "bind"];
/// Storages in use at once; a pod has a handful.
const MAX_STORAGES: usize = 1024;

/// The storages in use.
#[derive(Debug, Default)]
pub struct Storages {
    table: Mutex<HashMap<PathBuf, Use>>,
}

#[derive(Debug)]
struct Use {
    count: usize,
    /// What was mounted, to find out that a second use means the same.
    driver: String,
    source: String,
    is_mount: bool,
}

impl Storages {
    /// Mounts a storage, or counts one use more. Gives the mount point, to release later.
    ///
    /// # Errors
    ///
    /// The driver is unknown, the place is taken by another storage, or mount(2) fails.
    pub fn attach(&self, storage: &agent::Storage) -> Result<PathBuf, GuestError> {
        if storage.fs_group.is_some() {
            return Err(unimplemented(
                PHASE,
                "fs_group is not supported: set the group in the pod",
            ));
        }
        let point = path::lexical(PHASE, &storage.mount_point)?;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.get_mut(&point) {
            if known.driver != storage.driver || known.source != storage.source {
                let message = format!("{} holds another storage", point.display());
                return Err(GuestError::new(ErrorCode::AlreadyExists, PHASE, message));
            }
            known.count += 1;
            return Ok(point);
        }
        if table.len() >= MAX_STORAGES {
            let message = format!("more than {MAX_STORAGES} storages");
            return Err(GuestError::new(
                ErrorCode::ResourceExhausted,
                PHASE,
                message,
            ));
        }
        let is_mount = attach(storage)?;
        let (driver, source) = (storage.driver.clone(), storage.source.clone());
        table.insert(
            point.clone(),
            Use {
                count: 1,
                driver,
                source,
                is_mount,
            },
        );
        Ok(point)
    }

    /// Ends one use.
    pub fn release(&self, point: &Path) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = table.get_mut(point) else {
            return;
        };
        known.count -= 1;
        if known.count > 0 {
            return;
        }
        let is_mount = known.is_mount;
        table.remove(point);
        if is_mount && let Err(error) = unmount(point, UnmountFlags::DETACH) {
            tracing::warn!(point = %point.display(), %error, "not unmounted");
        }
    }
}

/// Gives whether something was mounted.
fn attach(storage: &agent::Storage) -> Result<bool, GuestError> {
    let driver = storage.driver.as_str();
    if !DRIVERS.contains(&driver) {
        let known = DRIVERS.join(", ");
        let message = format!("storage driver {driver:?} is not supported; these are: {known}");
        return Err(unimplemented(PHASE, message));
    }
    let point = path::directory(PHASE, &storage.mount_point)?;
    let failed = format!("mount {driver} on {}", point.display());
    match driver {
        "virtio-fs" => {
            let (flags, data) = mount_options(&storage.options)?;
            mount(
                &*storage.source,
                &point,
                "virtiofs",
                flags | MountFlags::NODEV,
                data.as_c_str(),
            )
            .or_internal(PHASE, format!("{failed} (tag {:?})", storage.source))?;
        }
        "ephemeral" => {
            let (flags, data) = mount_options(&storage.options)?;
            mount(
                "tmpfs",
                &point,
                "tmpfs",
                flags | MountFlags::NODEV,
                data.as_c_str(),
            )
            .or_internal(PHASE, failed)?;
        }
        "bind" => {
            let source = path::existing(PHASE, &storage.source)?;
            mount_bind_recursive(&source, &point).or_internal(PHASE, failed)?;
        }
        _ => {
            fs::set_permissions(
                &point,
                fs::Permissions::from_mode(local_mode(&storage.options)?),
            )
            .or_internal(PHASE, failed)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// A local directory is for the pod's containers, whoever they run as.
fn local_mode(options: &[String]) -> Result<u32, GuestError> {
    let Some(mode) = options
        .iter()
        .find_map(|option| option.strip_prefix("mode="))
    else {
        return Ok(0o777);
    };
    let parsed = u32::from_str_radix(mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777);
    parsed.ok_or_else(|| invalid(PHASE, format!("mode={mode} is not a mode")))
}

/// Flags, and the rest for the file system.
fn mount_options(options: &[String]) -> Result<(MountFlags, CString), GuestError> {
    let mut flags = MountFlags::empty();
    let mut rest = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" => {}
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            other => rest.push(other),
        }
    }
    let rest = CString::new(rest.join(",")).map_err(|e| invalid(PHASE, e))?;
    Ok((flags, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> (MountFlags, String) {
        let list: Vec<_> = text.split(' ').map(str::to_owned).collect();
        let (flags, rest) = mount_options(&list).unwrap();
        (flags, rest.into_string().unwrap())
    }

    #[test]
    fn flags_are_told_from_the_file_systems_own_options() {
        let (flags, rest) = options("noexec nosuid mode=1777 size=64m rw");
        assert_eq!(flags, MountFlags::NOEXEC | MountFlags::NOSUID);
        assert_eq!(rest, "mode=1777,size=64m");
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(local_mode(&[]).unwrap(), 0o777);
        assert_eq!(local_mode(&["mode=0750".into()]).unwrap(), 0o750);
        assert!(local_mode(&["mode=9".into()]).is_err());
    }

    #[test]
    fn unknown_drivers_and_places_are_refused() {
        let mut storage = agent::Storage::new();
        storage.driver = "nvdimm".into();
        storage.mount_point = "/run/kata-containers/x".into();
        let error = Storages::default().attach(&storage).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unimplemented);
        assert!(error.message.contains("nvdimm"), "{error}");
        storage.mount_point = "/etc".into();
        let error = Storages::default().attach(&storage).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }
}
