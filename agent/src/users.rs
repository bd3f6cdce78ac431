//! User namespaces of containers (`hostUsers: false`, `linux.uidMappings`).
//!
//! ```text
//! mappings of the request ─► Map ─► a child unshares, we write its maps, its namespace is kept by a mount
//!                                     │
//!      the process enters it as its last act before execve(2) (jail/identity.rs) ◄─┤
//!      image layers and volumes are mounted with their owners mapped (idmap.rs) ◄──┘
//! ```
//!
//! Everything before that last act is done by the guest's root, who may mount what the guest's own network, IPC and
//! PID namespaces belong to. Containers of a pod with the same mappings are in the same namespace.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use agent_api::{ErrorCode, GuestError, oci};
use rustix::fs::{AtFlags, Gid, Uid, chownat, fstat};
use rustix::io::Errno;
use rustix::mount::mount_bind;
use rustix::process::Pid;
use rustix::thread::{
    CapabilitySet, capabilities, set_capabilities, set_thread_res_gid, set_thread_res_uid,
};

use crate::fault::{OrFail, invalid};
use crate::path::STATE;
use crate::runtime::Runtime;
use crate::spec::set_sysctl;

const PHASE: &str = "users";
/// Different mappings of one pod; Kubernetes gives it one.
const MAX_NAMESPACES: usize = 64;
/// The kernel takes a map in one write of less than a page (`user_namespaces(7)`).
const MAX_MAP: usize = 4095;
/// What root of a pod may do in its network without capabilities: these need a power over the guest's network
/// that no namespace below has.
const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// What the root of a container has over the files of its users (capabilities(7)).
const OVER_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

/// Which ids of a container are which of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

/// Ids that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    size: u32,
}

/// An owner, in the guest's ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Owner {
    /// Does something to files as this user, with root's powers over files: a file system of the host with mapped
    /// owners lets nobody else make files in it.
    ///
    /// # Errors
    ///
    /// The kernel refuses the change.
    pub fn does<T: Send>(self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if self == Self::default() {
            return Ok(work());
        }
        // A thread has ids of its own, and goes with them.
        let changed = || -> io::Result<T> {
            self.take_on()?;
            Ok(work())
        };
        let done = std::thread::scope(|scope| scope.spawn(changed).join());
        done.unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
    }

    /// Makes the calling thread this user's.
    fn take_on(self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_res_gid(None::<Gid>, gid, None::<Gid>)?;
        set_thread_res_uid(None::<Uid>, uid, None::<Uid>)?;
        // With root's id its powers are out of effect, which it may have back one by one.
        let mut powers = capabilities(None)?;
        powers.effective |= powers.permitted & OVER_FILES;
        Ok(set_capabilities(None, powers)?)
    }

    /// Has `make` put something into a directory under a name, as this user.
    ///
    /// # Errors
    ///
    /// Those of `make`, or the kernel refuses the change.
    pub fn makes(
        self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        make: impl Fn() -> Result<(), Errno> + Sync,
    ) -> io::Result<()> {
        match self.does(&make)? {
            Err(Errno::ACCESS) if self != Self::default() => {}
            made => return Ok(made?),
        }
        // A host has no powers of the guest's: there a private directory is its owner's to make something in.
        let found = fstat(directory)?;
        let above = Self {
            uid: found.st_uid,
            gid: found.st_gid,
        };
        above.does(&make)??;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(chownat(directory, name, Some(uid), Some(gid), flags)?)
    }
}

/// A user namespace that outlives its processes.
#[derive(Debug)]
pub struct Namespace {
    map: Map,
    path: PathBuf,
}

/// The user namespaces of a pod; they stay until the VM ends.
#[derive(Debug, Default)]
pub struct Namespaces {
    known: tokio::sync::Mutex<Vec<Arc<Namespace>>>,
    sysctls: Sysctls,
}

