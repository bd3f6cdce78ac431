//! What a request's `Storage` asks to be mounted, and how often it is in use.
//!
//! Containers of a pod name the same mount point more than once (an `emptyDir`, the shared
//! directory): the first use mounts, the last release unmounts. An `emptyDir` is the pod's, whose container may
//! come back: it stays until the VM ends. On disk it lies where images do, so on the scratch disk where
//! the guest uses one, or on a disk of its own (`shared`, in Kata's words).

mod disk;
mod options;
mod part;
mod resize;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::{ErrorCode, GuestError, agent};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, unmount};
use tokio::sync::watch;

use crate::crypt::{Cipher, Crypt, Mapped};
use crate::disk::Disk;
use crate::fault::{OrFail, invalid, unimplemented};
use crate::huge::Limits;
use crate::path;
use crate::places::{Place, Places};
use options::{local_mode, mount_options, take_group};

const PHASE: &str = "storage";
/// The drivers of this file, as `GetGuestDetails` lists them.
pub const DRIVERS: [&str; 6] = [
    "virtio-fs",
    "ephemeral",
    LOCAL_DRIVER,
    "bind",
    PART,
    crate::disk::DRIVER,
];
/// Storages in use at once; a pod has a handful.
const MAX_STORAGES: usize = 1024;
/// Where `local` storages lie in the image store.
const LOCAL: &str = ".local";
/// What lies there.
pub const LOCAL_DRIVER: &str = "local";
/// The file system of those in huge pages.
const HUGE: &str = "hugetlbfs";
/// Those in memory, and where nothing is said.
const TMPFS: &str = "tmpfs";
/// A directory of one that is the pod's.
const PART: &str = "part";
/// The drivers whose storages are the pod's.
const OF_POD: [&str; 2] = ["ephemeral", LOCAL_DRIVER];

/// The storages in use.
#[derive(Debug)]
pub struct Storages {
    places: Arc<Places<PathBuf, Use>>,
    is_confidential: bool,
}

/// What a container holds: mount points, the addresses of disks, huge pages; to release in this order.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Mount points.
    pub points: Vec<PathBuf>,
    /// Disks.
    pub disks: Vec<String>,
    /// Huge pages.
    pub pages: Limits,
}

impl Held {
    /// Holds what another does, too.
    pub fn extend(&mut self, other: &Self) {
        self.points.extend_from_slice(&other.points);
        self.disks.extend_from_slice(&other.disks);
        self.pages.extend(&other.pages);
    }
}

/// A disk that is to be mounted.
#[derive(Debug)]
pub struct OnDisk {
    /// The disk, which is there.
    pub disk: Disk,
    /// What decrypts it.
    pub crypt: Arc<Crypt>,
    /// How it is encrypted, if it is.
    pub cipher: Option<Cipher>,
    /// Whether an empty file system is made on it first.
    pub formats: bool,
    /// Turns true when nobody wants it any more.
    pub unwanted: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Use {
    count: usize,
    /// What was mounted, to find out that a second use means the same.
    storage: agent::Storage,
    /// What it is decrypted by.
    mapped: Option<Mapped>,
}

impl Storages {
    /// None yet.
    #[must_use]
    pub fn new(is_confidential: bool) -> Self {
        Self {
            places: Arc::new(Places::new(MAX_STORAGES)),
            is_confidential,
        }
    }

    /// Mounts a storage, or counts one use more. Gives the mount point, to release later. A mount may wait for a
    /// disk, and only those wait with it who want the same point.
    ///
    /// # Errors
    ///
    /// The driver is unknown, the place is taken by another storage, or mount(2) fails.
    pub async fn attach(&self, storage: &agent::Storage) -> Result<PathBuf, GuestError> {
        self.hold(storage, None).await
    }

    /// The same for one that is on a disk, which is there.
    ///
    /// # Errors
    ///
    /// As [`Storages::attach`], or the kernel does not know the file system.
    pub async fn attach_disk(
        &self,
        storage: &agent::Storage,
        disk: OnDisk,
    ) -> Result<PathBuf, GuestError> {
        self.hold(storage, Some(disk)).await
    }

    /// The disk of the file system at a mount point, as it was named; none where it is no disk's, or is decrypted.
    pub async fn clear_disk(&self, point: &Path) -> Option<String> {
        let place = self.places.find(&point.to_owned())?;
        let found = place.lock().await;
        let known = found.as_ref()?;
        let is_clear = known.storage.driver == crate::disk::DRIVER && known.mapped.is_none();
        is_clear.then(|| known.storage.source.clone())
    }

