//! An emptyDir of the guest's own: the kubelet's directory says only what it is to be.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agent_api::agent::Storage;
use rustix::fs::FsWord;

use super::VolumeError;
use super::kind::{EmptyDir, Part};
use crate::config::Config;
use crate::disk::{Wanted, empty};
use crate::mountinfo;
use crate::rootfs::GUEST_SHARED;

/// Where the guest has those in memory: the place that Kata's agent knows.
const IN_MEMORY: &str = "/run/kata-containers/sandbox/ephemeral";
/// Where the guest has parts of those that it also has where it shares files with the host: nobody makes a name in the
/// shared directory then.
const OWN_PARTS: &str = "/run/kata-containers/sandbox/part";
/// The most bytes that a limit may say.
const MAX_SIZE: u64 = 1 << 40;
/// Numbers of file systems (statfs(2)).
const TMPFS: FsWord = 0x0102_1994;
const HUGETLBFS: FsWord = 0x9584_58f6;

/// Where an emptyDir is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    /// In huge pages, which no shared file system has.
    HugePages,
    /// In memory.
    Memory,
    /// On a disk.
    Disk,
}

impl Medium {
    /// That of a volume, as the kubelet has mounted it.
    pub(super) fn of(volume: &EmptyDir) -> Self {
        match rustix::fs::statfs(&volume.source).map(|found| found.f_type) {
            Ok(HUGETLBFS) => Self::HugePages,
            Ok(TMPFS) if is_mount(&volume.source) => Self::Memory,
            _ => Self::Disk,
        }
    }
}

/// What a container mounts of an emptyDir.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mounted<'a> {
    pub(super) sandbox: &'a str,
    pub(super) container: &'a str,
    /// The mount's index, and where it goes.
    pub(super) index: usize,
    pub(super) destination: &'a str,
}

impl Mounted<'_> {
    /// What the guest is asked for an emptyDir of its own: one storage for all containers of the pod, and another where
    /// the container mounts a part. The last is what it mounts.
    pub(super) fn storages(&self, volume: &EmptyDir) -> Result<Vec<Storage>, VolumeError> {
        let medium = Medium::of(volume);
        let whole = match medium {
            Medium::HugePages => in_huge_pages(volume),
            Medium::Memory => in_memory(volume),
            Medium::Disk => on_disk(self.sandbox, volume),
        };
        let parts = match medium {
            Medium::HugePages => OWN_PARTS.to_owned(),
            Medium::Memory | Medium::Disk => format!("{GUEST_SHARED}/{}/rootfs/part", self.sandbox),
        };
        let part = self.part(volume, &parts)?.map(|part| Storage {
            source: whole.mount_point.clone(),
            ..part
        });
        Ok([Some(whole), part].into_iter().flatten().collect())
    }

    /// The disk of an emptyDir that has one.
    pub(super) fn disk(&self, config: &Config, volume: &EmptyDir) -> Result<Wanted, VolumeError> {
        let part = self.part(volume, OWN_PARTS)?;
        let group = group_of(&volume.source);
        let (index, destination) = (self.index, self.destination);
        let wanted = empty::wanted(config, &volume.source, group, index, part, destination);
        wanted.map_err(|error| VolumeError::Disk(Box::new(error)))
    }

    /// The storage of the part that is mounted, below `parts`, of a volume whose place is not known yet.
    fn part(&self, volume: &EmptyDir, parts: &str) -> Result<Option<Storage>, VolumeError> {
        let path = match &volume.part {
            None => return Ok(None),
            Some(Part::Path(path)) => Some(path.clone()),
            Some(Part::MountedOn(point)) => mountinfo::read()
                .ok()
                .and_then(|list| mounted_on(&list, Path::new(point), &volume.name)),
        };
        let path = path.ok_or_else(|| VolumeError::SubPath(self.destination.to_owned()))?;
        Ok(Some(Storage {
            driver: "part".to_owned(),
            options: vec![format!("path={path}")],
            mount_point: format!("{parts}/{}-{}", self.container, self.index),
            ..Default::default()
        }))
    }
}

/// Which part of a volume is mounted on `point`, by the kernel's list of mounts.
fn mounted_on(list: &str, point: &Path, volume: &str) -> Option<String> {
    let marker = format!("/kubernetes.io~empty-dir/{volume}/");
    let mut mounts = mountinfo::mounts(list);
    let seen = mounts.rfind(|mount| mount.point == point)?;
    let path = match seen.root.split_once(&marker) {
        Some((_, path)) => path.to_owned(),
        // A volume in memory is a file system of its own.
        None if seen.kind == "tmpfs" => seen.root.trim_start_matches('/').to_owned(),
        None => return None,
    };
    (!path.is_empty()).then_some(path)
}

/// The kubelet mounts a tmpfs of the volume's sizeLimit, or of what the pod may have.
fn in_memory(volume: &EmptyDir) -> Storage {
    let size = rustix::fs::statvfs(&volume.source)
        .ok()
        .and_then(|found| found.f_blocks.checked_mul(found.f_frsize))
        .filter(|bytes| (1..=MAX_SIZE).contains(bytes));
    let size = size.map(|bytes| format!("size={bytes}"));
    Storage {
        driver: "ephemeral".to_owned(),
        source: "tmpfs".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: size.into_iter().chain(group(&volume.source)).collect(),
        mount_point: format!("{IN_MEMORY}/{}", volume.name),
        ..Default::default()
    }
}

