//! An emptyDir of the guest's own: the kubelet's directory says only what it is to be.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agent_api::agent::Storage;
use rustix::fs::FsWord;

use super::VolumeError;
use super::kind::{EmptyDir, Part};
use crate::mountinfo;
use crate::rootfs::GUEST_SHARED;

/// Where the guest has those in memory: the place that Kata's agent knows.
const IN_MEMORY: &str = "/run/kata-containers/sandbox/ephemeral";
/// Where the guest has parts of those in huge pages: it may share files with the host, and then nobody makes a name in
/// the shared directory.
const HUGE_PARTS: &str = "/run/kata-containers/sandbox/part";
/// The most bytes that a limit may say.
const MAX_SIZE: u64 = 1 << 40;
/// Numbers of file systems (statfs(2)).
const TMPFS: FsWord = 0x0102_1994;
const HUGETLBFS: FsWord = 0x9584_58f6;

/// What the guest is asked for an emptyDir: one storage for all containers of the pod, and another where the
/// container mounts a part. The last is what it mounts.
pub(super) fn storages(
    sandbox: &str,
    container: &str,
    volume: &EmptyDir,
    index: usize,
    destination: &str,
) -> Result<Vec<Storage>, VolumeError> {
    let found = rustix::fs::statfs(&volume.source).map(|found| found.f_type);
    let whole = match found {
        Ok(HUGETLBFS) => in_huge_pages(volume),
        Ok(TMPFS) if is_mount(&volume.source) => in_memory(volume),
        _ => on_disk(sandbox, volume),
    };
    let path = match &volume.part {
        None => return Ok(vec![whole]),
        Some(Part::Path(path)) => Some(path.clone()),
        Some(Part::MountedOn(point)) => mountinfo::read()
            .ok()
            .and_then(|list| mounted_on(&list, Path::new(point), &volume.name)),
    };
    let path = path.ok_or_else(|| VolumeError::SubPath(destination.to_owned()))?;
    let parts = parts(sandbox, found == Ok(HUGETLBFS));
    let part = Storage {
        driver: "part".to_owned(),
        source: whole.mount_point.clone(),
        options: vec![format!("path={path}")],
        mount_point: format!("{parts}/{container}-{index}"),
        ..Default::default()
    };
    Ok(vec![whole, part])
}

/// Where the guest has parts of the pod's volumes.
fn parts(sandbox: &str, is_huge: bool) -> String {
    match is_huge {
        true => HUGE_PARTS.to_owned(),
        false => format!("{GUEST_SHARED}/{sandbox}/rootfs/part"),
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

/// Whether an emptyDir is one of huge pages, which no shared file system has.
pub(super) fn is_huge(volume: &EmptyDir) -> bool {
    let found = rustix::fs::statfs(&volume.source);
    found.is_ok_and(|found| found.f_type == HUGETLBFS)
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
fn group(source: &Path) -> Option<String> {
    let gid = std::fs::metadata(source).ok()?.gid();
    (gid != 0).then(|| format!("fsgid={gid}"))
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
        let storages = storages("pod", "c", &volume(directory.path()), 0, "/x").unwrap();
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
    fn a_part_of_what_a_guest_has_that_shares_files_is_not_in_the_shared_directory() {
        assert!(!parts("pod", true).starts_with(GUEST_SHARED));
        assert!(parts("pod", false).starts_with(GUEST_SHARED));
    }

    #[test]
    fn a_part_is_found_by_what_is_mounted_and_asked_for_beside_the_whole() {
        let part = EmptyDir {
            part: Some(Part::Path("a/b".into())),
            ..volume(Path::new("/nonexistent"))
        };
        let asked = storages("pod", "c", &part, 3, "/x").unwrap();
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
        let error = storages(
            "pod",
            "c",
            &EmptyDir {
                part: Some(Part::MountedOn("/nonexistent".into())),
                ..part
            },
            3,
            "/in/container",
        )
        .unwrap_err();
        assert!(error.to_string().contains("/in/container"), "{error}");
    }
}
