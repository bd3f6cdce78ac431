//! What containerd, or the shim, mounts to have a snapshot.
//!
//! ```text
//! files of the host   bottom alone       bind of fs
//!                     above others       overlay of fs over those below
//! image of a guest    always             bind of an empty fs, with the volume in an option
//! ```
//!
//! The volume (`io.katacontainers.volume=`) is Kata's: it names the image to the shim. Others put it on a mount of a
//! type of their own, which containerd, that mounts each container's snapshot for a moment to look for users and
//! groups, can only mount with a program of theirs. mount(2) ignores options of a bind that it does not know, so that
//! a bind can carry the volume and needs no such program.

use std::collections::BTreeMap;
use std::path::Path;

use crate::tree::Tree;
use crate::wire::snapshots::Mount;

/// The files of a snapshot: its own directory, and those below from the upper to the lower.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) own: Tree,
    pub(crate) below: Vec<Tree>,
    pub(crate) writable: bool,
}

/// The mount of files of the host.
pub(crate) fn of_host(layers: &Layers) -> Mount {
    let access = if layers.writable { "rw" } else { "ro" };
    match layers.below.as_slice() {
        [] => bind(&layers.own, vec![access.to_owned()]),
        // overlayfs wants two directories where nothing is written.
        [one] if !layers.writable => bind(one, vec![access.to_owned()]),
        below => {
            let paths: Vec<_> = below.iter().map(|tree| shown(&tree.files())).collect();
            let mut options = vec!["index=off".to_owned()];
            if layers.writable {
                options.push(format!("workdir={}", shown(&layers.own.work())));
                options.push(format!("upperdir={}", shown(&layers.own.files())));
            }
            options.push(format!("lowerdir={}", paths.join(":")));
            mount("overlay", "overlay".to_owned(), options)
        }
    }
}

/// The mount by which the shim learns what the guest pulls. An empty `image` leaves the name to the container's
/// annotations.
pub(crate) fn of_guest(layers: &Layers, image: &str, metadata: &BTreeMap<String, String>) -> Mount {
    let access = if layers.writable { "rw" } else { "ro" };
    let volume = shim::rootfs::guest_pull_option(image, metadata);
    bind(&layers.own, vec![access.to_owned(), volume])
}

fn bind(tree: &Tree, mut options: Vec<String>) -> Mount {
    options.insert(0, "rbind".to_owned());
    mount("bind", shown(&tree.files()), options)
}

fn mount(kind: &str, source: String, options: Vec<String>) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source,
        options,
        ..Default::default()
    }
}

/// The root directory's path is UTF-8, and the rest is numbers.
fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::types;
    use shim::config::Config;
    use shim::rootfs::{Source, choose};
    use shim::spec::group::Role;

    fn layers(below: &[u64], writable: bool) -> Layers {
        let tree = |id: u64| Tree::new("/s".as_ref(), id);
        Layers {
            own: tree(9),
            below: below.iter().map(|id| tree(*id)).collect(),
            writable,
        }
    }

    fn of(mount: &Mount) -> String {
        format!(
            "{} {} {}",
            mount.type_,
            mount.source,
            mount.options.join(",")
        )
    }

    #[test]
    fn files_of_the_host_are_bound_or_stacked() {
        for (below, writable, wanted) in [
            (&[][..], true, "bind /s/9/fs rbind,rw"),
            (&[], false, "bind /s/9/fs rbind,ro"),
            (&[1], false, "bind /s/1/fs rbind,ro"),
            (
                &[1],
                true,
                "overlay overlay index=off,workdir=/s/9/work,upperdir=/s/9/fs,lowerdir=/s/1/fs",
            ),
            (
                &[2, 1],
                false,
                "overlay overlay index=off,lowerdir=/s/2/fs:/s/1/fs",
            ),
        ] {
            assert_eq!(of(&of_host(&layers(below, writable))), wanted);
        }
    }

    #[test]
    fn the_shim_reads_the_image_from_the_mount() {
        let metadata = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let mount = of_guest(&layers(&[2, 1], true), "r.example/a:1", &metadata);
        assert_eq!(
            (mount.type_.as_str(), mount.source.as_str()),
            ("bind", "/s/9/fs")
        );
        let given = containerd_mount(mount);
        let source = choose(
            &Config::default(),
            &Role::Single,
            &BTreeMap::new(),
            &[given],
        );
        let image = "r.example/a:1".to_owned();
        assert_eq!(source.unwrap(), Source::GuestPull { image, metadata });
    }

    /// As it reaches the shim.
    fn containerd_mount(mount: Mount) -> types::mount::Mount {
        types::mount::Mount {
            type_: mount.type_,
            source: mount.source,
            options: mount.options,
            ..Default::default()
        }
    }
}