    /// Makes a file system on a disk larger, as its disk is already.
    ///
    /// # Errors
    ///
    /// As the kernel refuses.
    pub async fn grow(&self, point: &Path, bytes: u64) -> Result<(), GuestError> {
        let at = point.to_owned();
        let grown = tokio::task::spawn_blocking(move || resize::grow(&at, bytes)).await;
        let text = format!("make {} larger", point.display());
        grown
            .or_internal(PHASE, &text)?
            .or_fail(ErrorCode::FailedPrecondition, PHASE, text)
    }

    async fn hold(
        &self,
        storage: &agent::Storage,
        disk: Option<OnDisk>,
    ) -> Result<PathBuf, GuestError> {
        if storage.fs_group.is_some() && disk.is_none() {
            return Err(unimplemented(
                PHASE,
                "fs_group is not supported: set the group in the pod",
            ));
        }
        if self.is_confidential && storage.fstype == HUGE {
            let text = "a confidential guest has no huge pages: use an emptyDir of another medium";
            return Err(GuestError::new(ErrorCode::FailedPrecondition, PHASE, text));
        }
        let point = path::lexical(PHASE, &storage.mount_point)?;
        let place = self.places.place(&point).ok_or_else(|| {
            let message = format!("more than {MAX_STORAGES} storages");
            GuestError::new(ErrorCode::ResourceExhausted, PHASE, message)
        })?;
        let (places, storage, at) = (Arc::clone(&self.places), storage.clone(), point.clone());
        let work = move || {
            let held = hold_at(&places, &place, &at, &storage, disk.as_ref());
            drop(place);
            places.sweep(&at);
            held
        };
        let held = tokio::task::spawn_blocking(work).await;
        held.or_internal(PHASE, "mount")??;
        Ok(point)
    }

    /// Ends one use; after the last, what a disk's file system had not written is written when this returns.
    pub async fn release(&self, point: &Path) {
        let Some(place) = self.places.find(&point.to_owned()) else {
            return;
        };
        let (places, at) = (Arc::clone(&self.places), point.to_owned());
        let work = move || {
            release_at(&place, &at);
            drop(place);
            places.sweep(&at);
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            tracing::warn!(point = %point.display(), %error, "not released");
        }
    }
}

impl Use {
    fn is(&self, storage: &agent::Storage) -> bool {
        let known = &self.storage;
        known.driver == storage.driver
            && known.source == storage.source
            && known.fstype == storage.fstype
            && known.fs_group == storage.fs_group
            && known.options == storage.options
            && known.driver_options == storage.driver_options
            && known.shared == storage.shared
    }

    fn is_of_pod(&self) -> bool {
        let agent::Storage { driver, shared, .. } = &self.storage;
        OF_POD.contains(&driver.as_str()) || (driver == crate::disk::DRIVER && *shared)
    }
}

fn hold_at(
    places: &Places<PathBuf, Use>,
    place: &Place<Use>,
    point: &Path,
    storage: &agent::Storage,
    disk: Option<&OnDisk>,
) -> Result<(), GuestError> {
    // Before the own place is locked: two that name each other must not wait for each other.
    if storage.driver == PART {
        let whole = path::lexical(PHASE, &storage.source)?;
        let is_pods =
            |volume: Place<Use>| volume.blocking_lock().as_ref().is_some_and(Use::is_of_pod);
        if !places.find(&whole).is_some_and(is_pods) {
            let message = format!("{} is no volume of the pod", whole.display());
            return Err(invalid(PHASE, message));
        }
    }
    let mut found = place.blocking_lock();
    if let Some(known) = &mut *found {
        if !known.is(storage) {
            let message = format!("{} holds another storage", point.display());
            return Err(GuestError::new(ErrorCode::AlreadyExists, PHASE, message));
        }
        known.count += 1;
        return Ok(());
    }
    let mapped = attach(storage, disk)?;
    *found = Some(Use {
        count: 1,
        storage: storage.clone(),
        mapped,
    });
    Ok(())
}

fn release_at(place: &Place<Use>, point: &Path) {
    let mut found = place.blocking_lock();
    let Some(known) = &mut *found else { return };
    known.count = known.count.saturating_sub(1);
    if known.count > 0 || known.is_of_pod() {
        return;
    }
    let mapped = known.mapped.take();
    *found = None;
    if let Err(error) = unmount(point, UnmountFlags::DETACH) {
        tracing::warn!(point = %point.display(), %error, "not unmounted");
    }
    if let Some(Err(error)) = mapped.map(Mapped::close) {
        tracing::warn!(point = %point.display(), %error, "still decrypted");
    }
}

fn attach(storage: &agent::Storage, disk: Option<&OnDisk>) -> Result<Option<Mapped>, GuestError> {
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
            let (group, options) = take_group(&storage.options)?;
            let (flags, data) = mount_options(&options)?;
            let flags = flags | MountFlags::NODEV;
            let kind = match storage.fstype.as_str() {
                HUGE => HUGE,
                TMPFS | "" => TMPFS,
                other => {
                    let text = format!("file system {other:?} in memory: use {TMPFS} or {HUGE}");
                    return Err(unimplemented(PHASE, text));
                }
            };
            mount(kind, &point, kind, flags, data.as_c_str()).or_internal(PHASE, &failed)?;
            if let Err(error) = give(&point, None, group) {
                // Nobody would know of it.
                let _ = unmount(&point, UnmountFlags::DETACH);
                return Err(error).or_internal(PHASE, failed);
            }
        }
        crate::disk::DRIVER => return disk::mount(storage, disk, &point),
        PART => part::mount(Path::new(&storage.source), &storage.options, &point)?,
        "bind" => {
            let source = path::existing(PHASE, &storage.source)?;
            mount_bind_recursive(&source, &point).or_internal(PHASE, failed)?;
        }
        _ => {
            let (group, options) = take_group(&storage.options)?;
            let mode = local_mode(&options)?;
            let inner = local_directory(&storage.mount_point)?;
            give(&inner, Some(mode), group).or_internal(PHASE, &failed)?;
            mount_bind(&inner, &point).or_internal(PHASE, failed)?;
        }
    }
    Ok(None)
}

