//! A container's bundle: the specification for libcontainer, and what it does not know of.

use std::path::Path;

use agent_api::GuestError;
use oci_spec::runtime::Spec;

use super::create::bundle;
use crate::fault::OrFail;
use crate::users::{Namespace, Owner};
use crate::{idmap, path};

/// Writes a container's specification into its bundle, and who its process is where it has users of its own.
pub(super) fn save(
    spec: &mut Spec,
    id: &str,
    root: &Path,
    users: Option<&Namespace>,
) -> Result<(), GuestError> {
    let config = bundle(id).join("config.json");
    idmap::apply(spec, id, users)?;
    if let Some(users) = users {
        make_mount_points(spec, root, users.map().root());
        crate::spec::users::lend(spec, users)?.write_beside(&config)?;
    }
    spec.save(&config).or_internal("create", config.display())
}

/// Makes what a container's mounts are mounted on, where it is missing, as the container's root: libcontainer makes it
/// as the guest's, who may not everywhere. It also says it better when something cannot be made.
fn make_mount_points(spec: &Spec, root: &Path, owner: Owner) {
    let mut made: Vec<&Path> = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let on = mount.destination().as_path();
        // What is mounted there has it.
        if made.iter().any(|above| on.starts_with(above)) {
            continue;
        }
        made.push(on);
        let source = mount.source().as_deref();
        let _ = match source.is_some_and(Path::is_file) {
            true => path::make_file_in_root(root, on, owner),
            false => path::make_in_root(root, on, owner),
        };
    }
}
