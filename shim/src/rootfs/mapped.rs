//! Root file systems that a snapshotter has not given to the container's users, but leaves to whoever mounts them:
//! containerd 2's overlayfs says by the options `uidmap=` and `gidmap=` how the owners of the layers are to be mapped.
//! What the container writes is in a directory that the snapshotter made the container's root's.

use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{UnmountFlags, unmount};

use super::RootfsError;
use super::shared::make_directory;
use crate::idmap::Users;
use crate::spec::oci::IdMapping;
use crate::tree::Reach;

/// The option of overlayfs that names the layers, with colons between.
const LOWER: &str = "lowerdir=";
/// How the mapped layers are named.
const LAYER: &str = "layer-";

/// How owners are mapped.
#[derive(Debug, PartialEq)]
pub(super) struct Owners {
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
}

/// Mapped layers, in a directory of theirs that the guest never sees: what is mounted of them keeps them.
struct Layers {
    directory: PathBuf,
    points: Vec<PathBuf>,
}

impl Owners {
    /// Those that a mount asks for.
    pub(super) fn of(mount: &Mount) -> Result<Option<Self>, RootfsError> {
        let find = |name: &str| {
            let mut options = mount.options.iter();
            options.find_map(|option| option.strip_prefix(name).map(|text| (option, text)))
        };
        match (find("uidmap="), find("gidmap=")) {
            (None, None) => Ok(None),
            (Some((_, uids)), Some((_, gids))) => Ok(Some(Self {
                uids: mappings(uids)?,
                gids: mappings(gids)?,
            })),
            (Some((one, _)), None) | (None, Some((one, _))) => {
                Err(RootfsError::Mapping(one.clone()))
            }
        }
    }

    /// Mounts it; the directory for its layers is made and removed.
    pub(super) fn mount(
        &self,
        mount: &Mount,
        target: &Path,
        layers: &Path,
    ) -> Result<(), RootfsError> {
        let failed = |path: &Path, cause: &dyn std::fmt::Display| RootfsError::Owners {
            path: path.to_owned(),
            cause: cause.to_string(),
        };
        let source = Path::new(&mount.source);
        let users = Users::new(&self.uids, &self.gids).map_err(|error| failed(source, &error))?;
        mount_by(&users, mount, target, layers)
    }
}

fn mount_by(users: &Users, mount: &Mount, target: &Path, layers: &Path) -> Result<(), RootfsError> {
    let mut layers = Layers::new(layers)?;
    let mut options = Vec::new();
    for option in &mount.options {
        if option.starts_with("uidmap=") || option.starts_with("gidmap=") {
            continue;
        }
        let Some(lowers) = option.strip_prefix(LOWER) else {
            options.push(option.clone());
            continue;
        };
        for lower in lowers.split(':').map(Path::new) {
            layers.map(users, lower)?;
        }
        let points = layers.points.iter().map(|path| path.display().to_string());
        let mapped: Vec<_> = points.collect();
        options.push(format!("{LOWER}{}", mapped.join(":")));
    }
    let mut source = mount.source.clone();
    if layers.points.is_empty() {
        // A bind mount of the one layer.
        layers.map(users, Path::new(&mount.source))?;
        source = layers.points[0].display().to_string();
    }
    containerd_shim::mount::mount_rootfs(
        Some(mount.type_.as_str()),
        Some(source.as_str()),
        &options,
        target,
    )
    .map_err(|error| RootfsError::Mount {
        what: format!("{} {}", mount.type_, mount.source),
        path: target.to_owned(),
        cause: error.to_string(),
    })
}

impl Layers {
    fn new(directory: &Path) -> Result<Self, RootfsError> {
        make_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            points: Vec::new(),
        })
    }

    fn map(&mut self, users: &Users, layer: &Path) -> Result<(), RootfsError> {
        let point = self.directory.join(format!("{LAYER}{}", self.points.len()));
        make_directory(&point)?;
        self.points.push(point.clone());
        users
            .bind(layer, &point, Reach::Top)
            .map_err(|error| RootfsError::Owners {
                path: layer.to_owned(),
                cause: error.to_string(),
            })
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for point in &self.points {
            // Nothing is mounted on the last where that failed.
            let _ = unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        for path in self.points.iter().chain([&self.directory]) {
            if let Err(error) = std::fs::remove_dir(path) {
                tracing::warn!(%error, path = %path.display(), "remove");
            }
        }
    }
}

fn mappings(text: &str) -> Result<Vec<IdMapping>, RootfsError> {
    let one = |text: &str| {
        let mut numbers = text.split(':').map(|number| number.parse().ok());
        let mapping = IdMapping {
            container_id: numbers.next()??,
            host_id: numbers.next()??,
            size: numbers.next()??,
        };
        numbers.next().is_none().then_some(mapping)
    };
    let all: Option<Vec<_>> = text.split(',').map(one).collect();
    all.ok_or_else(|| RootfsError::Mapping(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::idmap::tests::users;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn mappings_are_read_or_refused() {
        let mapped = ["uidmap=0:7:9,10:1000:1", "gidmap=0:7:9", "ro"];
        let owners = Owners::of(&mount("bind", "/s", &mapped)).unwrap().unwrap();
        assert_eq!(
            (
                owners.uids.len(),
                owners.uids[1].host_id,
                owners.gids[0].size
            ),
            (2, 1000, 9)
        );
        assert_eq!(Owners::of(&mount("bind", "/s", &["ro"])).unwrap(), None);
        for bad in [
            &["uidmap=0:7:9"][..],
            &["uidmap=0:7", "gidmap=0:7:9"],
            &["uidmap=0:7:9:1", "gidmap=0:7:9"],
        ] {
            assert!(Owners::of(&mount("bind", "/s", bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn layers_have_the_containers_owners_and_stay_as_they_were() {
        let Some(users) = users() else { return };
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["rootfs", "one", "two", "upper", "work"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("one").join("a"), "").unwrap();
        fs::write(path("two").join("b"), "").unwrap();
        let (lower, upper, work) = (
            format!(
                "lowerdir={}:{}",
                path("one").display(),
                path("two").display()
            ),
            format!("upperdir={}", path("upper").display()),
            format!("workdir={}", path("work").display()),
        );
        let overlay = mount(
            "overlay",
            "overlay",
            &[&lower, &upper, &work, "uidmap=0:100000:1000"],
        );
        let target = path("rootfs");
        mount_by(&users, &overlay, &target, &path("layers-c")).unwrap();
        for name in ["a", "b"] {
            assert_eq!(
                fs::metadata(path("rootfs").join(name)).unwrap().uid(),
                100_000
            );
        }
        assert_eq!(fs::metadata(path("one").join("a")).unwrap().uid(), 0);
        assert!(!path("layers-c").exists());
        unmount(path("rootfs"), UnmountFlags::DETACH).unwrap();
        let bind = mount("bind", path("two").to_str().unwrap(), &["rbind", "ro"]);
        mount_by(&users, &bind, &target, &path("layers-c")).unwrap();
        assert_eq!(
            fs::metadata(path("rootfs").join("b")).unwrap().uid(),
            100_000
        );
        unmount(path("rootfs"), UnmountFlags::DETACH).unwrap();
    }
}
