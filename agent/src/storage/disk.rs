//! A file system on a disk that the host added: a volume, or a container's root.
//!
//! A volume that is the pod's own (`shared`) is an emptyDir: it is empty, anybody may write to it, and nobody asked
//! for a size.
//!
//! What belongs to a group of the pod (`fsGroup`) is given to it here, because no one else mounts it: each
//! file that is not the group's yet, or none of them where the top is already and the request says that this
//! is enough.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use agent_api::agent;
use agent_api::types::FSGroupChangePolicy;
use agent_api::{ErrorCode, GuestError};
use rustix::mount::{MountFlags, UnmountFlags, unmount};
use tokio::sync::watch;

use super::options::mount_options;
use super::{OnDisk, PHASE};
use crate::crypt::{self, Extent, Mapped};
use crate::fault::{OrFail, invalid};

/// Where disks are mounted; the place that Kata's agent knows.
const PLACE: &str = "/run/kata-containers/sandbox/storage";
/// The file system that is made on a disk, and the one that is only read: the guest's kernel has no others.
const WRITABLE: &str = "ext4";
const LAYER: &str = "erofs";
/// The most files that are looked at to give a volume to its group: a creation waits for it.
const MAX_GIVEN: usize = 4_000_000;
/// What a group may do with its files and directories.
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o2770;

/// What the owner of no data waits for.
const NOT_KEPT: &str = "barrier=0,errors=remount-ro";
/// The host gets its room back.
const DISCARD: &str = "discard";
/// Who may write to an emptyDir.
const ANYBODY: u32 = 0o777;
/// What a file system has that was made, and an emptyDir has not.
const LOST: &str = "lost+found";

/// Mounts a disk; answers what it is decrypted by.
pub(super) fn mount(
    storage: &agent::Storage,
    on: Option<&OnDisk>,
    point: &Path,
) -> Result<Option<Mapped>, GuestError> {
    let kind = storage.fstype.as_str();
    if !point.starts_with(PLACE) {
        // What lies in a container's directory is removed with it.
        return Err(invalid(PHASE, format!("a disk is mounted below {PLACE}")));
    }
    if kind != WRITABLE && kind != LAYER {
        let text = format!("file system {kind:?} of a disk: use {WRITABLE}, or {LAYER}");
        return Err(invalid(PHASE, text));
    }
    let on = on.ok_or_else(|| invalid(PHASE, "a disk is of a container, not of the sandbox"))?;
    if on.formats && kind != WRITABLE {
        return Err(invalid(PHASE, format!("an empty disk gets {WRITABLE}")));
    }
    let mapped = match &on.cipher {
        Some(cipher) => {
            let name = format!("volume-{}", storage.source);
            let extent = match storage.shared {
                true => Extent::Fitting,
                false => Extent::Whole,
            };
            Some(on.crypt.open(&name, &on.disk.node(), cipher, extent)?)
        }
        None => None,
    };
    let mounted = mount_on(storage, on, mapped.as_ref(), point);
    match (mounted, mapped) {
        (Ok(()), mapped) => Ok(mapped),
        (Err(error), None) => Err(error),
        (Err(error), Some(mapped)) => {
            // Nobody would know of it.
            let _ = mapped.close();
            Err(error)
        }
    }
}

fn mount_on(
    storage: &agent::Storage,
    on: &OnDisk,
    mapped: Option<&Mapped>,
    point: &Path,
) -> Result<(), GuestError> {
    let mut options = storage.options.clone();
    if on.formats {
        let files = match storage.shared {
            true => crypt::FILES_OF_VOLUME,
            false => crypt::FILES,
        };
        options.push(NOT_KEPT.to_owned());
        match mapped {
            Some(mapped) => mapped.format(files)?,
            None => {
                format_clear(&on.disk.node(), files)?;
                options.push(DISCARD.to_owned());
            }
        }
    }
    let (flags, data) = mount_options(&options)?;
    let node = mapped.map_or_else(|| on.disk.node(), |mapped| mapped.node().to_owned());
    let mounted = rustix::mount::mount(
        &node,
        point,
        storage.fstype.as_str(),
        flags | MountFlags::NODEV,
        data.as_c_str(),
    );
    let source = &storage.source;
    let kind = &storage.fstype;
    let text = format!("mount {kind} of disk {source} on {}", point.display());
    let text = match (&on.cipher, on.formats) {
        (Some(_), false) => format!("{text} (with another key it is no file system)"),
        _ => text,
    };
    mounted.or_fail(ErrorCode::FailedPrecondition, PHASE, text)?;
    let emptied = match storage.shared && on.formats {
        true => to_empty_dir(point),
        false => Ok(()),
    };
    let given = emptied.and_then(|()| match storage.fs_group.as_ref() {
        Some(group) if !flags.contains(MountFlags::RDONLY) => give(point, group, &on.unwanted),
        _ => Ok(()),
    });
    if given.is_err() {
        // Nobody would know of it.
        let _ = unmount(point, UnmountFlags::DETACH);
    }
    let text = format!("give {} to those who use it", point.display());
    given.or_fail(ErrorCode::FailedPrecondition, PHASE, text)
}

