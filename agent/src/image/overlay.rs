//! The root file system of a container: what its image is made of, read-only and shared with the pod's other images,
//! below what the container itself writes.
//!
//! ```text
//! rootfs   the overlay
//! ├─ upper   what the container writes           in the container's place in the image store,
//! ├─ tree    the image's own directories         and removed with it
//! └─ layers  unpacked once for the whole pod     in the store, held for as long as the container is there
//! ```

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use agent_api::GuestError;
use image_rs::pull::Layers;
use rustix::fs::{CWD, Timespec, Timestamps, XattrFlags, getxattr, listxattr, setxattr, utimensat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::PHASE;
use crate::fault::OrFail;
use crate::idmap;
use crate::users::Namespace;

/// What the driver is told besides the directories. A directory of the image can be renamed, and a file with several
/// names stays one when it is written to.
const OPTIONS: [(&str, &str); 2] = [("redirect_dir", "on"), ("index", "on")];
/// Cap on the names of a directory's attributes and on the value of one, in bytes: the kernel's own.
const XATTR_BYTES: usize = 64 * 1024;
/// What the overlay driver keeps in attributes is its own.
const MARKS: &[u8] = b"trusted.overlay.";

/// The directories of one container in the image store.
#[derive(Debug)]
pub(super) struct Place(PathBuf);

impl Place {
    /// Those in `directory`, which is the container's.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Where the image's own directories go.
    pub(super) fn tree(&self) -> PathBuf {
        self.0.join("tree")
    }

    /// Puts it together. Blocking.
    ///
    /// # Errors
    ///
    /// The step that failed.
    pub(super) fn mount(
        &self,
        layers: &Layers,
        users: Option<&Namespace>,
    ) -> Result<PathBuf, GuestError> {
        let (point, upper, work) = (point(&self.0), self.0.join("upper"), self.0.join("work"));
        for directory in [&point, &upper, &work] {
            fs::create_dir(directory).or_internal(PHASE, directory.display())?;
        }
        let tree = self.tree();
        // The root shows what the highest directory is.
        describe_as(&upper, &tree, users).or_internal(PHASE, upper.display())?;
        let lowers: Vec<&Path> = std::iter::once(tree.as_path())
            .chain(layers.paths())
            .collect();
        let mapped = users.map(|users| Mapped::new(self.0.join("mapped"), &lowers, users));
        let mapped = mapped.transpose().or_internal(PHASE, "map owners")?;
        let lowers = match &mapped {
            Some(mapped) => mapped.points.iter().map(PathBuf::as_path).collect(),
            None => lowers,
        };
        overlay(&point, lowers.into_iter(), &upper, &work)
            .or_internal(PHASE, format!("mount an overlay on {}", point.display()))?;
        Ok(point)
    }
}

/// Puts together what is mounted already, the highest first. What the container writes goes into `writable`, else into
/// its own directory. Blocking.
///
/// # Errors
///
/// The step that failed.
pub(super) fn stack(
    directory: &Path,
    lowers: &[PathBuf],
    writable: Option<&Path>,
) -> Result<PathBuf, GuestError> {
    let above = writable.unwrap_or(directory);
    let (point, upper, work) = (point(directory), above.join("upper"), above.join("work"));
    for directory in [&point, &upper, &work] {
        fs::create_dir_all(directory).or_internal(PHASE, directory.display())?;
    }
    if let Some(highest) = lowers.first() {
        describe_as(&upper, highest, None).or_internal(PHASE, upper.display())?;
    }
    let lowers = lowers.iter().map(PathBuf::as_path);
    overlay(&point, lowers, &upper, &work)
        .or_internal(PHASE, format!("mount an overlay on {}", point.display()))?;
    Ok(point)
}

/// The layers with their owners mapped. The overlay keeps what it is made of, so that these mounts go when it stands.
#[derive(Debug)]
struct Mapped {
    directory: PathBuf,
    points: Vec<PathBuf>,
}

impl Mapped {
    fn new(directory: PathBuf, layers: &[&Path], users: &Namespace) -> std::io::Result<Self> {
        fs::create_dir(&directory)?;
        let mut mapped = Self {
            directory,
            points: Vec::new(),
        };
        for (index, layer) in layers.iter().enumerate() {
            let point = mapped.directory.join(index.to_string());
            fs::create_dir(&point)?;
            mapped.points.push(point.clone());
            idmap::bind(layer, &point, users.path(), false)?;
        }
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        for point in &self.points {
            // Nothing is mounted on the last where that failed.
            let _ = unmount(point, UnmountFlags::DETACH);
            let _ = fs::remove_dir(point);
        }
        let _ = fs::remove_dir(&self.directory);
    }
}

/// The root file system in a container's directory.
pub(super) fn point(directory: &Path) -> PathBuf {
    directory.join("rootfs")
}

/// Ends the overlay of a container's directory, if there is one.
pub(super) fn end(directory: &Path) {
    let point = point(directory);
    match unmount(&point, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => tracing::warn!(point = %point.display(), %error, "not unmounted"),
    }
}

/// An image may have more layers than one page of options can name, so each is named in a call of its own.
fn overlay<'a>(
    point: &Path,
    lowers: impl Iterator<Item = &'a Path>,
    upper: &Path,
    work: &Path,
) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in lowers {
        fsconfig_set_string(&context, "lowerdir+", lower)?;
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    for (name, value) in OPTIONS {
        fsconfig_set_string(&context, name, value)?;
    }
    fsconfig_create(&context)?;
    // As the store itself: setuid programs of the image, and no devices.
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let empty: &CStr = c"";
    move_mount(
        &mount,
        empty,
        CWD,
        point,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Gives a directory owner, mode, attributes and time of another.
fn describe_as(directory: &Path, model: &Path, users: Option<&Namespace>) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(model)?;
    let (uid, gid) = match users.map(Namespace::map) {
        Some(map) => (map.uid(meta.uid()), map.gid(meta.gid())),
        None => (Some(meta.uid()), Some(meta.gid())),
    };
    // Nobody in the container is an owner that has no mapping.
    chown(directory, uid, gid)?;
    fs::set_permissions(directory, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    let mut list = vec![0_u8; XATTR_BYTES];
    let length = match listxattr(model, &mut list) {
        Err(Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let mut value = vec![0_u8; XATTR_BYTES];
    let names = list[..length].split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty() && !name.starts_with(MARKS)) {
        let size = getxattr(model, name, &mut value)?;
        setxattr(directory, name, &value[..size], XattrFlags::empty())?;
    }
    let time = Timespec {
        tv_sec: meta.mtime(),
        tv_nsec: meta.mtime_nsec(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(utimensat(
        CWD,
        directory,
        &times,
        rustix::fs::AtFlags::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_goes_above_and_the_image_stays() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: an overlay needs root");
            return;
        }
        let store = tempfile::tempdir().unwrap();
        let place = Place::new(store.path().join("c"));
        fs::create_dir_all(place.tree()).unwrap();
        fs::write(place.tree().join("file"), "image").unwrap();
        fs::hard_link(place.tree().join("file"), place.tree().join("other")).unwrap();
        fs::create_dir(place.tree().join("directory")).unwrap();
        fs::set_permissions(place.tree(), fs::Permissions::from_mode(0o711)).unwrap();
        let root = place.mount(&Layers::default(), None).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o711);
        fs::write(root.join("file"), "container").unwrap();
        assert_eq!(fs::read_to_string(root.join("other")).unwrap(), "container");
        fs::rename(root.join("directory"), root.join("moved")).unwrap();
        assert_eq!(
            fs::read_to_string(place.tree().join("file")).unwrap(),
            "image"
        );
        end(&store.path().join("c"));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        end(&store.path().join("c"));
    }
}