/// Those of [`SYSCTLS`] that the pod set itself, and which are left to it.
#[derive(Debug, Default)]
struct Sysctls(Mutex<Vec<&'static str>>);

impl Map {
    /// The mappings of a specification, if it has any.
    ///
    /// # Errors
    ///
    /// Only one of the two is there, a range is none, root is not in it, or it is longer than the kernel takes.
    pub fn of(linux: &oci::Linux) -> Result<Option<Self>, GuestError> {
        if linux.UIDMappings.is_empty() && linux.GIDMappings.is_empty() {
            let asked = linux.Namespaces.iter().any(|found| found.Type == "user");
            return match asked {
                true => Err(invalid(
                    PHASE,
                    "a user namespace without linux.uidMappings and linux.gidMappings",
                )),
                false => Ok(None),
            };
        }
        let map = Self {
            uids: ranges("linux.uidMappings", &linux.UIDMappings)?,
            gids: ranges("linux.gidMappings", &linux.GIDMappings)?,
        };
        Ok(Some(map))
    }

    /// The guest's id of a container's user.
    #[must_use]
    pub fn uid(&self, inside: u32) -> Option<u32> {
        find(&self.uids, inside)
    }

    /// The guest's id of a container's group.
    #[must_use]
    pub fn gid(&self, inside: u32) -> Option<u32> {
        find(&self.gids, inside)
    }

    /// The container's root.
    #[must_use]
    pub fn root(&self) -> Owner {
        // Both are in it, as was found out when it was read.
        Owner {
            uid: self.uid(0).unwrap_or_default(),
            gid: self.gid(0).unwrap_or_default(),
        }
    }
}

fn ranges(name: &str, mappings: &[oci::LinuxIDMapping]) -> Result<Vec<Range>, GuestError> {
    let ranges: Vec<_> = mappings
        .iter()
        .map(|mapping| Range {
            inside: mapping.ContainerID,
            outside: mapping.HostID,
            size: mapping.Size,
        })
        .collect();
    let ends = |start: u32, size: u32| start.checked_add(size).is_some();
    let is_range = |range: &Range| {
        range.size > 0 && ends(range.inside, range.size) && ends(range.outside, range.size)
    };
    if let Some(bad) = ranges.iter().find(|range| !is_range(range)) {
        let Range {
            inside,
            outside,
            size,
        } = bad;
        let text = format!("{name}: {size} ids from {inside} (containerID) and {outside} (hostID)");
        return Err(invalid(PHASE, text));
    }
    if find(&ranges, 0).is_none() {
        let text = format!("{name} has no containerID 0: whoever makes the container is its root");
        return Err(invalid(PHASE, text));
    }
    if text(&ranges).len() > MAX_MAP {
        return Err(invalid(
            PHASE,
            format!("{name} is longer than the kernel takes"),
        ));
    }
    Ok(ranges)
}

fn find(ranges: &[Range], inside: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = inside.checked_sub(range.inside)?;
        (offset < range.size).then(|| range.outside + offset)
    })
}

/// The form of `/proc/<pid>/uid_map`.
fn text(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        let Range {
            inside,
            outside,
            size,
        } = range;
        let _ = writeln!(text, "{inside} {outside} {size}");
        text
    })
}

impl Namespace {
    /// What is mapped to what.
    #[must_use]
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Namespaces {
    /// The one with these mappings, made where it is missing.
    ///
    /// # Errors
    ///
    /// There are too many, or the kernel refuses the mappings.
    pub async fn get(&self, runtime: &Runtime, map: Map) -> Result<Arc<Namespace>, GuestError> {
        let mut known = self.known.lock().await;
        if let Some(found) = known.iter().find(|found| found.map == map) {
            return Ok(Arc::clone(found));
        }
        if known.len() >= MAX_NAMESPACES {
            let text = format!("more than {MAX_NAMESPACES} user namespaces");
            return Err(GuestError::new(ErrorCode::ResourceExhausted, PHASE, text));
        }
        if known.is_empty() {
            self.sysctls.set_rest(set_sysctl)?;
        }
        let directory = Path::new(STATE).join("users");
        fs::create_dir_all(&directory).or_internal(PHASE, directory.display())?;
        let path = directory.join(known.len().to_string());
        fs::File::create(&path).or_internal(PHASE, path.display())?;
        runtime.user_namespace(map.clone(), path.clone()).await?;
        let namespace = Arc::new(Namespace { map, path });
        known.push(Arc::clone(&namespace));
        Ok(namespace)
    }

    /// Sets a sysctl of the guest that the pod asks for.
    ///
    /// # Errors
    ///
    /// As [`set_sysctl`].
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<(), GuestError> {
        self.sysctls.set(name, value, set_sysctl)
    }
}

impl Sysctls {
    fn set(
        &self,
        name: &str,
        value: &str,
        write: impl Fn(&str, &str) -> Result<(), GuestError>,
    ) -> Result<(), GuestError> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write(name, value)?;
        // The kernel takes both signs.
        let spelled = name.replace('/', ".");
        let ours = SYSCTLS.into_iter().find(|(ours, _)| *ours == spelled);
        if let Some((ours, _)) = ours.filter(|(ours, _)| !pods.contains(ours)) {
            pods.push(ours);
        }
        Ok(())
    }

    /// Sets what the pod has not set.
    fn set_rest(
        &self,
        write: impl Fn(&str, &str) -> Result<(), GuestError>,
    ) -> Result<(), GuestError> {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = SYSCTLS.into_iter().filter(|(name, _)| !pods.contains(name));
        rest.try_for_each(|(name, value)| write(name, value))
    }
}