/// Makes an empty file system on a disk as it is.
fn format_clear(node: &Path, files: u64) -> Result<(), GuestError> {
    let bytes = crypt::size_of(node).or_internal(PHASE, node.display())?;
    let bytes = (bytes / crypt::SECTOR * crypt::SECTOR).min(crypt::LARGEST);
    crypt::format(node, bytes, files)
}

/// Makes of an empty file system what containers know as an emptyDir.
fn to_empty_dir(point: &Path) -> std::io::Result<()> {
    fs::remove_dir(point.join(LOST))?;
    fs::set_permissions(point, Permissions::from_mode(ANYBODY))
}

/// Gives a tree to a group.
fn give(
    top: &Path,
    group: &agent::FSGroup,
    unwanted: &watch::Receiver<bool>,
) -> std::io::Result<()> {
    let id = group.group_id;
    let found = fs::metadata(top)?;
    let is_given = found.gid() == id && found.mode() & DIRECTORY == DIRECTORY;
    let on_mismatch = FSGroupChangePolicy::OnRootMismatch;
    if is_given && group.group_change_policy == on_mismatch.into() {
        return Ok(());
    }
    // The top comes last: what was given in part is not taken for given.
    give_below(top, id, MAX_GIVEN, unwanted)?;
    give_one(top, id).map(drop)
}

fn give_below(
    top: &Path,
    id: u32,
    max: usize,
    unwanted: &watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut directories = vec![top.to_owned()];
    let mut left = max;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            if *unwanted.borrow() {
                let text = "the container is not wanted any more";
                return Err(std::io::Error::other(text));
            }
            left = left.checked_sub(1).ok_or_else(|| {
                let policy =
                    "use fsGroupChangePolicy OnRootMismatch, and give it to the group once";
                std::io::Error::other(format!("it has more than {max} files: {policy}"))
            })?;
            let path = entry?.path();
            if give_one(&path, id)? {
                directories.push(path);
            }
        }
    }
    Ok(())
}

/// Gives one file to a group, and answers whether it is a directory.
fn give_one(path: &Path, id: u32) -> std::io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    if found.gid() != id {
        lchown(path, None, Some(id))?;
    }
    let kind = found.file_type();
    let wanted = match (kind.is_dir(), kind.is_file()) {
        (true, _) => found.mode() | DIRECTORY,
        (_, true) => found.mode() | FILE,
        // A link's mode is not its own, and of others nobody said anything.
        _ => return Ok(false),
    };
    // lchown(2) took the bits of set-user-id away, and a mode that is right is left alone.
    if wanted != found.mode() || found.gid() != id {
        fs::set_permissions(path, Permissions::from_mode(wanted & 0o7777))?;
    }
    Ok(kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn group(policy: FSGroupChangePolicy) -> agent::FSGroup {
        agent::FSGroup {
            // One's own: another needs rights that a test may not have.
            group_id: rustix::process::getegid().as_raw(),
            group_change_policy: policy.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_group_may_write_to_all_that_it_is_given_and_no_link_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        let foreign = outside.path().join("foreign");
        fs::write(&foreign, "").unwrap();
        fs::set_permissions(&foreign, Permissions::from_mode(0o600)).unwrap();
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("in")).unwrap();
        fs::write(at("in/file"), "").unwrap();
        fs::set_permissions(at("in/file"), Permissions::from_mode(0o400)).unwrap();
        symlink(&foreign, at("in/link")).unwrap();
        let (cancel, unwanted) = watch::channel(false);
        let policy = FSGroupChangePolicy::Always;
        give(root.path(), &group(policy), &unwanted).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&at("in/file")), 0o660);
        assert_eq!(mode(&at("in")) & DIRECTORY, DIRECTORY);
        assert_eq!(mode(&foreign), 0o600);
        // What was added since is not looked at where the top is enough.
        fs::set_permissions(at("in/file"), Permissions::from_mode(0o400)).unwrap();
        let policy = FSGroupChangePolicy::OnRootMismatch;
        give(root.path(), &group(policy), &unwanted).unwrap();
        assert_eq!(mode(&at("in/file")), 0o400);
        let own = rustix::process::getegid().as_raw();
        let error = give_below(root.path(), own, 2, &unwanted).unwrap_err();
        assert!(error.to_string().contains("more than 2"), "{error}");
        give_below(root.path(), own, 3, &unwanted).unwrap();
        cancel.send_replace(true);
        let error = give_below(root.path(), own, 3, &unwanted).unwrap_err();
        assert!(error.to_string().contains("not wanted"), "{error}");
    }

    #[test]
    fn a_disk_is_refused_by_its_place_its_file_system_and_its_owner() {
        let below = Path::new(PLACE).join("x");
        for (kind, point, refusal) in [
            ("ext4", Path::new("/x"), "is mounted below"),
            ("vfat", &below, "\"vfat\" of a disk: use ext4"),
            ("", &below, "use ext4"),
            ("ext4", &below, "not of the sandbox"),
        ] {
            let storage = agent::Storage {
                driver: crate::disk::DRIVER.into(),
                fstype: kind.into(),
                ..Default::default()
            };
            let error = mount(&storage, None, point).unwrap_err();
            assert!(error.message.contains(refusal), "{error}");
        }
    }
}
