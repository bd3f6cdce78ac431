//! What a kubelet has on its host for one pod.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::State;
use support::cri::{ContainerConfig, Mount};
use support::run::within;

use super::LIMIT;

/// The place where a kubelet has what is of one pod.
pub(crate) struct Kubelet {
    pub(crate) pod: PathBuf,
    _shared: Mounted,
}

impl Kubelet {
    pub(crate) fn new(state: &State) -> Self {
        let root = state.dir("kubelet").unwrap();
        // What is mounted in it later is seen by those who have a copy of the host's mounts, as on any node.
        for how in ["--bind", "--make-shared"] {
            let mut mount = Command::new("mount");
            mount.arg(how).arg(&root);
            if how == "--bind" {
                mount.arg(&root);
            }
            within(LIMIT, &mut mount).unwrap().ok().unwrap();
        }
        let pod = state.dir("kubelet/pods/0b9c-1").unwrap();
        fs::write(pod.join("etc-hosts"), "127.0.0.1 localhost\n10.1.2.3 web\n").unwrap();
        Self {
            pod,
            _shared: Mounted(root),
        }
    }

    pub(crate) fn volume(&self, kind: &str, name: &str) -> PathBuf {
        let path = self
            .pod
            .join(format!("volumes/kubernetes.io~{kind}"))
            .join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// An empty file for a container's last words.
    pub(crate) fn termination_log(&self, container: &str) -> PathBuf {
        let directory = self.pod.join("containers").join(container);
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("5f3a");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        path
    }

    /// A part of a volume, mounted as for `subPath`, which the kubelet makes where it is missing.
    pub(crate) fn part(&self, kind: &str, volume: &str, path: &str) -> Mounted {
        let from = self.volume(kind, volume).join(path);
        let at = self.pod.join("volume-subpaths").join(volume).join("main");
        fs::create_dir_all(&at).unwrap();
        let at = at.join("0");
        if !from.exists() {
            fs::create_dir_all(&from).unwrap();
        }
        match from.is_dir() {
            true => fs::create_dir_all(&at).unwrap(),
            false => fs::write(&at, "").unwrap(),
        }
        let mut bind = Command::new("mount");
        bind.arg("--bind").arg(from).arg(&at);
        within(LIMIT, &mut bind).unwrap().ok().unwrap();
        Mounted(at)
    }

    /// A tmpfs, as for `medium: Memory` with a sizeLimit.
    pub(crate) fn memory(&self, name: &str, bytes: u32) -> Mounted {
        let path = self.volume("empty-dir", name);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]);
        within(LIMIT, mount.arg(&path)).unwrap().ok().unwrap();
        Mounted(path)
    }
}

/// A mount that is undone.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = within(LIMIT, Command::new("umount").arg(&self.0));
    }
}

/// Writes a set of files as the kubelet does: aside, and then by a link that is renamed.
pub(crate) fn publish(volume: &Path, set: &str, files: &[(&str, &str)]) {
    let directory = volume.join(format!("..{set}"));
    for (name, text) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let top = name.split('/').next().unwrap();
        let _ = symlink(format!("..data/{top}"), volume.join(top));
    }
    let before = fs::read_link(volume.join("..data"));
    symlink(format!("..{set}"), volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Ok(before) = before {
        fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

pub(crate) fn mount(container: &mut ContainerConfig, from: &Path, to: &str, readonly: bool) {
    container.mounts.push(Mount {
        container_path: to.to_owned(),
        host_path: from.display().to_string(),
        readonly,
        ..Default::default()
    });
}
