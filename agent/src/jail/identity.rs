//! Who a process in a user namespace is: libcontainer prepares it as the guest's root, and this makes it the
//! container's user, as the last act before the filter and execve(2).
//!
//! libcontainer would enter the namespace first, where the guest's sysfs and message queues can not be mounted, and
//! runs further processes of a container outside of it.
#![expect(unsafe_code, reason = "unshare(2) has no safe wrapper")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::LinuxCapabilities;
use libcontainer::syscall::linux::LinuxSyscall;
use rustix::fs::{FileType, Gid, Uid, fchown, fstat, major};
use rustix::thread::{
    LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_keep_capabilities,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};
use serde::{Deserialize, Serialize};

use agent_api::GuestError;

use crate::fault::OrFail;
use crate::users::Owner;

/// The file beside `config.json` or `process.json` that has it.
const FILE: &str = "identity.json";
/// The first and the last major number of pseudo terminals (Documentation/admin-guide/devices.txt).
const TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// How long a process that was started may take to be in its namespaces, which is some system calls, and how often to
/// look.
const LEAVE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);

/// What a process becomes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The file of the user namespace.
    pub namespace: PathBuf,
    /// In the namespace.
    pub uid: u32,
    /// In the namespace.
    pub gid: u32,
    /// In the namespace.
    pub groups: Vec<u32>,
    /// All, where none are named.
    pub capabilities: Option<LinuxCapabilities>,
    /// User and group outside of it.
    pub owner: (u32, u32),
}

impl Identity {
    /// Writes it beside a file, for the sub-command to find.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub(crate) fn write_beside(&self, file: &Path) -> Result<(), GuestError> {
        let file = file.with_file_name(FILE);
        let text = serde_json::to_vec(self).or_internal("users", FILE)?;
        fs::write(&file, text).or_internal("users", file.display())
    }
}

/// An identity whose namespace is open, because its file is not in the container.
#[derive(Clone, Debug)]
pub(super) struct Ready(Rc<(Identity, File)>);

impl Ready {
    /// That which is beside a file, if there is one.
    pub(super) fn beside(file: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(file.with_file_name(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let identity: Identity = serde_json::from_slice(&text)?;
        let namespace = File::open(&identity.namespace)?;
        Ok(Some(Self(Rc::new((identity, namespace)))))
    }

    /// Makes the calling process, which has one thread, what it is to be. The first process of a container
    /// takes the mounts along, so that it may mount where it has the capability.
    pub(super) fn assume(&self, is_first: bool) -> io::Result<()> {
        let (identity, namespace) = &*self.0;
        let (uid, gid) = identity.owner;
        give_streams(Owner { uid, gid })?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
        if is_first {
            // SAFETY: no descriptors and no memory are shared with another thread: there is none.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        }
        let groups: Vec<_> = identity.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        set_keep_capabilities(true)?;
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        reset_effective(&LinuxSyscall).map_err(io::Error::other)?;
        match &identity.capabilities {
            Some(set) => drop_privileges(set, &LinuxSyscall).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

/// The mount namespace of a container's first process, which leaves it when it is started. Whoever joins the
/// container finds its namespaces by that process, and is in the wrong one until then.
pub(super) struct Left {
    link: PathBuf,
    namespace: Option<PathBuf>,
}

impl Left {
    /// Of a process that is not started yet.
    pub(super) fn of(pid: i32) -> Self {
        let link = PathBuf::from(format!("/proc/{pid}/ns/mnt"));
        let namespace = fs::read_link(&link).ok();
        Self { link, namespace }
    }

    /// Returns when the process has left it or is gone, or after [`LEAVE`]: one that is stopped meanwhile holds up
    /// nobody.
    pub(super) fn wait(&self) {
        let until = Instant::now() + LEAVE;
        let stays = || self.namespace.is_some() && fs::read_link(&self.link).ok() == self.namespace;
        while stays() && Instant::now() < until {
            thread::sleep(LOOK);
        }
    }
}

/// Lets the process open its own streams again, as `/dev/stdout`. What is no pipe and no terminal is not its own.
fn give_streams(owner: Owner) -> io::Result<()> {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for stream in streams {
        if is_own(stream)? {
            // A terminal's group is that of all terminals.
            fchown(stream, Some(Uid::from_raw(owner.uid)), None)?;
        }
    }
    Ok(())
}

fn is_own(stream: BorrowedFd<'_>) -> io::Result<bool> {
    let stat = fstat(stream)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => true,
        FileType::CharacterDevice => TERMINALS.contains(&major(stat.st_rdev)),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_beside_the_bundle_or_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.json");
        assert!(Ready::beside(&config).unwrap().is_none());
        let identity = Identity {
            namespace: "/proc/self/ns/user".into(),
            uid: 1,
            gid: 2,
            groups: vec![3],
            capabilities: Some(LinuxCapabilities::default()),
            owner: (1001, 1002),
        };
        let file = directory.path().join(FILE);
        fs::write(&file, serde_json::to_vec(&identity).unwrap()).unwrap();
        assert_eq!(Ready::beside(&config).unwrap().unwrap().0.0, identity);
        fs::write(&file, r#"{"uid":0}"#).unwrap();
        assert!(Ready::beside(&config).is_err());
    }

    #[test]
    fn a_namespace_is_waited_for_until_it_is_left_or_nobody_is_there_to_leave_it() {
        let of = |script: &str| {
            let shell = std::process::Command::new("sh")
                .args(["-c", script])
                .spawn();
            let child = shell.unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            (child, Left::of(pid))
        };
        let (mut leaves, left) = of("sleep 0.1; exec unshare -Urm sleep 60");
        let before = left.namespace.clone().unwrap();
        let began = Instant::now();
        left.wait();
        assert_ne!(fs::read_link(&left.link).unwrap(), before);
        leaves.kill().unwrap();
        leaves.wait().unwrap();
        left.wait();
        let (mut ends, left) = of("sleep 0.1");
        ends.wait().unwrap();
        left.wait();
        assert!(began.elapsed() < LEAVE);
    }

    #[test]
    fn only_pipes_and_terminals_are_given_away() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(is_own(read.as_fd()).unwrap());
        let null = File::open("/dev/null").unwrap();
        assert!(!is_own(null.as_fd()).unwrap());
        let file = tempfile::tempfile().unwrap();
        assert!(!is_own(file.as_fd()).unwrap());
    }
}
