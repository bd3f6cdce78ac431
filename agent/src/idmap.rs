//! Mounts that show files with other owners: what lies there as root's is the container's root's, and what the
//! container writes lies there as root's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use libcontainer::syscall::Syscall;
use libcontainer::syscall::linux::{LinuxSyscall, MountAttr};
use oci_spec::runtime::{Mount, Spec};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use agent_api::{ErrorCode, GuestError};

use crate::fault::{OrFail, invalid, unimplemented};
use crate::path::STATE;
use crate::users::Namespace;

const PHASE: &str = "idmap";
/// `MOUNT_ATTR_IDMAP`, of `mount_setattr(2)`.
const MAP_IDS: u64 = 0x0010_0000;
/// OCI's options for a mount whose owners are mapped as the container's users are; the second with all that is
/// mounted below.
const OPTIONS: [&str; 2] = ["idmap", "ridmap"];

/// Mounts `source` on `target` with its owners mapped.
///
/// # Errors
///
/// Those of `mount_setattr(2)`: EINVAL where the file system can not.
pub fn bind(source: &Path, target: &Path, namespace: &Path, with_below: bool) -> io::Result<()> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut at = libc::AT_EMPTY_PATH;
    if with_below {
        flags |= OpenTreeFlags::AT_RECURSIVE;
        at |= libc::AT_RECURSIVE;
    }
    let tree = open_tree(rustix::fs::CWD, source, flags)?;
    let namespace = File::open(namespace)?;
    let attributes = MountAttr {
        attr_set: MAP_IDS,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    LinuxSyscall
        .mount_setattr(
            tree.as_fd(),
            Path::new(""),
            at.cast_unsigned(),
            &attributes,
            size_of::<MountAttr>(),
        )
        .map_err(io::Error::other)?;
    Ok(move_mount(
        &tree,
        c"",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Puts mapped mounts in the place of those of a container's mounts that ask for it; [`leave`] takes them away.
///
/// # Errors
///
/// There is no namespace to map by, or the file system can not.
pub fn apply(
    spec: &mut Spec,
    container: &str,
    users: Option<&Namespace>,
) -> Result<(), GuestError> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (index, mount) in mounts.iter_mut().enumerate() {
        let Some(option) = take_option(mount) else {
            continue;
        };
        let on = mount.destination().display().to_string();
        let users = users.ok_or_else(|| {
            let text = format!("mount on {on}: {option} without linux.uidMappings");
            invalid(PHASE, text)
        })?;
        let source = mount.source().clone().unwrap_or_default();
        let target = directory(container).join(index.to_string());
        make_like(&source, &target).or_internal(PHASE, target.display())?;
        bind(&source, &target, users.path(), option == OPTIONS[1]).map_err(|error| {
            let text = format!(
                "mount on {on}: its file system does not map owners ({error}): use a volume of the guest (emptyDir, ConfigMap, Secret) or remove hostUsers: false"
            );
            unimplemented(PHASE, text)
        })?;
        mount.set_source(Some(target));
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Takes away the mapped mounts of a container.
///
/// # Errors
///
/// One is in the way.
pub fn leave(container: &str) -> Result<(), GuestError> {
    let directory = directory(container);
    let Ok(entries) = fs::read_dir(&directory) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // Nothing is mounted where the mount failed.
        let _ = unmount(&path, UnmountFlags::DETACH);
        let removed = match path.is_dir() {
            true => fs::remove_dir(&path),
            false => fs::remove_file(&path),
        };
        removed.or_internal(PHASE, path.display())?;
    }
    fs::remove_dir(&directory).or_fail(ErrorCode::Internal, PHASE, directory.display())
}

fn directory(container: &str) -> PathBuf {
    Path::new(STATE).join("mapped").join(container)
}

fn take_option(mount: &mut Mount) -> Option<&'static str> {
    let mut options = mount.options().clone()?;
    let found = OPTIONS
        .into_iter()
        .rfind(|option| options.iter().any(|given| given == option))?;
    options.retain(|given| !OPTIONS.contains(&given.as_str()));
    mount.set_options(Some(options));
    Some(found)
}

/// Makes an empty directory or file to mount on.
fn make_like(source: &Path, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::metadata(source)?.is_dir() {
        true => fs::create_dir(target),
        false => File::create(target).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(options: &str) -> Spec {
        let text = format!(
            r#"{{"ociVersion":"1.1.0","mounts":[{{"destination":"/x","source":"/s","options":{options}}}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_ordinary_mount_stays_and_a_mapped_one_needs_mappings() {
        let mut plain = spec(r#"["rbind","ro"]"#);
        apply(&mut plain, "c", None).unwrap();
        assert_eq!(plain, spec(r#"["rbind","ro"]"#));
        let error = apply(&mut spec(r#"["rbind","ridmap"]"#), "c", None).unwrap_err();
        assert!(error.message.contains("uidMappings"), "{error}");
    }

    #[test]
    fn the_option_is_the_agents_and_not_libcontainers() {
        let mut mounts = spec(r#"["idmap","rbind","ridmap"]"#)
            .mounts()
            .clone()
            .unwrap();
        assert_eq!(take_option(&mut mounts[0]), Some("ridmap"));
        assert_eq!(mounts[0].options().as_ref().unwrap(), &["rbind"]);
        assert_eq!(take_option(&mut mounts[0]), None);
    }
}
