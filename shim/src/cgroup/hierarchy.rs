//! The hierarchies of the host: one of version 2, or one for each controller of version 1. A host with both
//! has its controllers in version 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::place::Place;
use super::{CgroupError, Settings, write};
use crate::mountinfo;

/// The most hierarchies that are looked at: Linux has 14 controllers.
const MAX_HIERARCHIES: usize = 32;
/// What a group of processors must have in version 1 before a process can be in it.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// Its controllers in version 1, as /proc/PID/cgroup has them; empty in version 2.
    pub(super) controllers: String,
}

/// All that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Host(pub(super) Vec<Hierarchy>);

impl Hierarchy {
    fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|one| one == controller)
    }
}

impl Host {
    /// This host's.
    pub(super) fn find() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::parse(&mountinfo::read().unwrap_or_default(), &own)
    }

    /// From the tables of mounts and of the own cgroups: the second says which controllers are mounted
    /// together, the first where.
    fn parse(mounts: &str, own: &str) -> Self {
        let mut found = Vec::new();
        for controllers in own.lines().filter_map(|line| line.split(':').nth(1)) {
            // Without controllers, or with a name in their place, nothing is counted.
            if controllers.is_empty() || controllers.starts_with("name=") {
                continue;
            }
            let all = |options: &str| {
                controllers
                    .split(',')
                    .all(|one| options.split(',').any(|option| option == one))
            };
            if let Some(mount) = mounted(mounts, "cgroup", all) {
                found.push(Hierarchy {
                    mount,
                    controllers: controllers.to_owned(),
                });
            }
        }
        if found.is_empty() {
            let unified = mounted(mounts, "cgroup2", |_| true);
            found.extend(unified.map(|mount| Hierarchy {
                mount,
                controllers: String::new(),
            }));
        }
        found.truncate(MAX_HIERARCHIES);
        Self(found)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory of a place in each hierarchy.
    pub(super) fn directories(&self, place: &Place) -> Vec<PathBuf> {
        let under = |one: &Hierarchy| one.mount.join(place.path());
        self.0.iter().map(under).collect()
    }

    /// Those above a directory that are not there, from the outermost.
    pub(super) fn missing_above(&self, leaf: &Path) -> Vec<PathBuf> {
        let above = leaf.ancestors().skip(1);
        let mut missing: Vec<_> = above
            .take_while(|path| !path.is_dir() && self.0.iter().all(|one| one.mount != *path))
            .map(Path::to_owned)
            .collect();
        missing.reverse();
        missing
    }

    /// Where a process is.
    pub(super) fn cgroups_of(&self, pid: u32) -> Vec<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.origins(&text)
    }

    fn origins(&self, own: &str) -> Vec<PathBuf> {
        let place = |one: &Hierarchy| {
            let line = own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                (controllers == one.controllers).then_some(path)
            })?;
            Some(one.mount.join(line.trim_start_matches('/')))
        };
        self.0.iter().filter_map(place).collect()
    }

    /// Makes a place in every hierarchy. Another pod may remove what is above it meanwhile, so it is tried
    /// again.
    pub(super) fn make(&self, place: &Place, attempts: usize) -> Result<(), CgroupError> {
        for hierarchy in &self.0 {
            let mut left = attempts;
            while let Err(error) = make_one(hierarchy, place) {
                let is_gone = matches!(&error, CgroupError::File { source, .. }
                    if source.kind() == io::ErrorKind::NotFound);
                left = left.saturating_sub(1);
                if !is_gone || left == 0 {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Sets what is to be set.
    pub(super) fn set(&self, place: &Place, settings: &Settings) -> Result<(), CgroupError> {
        for hierarchy in &self.0 {
            let leaf = hierarchy.mount.join(place.path());
            for (controller, file, text) in files(settings, hierarchy.is_unified()) {
                let path = leaf.join(file);
                // A unit of systemd's has the controllers that systemd gives it.
                let is_there = match hierarchy.is_unified() {
                    true => path.exists(),
                    false => hierarchy.has(controller),
                };
                if is_there {
                    write(&path, &text)?;
                }
            }
        }
        Ok(())
    }
}

/// The root of the hierarchy in which a directory lies.
pub(super) fn root_of(path: &Path) -> Option<PathBuf> {
    let host = Host::find();
    let mut mounts = host.0.into_iter().map(|one| one.mount);
    mounts.find(|mount| path.starts_with(mount))
}

/// The controller, the file and its text, in either version.
fn files(settings: &Settings, is_unified: bool) -> Vec<(&'static str, &'static str, String)> {
    let mut files = Vec::new();
    for (file, text) in [
        (CPUSET_FILES[0], &settings.cpus),
        (CPUSET_FILES[1], &settings.mems),
    ] {
        if !text.is_empty() {
            files.push(("cpuset", file, text.clone()));
        }
    }
    match settings.shares.filter(|shares| *shares > 0) {
        Some(shares) if is_unified => {
            // Shares (2 to 262144) on the scale of weights (1 to 10000).
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142;
            files.push(("cpu", "cpu.weight", weight.to_string()));
        }
        Some(shares) => files.push(("cpu", "cpu.shares", shares.to_string())),
        None => {}
    }
    files
}

fn make_one(hierarchy: &Hierarchy, place: &Place) -> Result<(), CgroupError> {
    let mut path = hierarchy.mount.clone();
    for name in place.path().components() {
        if hierarchy.is_unified() && !place.is_unit() {
            pass_down(&path);
        }
        path.push(name);
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::File { path, source });
            }
            _ => {}
        }
        if hierarchy.has("cpuset") {
            inherit(&path)?;
        }
    }
    Ok(())
}

