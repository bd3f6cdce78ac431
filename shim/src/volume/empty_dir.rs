//! An emptyDir of the guest's own: the kubelet's directory says only what it is to be.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agent_api::agent::Storage;
use rustix::fs::FsWord;

use super::VolumeError;
use super::kind::EmptyDir;
use crate::rootfs::GUEST_SHARED;

/// Where the guest has those in memory: the place that Kata's agent knows.
const IN_MEMORY: &str = "/run/kata-containers/sandbox/ephemeral";
/// The most bytes that a limit may say.
const MAX_SIZE: u64 = 1 << 40;
/// Numbers of file systems (statfs(2)).
const TMPFS: FsWord = 0x0102_1994;
const HUGETLBFS: FsWord = 0x9584_58f6;

/// The guest's storage for an emptyDir, one for all containers of the pod.
pub(super) fn storage(
    sandbox: &str,
    volume: &EmptyDir,
    destination: &str,
) -> Result<Storage, VolumeError> {
    if volume.is_part {
        return Err(VolumeError::SubPath(destination.to_owned()));
    }
    let found = rustix::fs::statfs(&volume.source).map(|found| found.f_type);
    match found {
        Ok(HUGETLBFS) => Err(VolumeError::HugePages(destination.to_owned())),
        Ok(TMPFS) if is_mount(&volume.source) => Ok(in_memory(volume)),
        _ => Ok(on_disk(sandbox, volume)),
    }
}

/// The kubelet mounts a tmpfs of the volume's sizeLimit, or of what the pod may have.
fn in_memory(volume: &EmptyDir) -> Storage {
    let size = rustix::fs::statvfs(&volume.source)
        .ok()
        .and_then(|found| found.f_blocks.checked_mul(found.f_frsize))
        .filter(|bytes| (1..=MAX_SIZE).contains(bytes));
    let options = ["mode=1777".to_owned()].into_iter();
    let size = size.map(|bytes| format!("size={bytes}"));
    Storage {
        driver: "ephemeral".to_owned(),
        source: "tmpfs".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: options.chain(size).chain(group(&volume.source)).collect(),
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
            is_part: false,
        }
    }

    #[test]
    fn one_on_disk_is_the_pods_and_asked_for_as_kata_asks() {
        let directory = tempfile::tempdir().unwrap();
        let storage = storage("pod", &volume(directory.path()), "/x").unwrap();
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
    fn a_part_is_refused_by_its_place() {
        let part = EmptyDir {
            is_part: true,
            ..volume(Path::new("/x"))
        };
        let error = storage("pod", &part, "/in/container").unwrap_err();
        assert!(error.to_string().contains("/in/container"), "{error}");
    }
}