/// Pages of the kubelet's size; how many there are is the containers' limit, for which the guest has them.
fn in_huge_pages(volume: &EmptyDir) -> Storage {
    let page = rustix::fs::statvfs(&volume.source).map(|found| found.f_frsize);
    let page = page.ok().map(|bytes| format!("pagesize={bytes}"));
    let mode = ["mode=0777".to_owned()].into_iter();
    let options = mode.chain(page).chain(group(&volume.source));
    Storage {
        driver: "ephemeral".to_owned(),
        source: "nodev".to_owned(),
        fstype: "hugetlbfs".to_owned(),
        options: options.collect(),
        mount_point: format!("{IN_MEMORY}/{}", volume.name),
        ..Default::default()
    }
}

fn on_disk(sandbox: &str, volume: &EmptyDir) -> Storage {
    let mode = ["mode=0777".to_owned()].into_iter();
    Storage {
        driver: "local".to_owned(),
        source: "local".to_owned(),
        fstype: "local".to_owned(),
        options: mode.chain(group(&volume.source)).collect(),
        mount_point: format!("{GUEST_SHARED}/{sandbox}/rootfs/local/{}", volume.name),
        ..Default::default()
    }
}

/// The pod's fsGroup, to which the kubelet has given its directory.
fn group_of(source: &Path) -> Option<u32> {
    let gid = std::fs::metadata(source).ok()?.gid();
    (gid != 0).then_some(gid)
}

/// The same as an option.
fn group(source: &Path) -> Option<String> {
    group_of(source).map(|gid| format!("fsgid={gid}"))
}

/// Whether a directory is the root of a file system: one that merely lies on a tmpfs is no volume in memory.
fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
    path.parent()
        .is_some_and(|parent| device(path) != device(parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EmptyDirs;
    use crate::disk::Order;
    use crate::spec::Spec;
    use crate::spec::oci::Mount;

    const MOUNTED: Mounted<'_> = Mounted {
        sandbox: "pod",
        container: "c",
        index: 3,
        destination: "/in/container",
    };

    fn volume(source: &Path) -> EmptyDir {
        EmptyDir {
            name: "cache".to_owned(),
            source: source.to_owned(),
            part: None,
        }
    }

    #[test]
    fn one_on_disk_is_the_pods_and_asked_for_as_kata_asks() {
        let directory = tempfile::tempdir().unwrap();
        let storages = MOUNTED.storages(&volume(directory.path())).unwrap();
        let storage = &storages[0];
        assert_eq!(storage.driver, "local");
        assert_eq!(storage.options[0], "mode=0777");
        assert_eq!(
            storage.mount_point,
            "/run/kata-containers/shared/containers/pod/rootfs/local/cache"
        );
    }

    #[test]
    fn one_in_memory_is_as_large_as_the_kubelets() {
        let storage = in_memory(&volume(Path::new("/dev/shm")));
        assert_eq!(storage.driver, "ephemeral");
        assert!(
            storage
                .options
                .iter()
                .any(|option| option.starts_with("size="))
        );
    }

    #[test]
    fn one_with_a_disk_is_the_pods_and_a_part_of_it_is_not_in_the_shared_directory() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            empty_dirs: EmptyDirs::Encrypted,
            ..Config::default()
        };
        let ordered = |part| {
            let volume = EmptyDir {
                part,
                ..volume(directory.path())
            };
            let wanted = MOUNTED.disk(&config, &volume).unwrap();
            let mut spec = Spec {
                mounts: vec![Mount::default(); 4],
                ..Spec::default()
            };
            let orders = wanted.order(7.into(), &mut spec);
            let storages = orders.into_iter().map(|order| match order {
                Order::Storage(storage) => storage,
                Order::Device(device) => panic!("{device:?}"),
            });
            (storages.collect::<Vec<_>>(), spec.mounts[3].source.clone())
        };
        let (storages, source) = ordered(None);
        let [whole] = storages.as_slice() else {
            panic!("{storages:?}")
        };
        assert!(whole.shared && whole.options.is_empty());
        let options = ["encryption_key=ephemeral", "create_filesystem"];
        assert_eq!(whole.driver_options, options);
        assert_eq!(whole.mount_point, source);
        let (storages, source) = ordered(Some(Part::Path("a/b".into())));
        assert_eq!(storages[0], *whole);
        assert_eq!(storages[1].source, whole.mount_point);
        assert_eq!(storages[1].mount_point, source);
        assert!(!source.starts_with(GUEST_SHARED) && source.ends_with("/part/c-3"));
    }

    #[test]
    fn a_part_is_found_by_what_is_mounted_and_asked_for_beside_the_whole() {
        let part = EmptyDir {
            part: Some(Part::Path("a/b".into())),
            ..volume(Path::new("/nonexistent"))
        };
        let asked = MOUNTED.storages(&part).unwrap();
        assert_eq!(asked[1].source, asked[0].mount_point);
        assert_eq!(asked[1].options, ["path=a/b"]);
        assert!(asked[1].mount_point.ends_with("/part/c-3"));
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:1 /k/pods/u/volumes/kubernetes.io~empty-dir/cache/a\\040b /sub/0 rw - ext4 /dev/a rw\n\
            3 1 0:9 /in/memory /sub/1 rw shared:5 - tmpfs tmpfs rw\n\
            4 1 8:1 /elsewhere /sub/2 rw - ext4 /dev/a rw\n";
        let found = |point: &str| mounted_on(mounts, Path::new(point), "cache");
        assert_eq!(found("/sub/0").as_deref(), Some("a b"));
        assert_eq!(found("/sub/1").as_deref(), Some("in/memory"));
        assert_eq!(found("/sub/2"), None);
        let nowhere = EmptyDir {
            part: Some(Part::MountedOn("/nonexistent".into())),
            ..part
        };
        let error = MOUNTED.storages(&nowhere).unwrap_err();
        assert!(error.to_string().contains("/in/container"), "{error}");
    }
}
