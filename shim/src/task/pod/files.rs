//! The files that containerd makes for a pod with a sandbox container, and leaves to the runtime for one
//! without: name servers, host names, and the shared memory of its containers.
//!
//! They are files of the host in the sandbox's directory, mounted where a container has none of its own. That
//! directory is the host's memory, so each container gets copies in the guest, shared file system or not.

use std::io;
use std::path::{Path, PathBuf};

use crate::spec::Spec;
use crate::spec::cri::PodConfig;
use crate::spec::oci::Mount;
use crate::spec::pod::SHM;
use crate::state_dir::StateDir;

/// Below the sandbox's directory.
const DIRECTORY: &str = "pod";
/// The host's name servers, for a pod that names none: as containerd does it.
const HOST_DNS: &str = "/etc/resolv.conf";
/// The largest file of the host that is copied, in bytes.
const MAX_DNS: u64 = 64 * 1024;
const LOOPBACK: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The files of a pod.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    hostname: String,
    dns: Vec<String>,
}

impl Files {
    pub(super) fn new(directory: &StateDir, config: &PodConfig) -> Self {
        Self {
            directory: directory.path().join(DIRECTORY),
            hostname: config.hostname.clone(),
            dns: config.dns.clone(),
        }
    }

    /// Writes them.
    pub(super) fn write(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let dns = match self.dns.is_empty() {
            true => of_host(Path::new(HOST_DNS)),
            false => self.dns.join("\n") + "\n",
        };
        std::fs::write(self.path("resolv.conf"), dns)?;
        std::fs::write(self.path("hosts"), LOOPBACK)?;
        if !self.hostname.is_empty() {
            std::fs::write(self.path("hostname"), format!("{}\n", self.hostname))?;
        }
        Ok(())
    }

    /// What stands for the pod's shared memory, which the guest has: no file of the host.
    pub(super) fn shm(&self) -> String {
        self.path("shm").display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Mounts them into a container, but for what it has itself.
    pub(super) fn add_to(&self, spec: &mut Spec) {
        let has = |destination: &str| spec.mounts.iter().any(|one| one.destination == destination);
        let is_read_only = spec.root.as_ref().is_some_and(|root| root.readonly);
        let access = if is_read_only { "ro" } else { "rw" };
        let mut missing = vec![("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];
        if !self.hostname.is_empty() {
            missing.push(("hostname", "/etc/hostname"));
        }
        missing.retain(|(_, destination)| !has(destination));
        // Files belong to the container's root where that is another.
        let linux = spec.linux.clone().unwrap_or_default();
        let bind = |source: PathBuf, destination: &str, access: &str| Mount {
            destination: destination.to_owned(),
            source: source.display().to_string(),
            kind: "bind".to_owned(),
            options: ["rbind", "rprivate", access].map(str::to_owned).to_vec(),
            uid_mappings: linux.uid_mappings.clone(),
            gid_mappings: linux.gid_mappings.clone(),
        };
        let files = missing
            .into_iter()
            .map(|(name, destination)| bind(self.path(name), destination, access));
        spec.mounts.extend(files);
        // One of its own would not be the pod's; a volume that is mounted there stays.
        spec.mounts
            .retain(|one| one.destination != SHM || one.kind == "bind");
        if !spec.mounts.iter().any(|one| one.destination == SHM) {
            spec.mounts.push(bind(self.path("shm"), SHM, "rw"));
        }
    }
}

fn of_host(path: &Path) -> String {
    use std::io::Read;
    let mut text = String::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(MAX_DNS).read_to_string(&mut text));
    // A host without name servers gives none.
    read.map(|_| text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_what_it_has_not() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files {
            directory: directory.path().join("pod"),
            hostname: "web".to_owned(),
            dns: vec!["nameserver 10.0.0.1".to_owned()],
        };
        files.write().unwrap();
        let read = |name| std::fs::read_to_string(files.path(name)).unwrap();
        assert_eq!(read("resolv.conf"), "nameserver 10.0.0.1\n");
        assert_eq!(read("hostname"), "web\n");
        let mut spec: Spec = serde_json::from_str(
            r#"{"mounts":[{"destination":"/etc/hosts","type":"bind","source":"/k"},
                {"destination":"/dev/shm","type":"tmpfs","source":"shm"}]}"#,
        )
        .unwrap();
        files.add_to(&mut spec);
        let of = |destination: &str| {
            let mut found = spec
                .mounts
                .iter()
                .filter(|one| one.destination == destination);
            let source = found.next().unwrap().source.clone();
            assert!(found.next().is_none(), "{destination}");
            source
        };
        assert_eq!(of("/etc/hosts"), "/k");
        assert_eq!(
            of("/etc/resolv.conf"),
            files.path("resolv.conf").display().to_string()
        );
        assert_eq!(of(SHM), files.path("shm").display().to_string());
        let before = spec.mounts.len();
        files.add_to(&mut spec);
        assert_eq!(spec.mounts.len(), before);
    }
}