/// Gives those below a cgroup of version 2 its controllers. Where the kernel refuses, what they use is
/// counted above.
fn pass_down(path: &Path) {
    let available = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_ascii_whitespace() {
        let _ = write(
            &path.join("cgroup.subtree_control"),
            &format!("+{controller}"),
        );
    }
}

/// A new group of processors in version 1 has none, and takes no process before it has.
fn inherit(path: &Path) -> Result<(), CgroupError> {
    for file in CPUSET_FILES {
        let own = path.join(file);
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| CgroupError::File {
                path: path.to_owned(),
                source,
            })
        };
        if read(&own)?.trim().is_empty()
            && let Some(parent) = path.parent()
        {
            write(&own, read(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// The first mount of a file system whose options are wanted.
fn mounted(list: &str, kind: &str, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    mountinfo::mounts(list)
        .find(|mount| mount.kind == kind && wanted(&mount.options))
        .map(|mount| mount.point)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        30 24 0:26 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
        33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    fn hierarchy(mount: &str, controllers: &str) -> Hierarchy {
        Hierarchy {
            mount: PathBuf::from(mount),
            controllers: controllers.to_owned(),
        }
    }

    #[test]
    fn a_host_with_both_versions_counts_in_the_first() {
        let own = "5:memory:/a\n4:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/d\n";
        let host = Host::parse(MOUNTS, own);
        assert_eq!(
            host.0,
            [
                hierarchy("/sys/fs/cgroup/memory", "memory"),
                hierarchy("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            ]
        );
        assert_eq!(
            host.origins(own),
            [
                Path::new("/sys/fs/cgroup/memory/a"),
                Path::new("/sys/fs/cgroup/cpu,cpuacct/b")
            ]
        );
    }

    #[test]
    fn a_host_with_the_second_version_has_one() {
        let mounts = "26 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let host = Host::parse(mounts, "0::/system.slice/containerd.service\n");
        assert_eq!(host.0, [hierarchy("/sys/fs/cgroup", "")]);
        assert_eq!(
            host.origins("0::/system.slice/c\n"),
            [Path::new("/sys/fs/cgroup/system.slice/c")]
        );
        assert!(Host::parse("", "0::/\n").is_empty());
    }
}