/// A directory in the image store for a mount point, whose name is the point's own.
fn local_directory(mount_point: &str) -> Result<PathBuf, GuestError> {
    let store = Path::new(path::IMAGE).join(LOCAL);
    fs::create_dir_all(&store).or_internal(PHASE, store.display())?;
    fs::set_permissions(&store, fs::Permissions::from_mode(0o711))
        .or_internal(PHASE, store.display())?;
    let point = path::lexical(PHASE, mount_point)?;
    let name = point.strip_prefix(path::BASE).unwrap_or(&point);
    let directory = store.join(name);
    fs::create_dir_all(&directory).or_internal(PHASE, directory.display())?;
    Ok(directory)
}

/// Sets mode and group of a directory. What a group shares is made with that group, as the kubelet does.
fn give(directory: &Path, mode: Option<u32>, group: Option<u32>) -> std::io::Result<()> {
    const OF_GROUP: u32 = 0o2775;
    if group.is_some() {
        chown(directory, None, group)?;
    }
    let own = fs::metadata(directory)?.permissions().mode();
    let extra = group.map_or(0, |_| OF_GROUP);
    let mode = mode.unwrap_or(own) | extra;
    fs::set_permissions(directory, fs::Permissions::from_mode(mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_unknown_or_not_for_this_guest_is_refused() {
        let refused =
            async |storage: &agent::Storage| Storages::new(true).attach(storage).await.unwrap_err();
        let mut storage = agent::Storage::new();
        storage.driver = "nvdimm".into();
        storage.mount_point = "/run/kata-containers/x".into();
        let error = refused(&storage).await;
        assert_eq!(error.code, ErrorCode::Unimplemented);
        assert!(error.message.contains("nvdimm"), "{error}");
        storage.driver = PART.into();
        for source in ["/run/kata-containers/sandbox", "/run/kata-containers/x"] {
            storage.source = source.into();
            let error = refused(&storage).await;
            assert!(error.message.contains("no volume of the pod"), "{error}");
        }
        storage.driver = "ephemeral".into();
        storage.fstype = HUGE.into();
        let error = refused(&storage).await;
        assert!(error.message.contains("confidential"), "{error}");
        storage.driver = "nvdimm".into();
        storage.fstype.clear();
        storage.mount_point = "/etc".into();
        let error = refused(&storage).await;
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn a_second_use_must_mean_the_same() {
        let storage = agent::Storage {
            driver: crate::disk::DRIVER.into(),
            fstype: "ext4".into(),
            ..Default::default()
        };
        let known = Use {
            count: 1,
            storage: storage.clone(),
            mapped: None,
        };
        assert!(known.is(&storage));
        let (mut other, mut given, mut pods) = (storage.clone(), storage.clone(), storage.clone());
        other.fstype = "xfs".into();
        given.fs_group.mut_or_insert_default().group_id = 7;
        pods.shared = true;
        assert!(!known.is(&other) && !known.is(&given) && !known.is(&pods));
        assert!(!known.is_of_pod());
        let mut clear = storage;
        clear.driver_options = vec!["encryption_key=ephemeral".into()];
        assert!(!known.is(&clear));
    }
}