/// Gives the namespace of a child that waits in a new one its mappings, and keeps it at `path`. Blocking.
///
/// # Errors
///
/// The child is gone, or the kernel refuses the mappings.
pub fn establish(pid: Pid, told: OwnedFd, map: &Map, path: &Path) -> io::Result<()> {
    fs::File::from(told).read_exact(&mut [0])?;
    let of = |name: &str| format!("/proc/{}/{name}", pid.as_raw_nonzero());
    fs::write(of("uid_map"), text(&map.uids))?;
    fs::write(of("gid_map"), text(&map.gids))?;
    Ok(mount_bind(of("ns/user"), path)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn mappings(ranges: &[(u32, u32, u32)]) -> Vec<oci::LinuxIDMapping> {
        let one = |&(inside, outside, size): &(u32, u32, u32)| oci::LinuxIDMapping {
            ContainerID: inside,
            HostID: outside,
            Size: size,
            ..Default::default()
        };
        ranges.iter().map(one).collect()
    }

    fn map(uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> Result<Option<Map>, GuestError> {
        Map::of(&oci::Linux {
            UIDMappings: mappings(uids),
            GIDMappings: mappings(gids),
            ..Default::default()
        })
    }

    #[test]
    fn ids_are_found_in_their_ranges_and_nowhere_else() {
        assert_eq!(map(&[], &[]).unwrap(), None);
        let map = map(&[(0, 1000, 10), (10, 5000, 1)], &[(0, 70_000, 65_536)])
            .unwrap()
            .unwrap();
        assert_eq!(
            (map.uid(9), map.uid(10), map.uid(11)),
            (Some(1009), Some(5000), None)
        );
        assert_eq!((map.gid(65_535), map.gid(65_536)), (Some(135_535), None));
        assert_eq!(
            map.root(),
            Owner {
                uid: 1000,
                gid: 70_000
            }
        );
        assert_eq!(text(&map.uids), "0 1000 10\n10 5000 1\n");
    }

    #[test]
    fn a_file_is_its_makers_and_the_maker_is_gone_afterwards() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: to be another takes root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let made = |owner: Owner, name: &str| {
            let path = directory.path().join(name);
            owner.does(|| fs::write(&path, "")).unwrap().unwrap();
            let made = fs::metadata(&path).unwrap();
            (made.uid(), made.gid())
        };
        let owner = Owner { uid: 7, gid: 8 };
        assert_eq!(made(owner, "a"), (7, 8));
        assert_eq!(made(Owner::default(), "b"), (0, 0));
    }

    #[test]
    fn where_a_host_refuses_root_the_directorys_owner_makes_it_and_root_gets_it() {
        use std::os::unix::fs::{MetadataExt, chown};
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: to be another takes root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        chown(directory.path(), Some(9), Some(10)).unwrap();
        let opened = fs::File::open(directory.path()).unwrap();
        let make = || match rustix::process::geteuid().as_raw() {
            9 => rustix::fs::mkdirat(&opened, "made", rustix::fs::Mode::from_raw_mode(0o755)),
            _ => Err(Errno::ACCESS),
        };
        let owner = Owner { uid: 7, gid: 8 };
        let name = OsStr::new("made");
        owner.makes(opened.as_fd(), name, make).unwrap();
        let made = fs::metadata(directory.path().join("made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (7, 8));
        let error = Owner::default().makes(opened.as_fd(), name, make);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_sysctl_that_the_pod_set_keeps_its_value() {
        let [(ports, _), (ping, _)] = SYSCTLS;
        for (spelled, left) in [
            (ports, vec![ping]),
            ("net.ipv4/ping_group_range", vec![ports]),
            ("net.core.somaxconn", vec![ports, ping]),
        ] {
            let sysctls = Sysctls::default();
            let pass = |_: &str, _: &str| Ok(());
            sysctls.set(spelled, "1", pass).unwrap();
            sysctls.set(spelled, "1", pass).unwrap();
            let set = Mutex::new(Vec::new());
            let note = |name: &str, _: &str| {
                set.lock().unwrap().push(name.to_owned());
                Ok(())
            };
            sysctls.set_rest(note).unwrap();
            assert_eq!(set.into_inner().unwrap(), left, "{spelled}");
        }
    }

    #[test]
    fn what_is_no_mapping_is_refused_by_its_name() {
        let whole = [(0, 1000, 10)];
        for (uids, gids, named) in [
            (&whole[..], &[][..], "linux.gidMappings"),
            (&[][..], &whole[..], "linux.uidMappings"),
            (&[(1, 1000, 10)][..], &whole[..], "containerID 0"),
            (&[(0, 1000, 0)][..], &whole[..], "0 ids"),
            (&[(0, u32::MAX, 2)][..], &whole[..], "hostID"),
        ] {
            let error = map(uids, gids).unwrap_err();
            assert!(error.message.contains(named), "{error}");
        }
        let many: Vec<_> = (0..340).map(|n| (n, 1_000_000 + n, 1)).collect();
        assert!(map(&many, &whole).is_err());
        let asked = oci::Linux {
            Namespaces: vec![oci::LinuxNamespace {
                Type: "user".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert!(Map::of(&asked).is_err());
    }
}
