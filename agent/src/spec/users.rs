//! What of a specification is different in a user namespace.
//!
//! libcontainer makes the container as the guest's root: so ids of files become the guest's, and whom the process
//! runs as is taken out of its hands ([`Identity`]).

use agent_api::GuestError;
use oci_spec::runtime::{Linux, Mount, Process, Spec, User};

use super::PHASE;
use crate::fault::invalid;
use crate::jail::identity::Identity;
use crate::users::{Map, Namespace};

/// Makes a confined specification fit, and tells who its process is to be.
///
/// # Errors
///
/// Names an id that is not in the mappings.
pub fn lend(spec: &mut Spec, users: &Namespace) -> Result<Identity, GuestError> {
    let map = users.map();
    if let Some(mounts) = spec.mounts_mut() {
        mounts.iter_mut().try_for_each(|mount| own(mount, map))?;
    }
    if let Some(linux) = spec.linux_mut() {
        own_devices(linux, map);
    }
    let process = spec.process_mut().as_mut();
    lend_process(process.ok_or_else(|| invalid(PHASE, "no process"))?, users)
}

/// The same for a further process.
///
/// # Errors
///
/// Names an id that is not in the mappings.
pub fn lend_process(process: &mut Process, users: &Namespace) -> Result<Identity, GuestError> {
    let map = users.map();
    let user = process.user().clone();
    let none = |what: &str, id: u32| {
        let text = format!("{what} {id} is not in the mappings of the user namespace");
        invalid(PHASE, text)
    };
    let uid = map
        .uid(user.uid())
        .ok_or_else(|| none("user", user.uid()))?;
    let gid = map
        .gid(user.gid())
        .ok_or_else(|| none("group", user.gid()))?;
    let groups = user.additional_gids().clone().unwrap_or_default();
    if let Some(group) = groups.iter().find(|group| map.gid(**group).is_none()) {
        return Err(none("group", *group));
    }
    let identity = Identity {
        namespace: users.path().to_owned(),
        uid: user.uid(),
        gid: user.gid(),
        groups,
        capabilities: process.capabilities().clone(),
        owner: (uid, gid),
    };
    let mut root = User::default();
    root.set_umask(user.umask());
    process.set_user(root);
    process.set_capabilities(None);
    Ok(identity)
}

/// Files of a new file system are the container's root's, and ids that its options name are the container's.
fn own(mount: &mut Mount, map: &Map) -> Result<(), GuestError> {
    let is_tmpfs = match mount.typ().as_deref() {
        Some("tmpfs") => true,
        Some("devpts") => false,
        _ => return Ok(()),
    };
    let mut options = mount.options().clone().unwrap_or_default();
    if options
        .iter()
        .any(|option| option == "bind" || option == "rbind")
    {
        return Ok(());
    }
    for option in &mut options {
        let Some((name @ ("uid" | "gid"), id)) = option.split_once('=') else {
            continue;
        };
        let inside = id.parse().ok();
        let outside = inside.and_then(|id| {
            if name == "uid" {
                map.uid(id)
            } else {
                map.gid(id)
            }
        });
        let on = mount.destination().display();
        let outside = outside.ok_or_else(|| {
            let text =
                format!("mount on {on}: {option} is not in the mappings of the user namespace");
            invalid(PHASE, text)
        })?;
        *option = format!("{name}={outside}");
    }
    if is_tmpfs {
        let root = map.root();
        for (name, id) in [("uid=", root.uid), ("gid=", root.gid)] {
            if !options.iter().any(|option| option.starts_with(name)) {
                options.push(format!("{name}{id}"));
            }
        }
    }
    mount.set_options(Some(options));
    Ok(())
}

fn own_devices(linux: &mut Linux, map: &Map) {
    let root = map.root();
    for device in linux.devices_mut().iter_mut().flatten() {
        let uid = map.uid(device.uid().unwrap_or_default());
        let gid = map.gid(device.gid().unwrap_or_default());
        device.set_uid(Some(uid.unwrap_or(root.uid)));
        device.set_gid(Some(gid.unwrap_or(root.gid)));
    }
}
