//! Mounts whose owners are mapped, for containers with a user namespace: the container's root finds the host's files
//! as root's, and what it writes is root's on the host. The guest's kernel does it for what lies in the guest; what
//! is shared with it is mapped here.
//!
//! What maps is a user namespace. A child that is in a new one is there until it has been given its mappings.
//! <https://docs.kernel.org/filesystems/idmappings.html>

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{ChildStderr, Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::spec::oci::IdMapping;
use crate::tree::{Reach, Tree};

/// The verb by which this program waits in a new user namespace.
pub const USERS: &str = "users";
/// How many user namespaces there may be.
const ALLOWED: &str = "/proc/sys/user/max_user_namespaces";
/// What is read of why it is not, in bytes.
const MAX_SAID: u64 = 1024;
/// What the child says when it is there.
const HELD: &[u8] = b"held";

/// A user namespace to map by.
#[derive(Debug)]
pub struct Users(File);

impl Users {
    /// One with these mappings.
    ///
    /// # Errors
    /// As the kernel refuses them; only root may have them.
    pub fn new(uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(USERS);
        Self::of(command, uids, gids)
    }

    fn of(mut command: Command, uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut take = || {
            let mut output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
            let mut said = [0; HELD.len()];
            if output.read_exact(&mut said).is_err() {
                return Err(refused(child.stderr.take()));
            }
            let of = |name: &str| format!("/proc/{}/{name}", child.id());
            fs::write(of("uid_map"), text(uids))?;
            fs::write(of("gid_map"), text(gids))?;
            File::open(of("ns/user"))
        };
        let taken = take();
        // Its input ends with this.
        let _ = child.kill();
        let _ = child.wait();
        taken.map(Self)
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Mounts a directory or file on another with its owners mapped.
    ///
    /// # Errors
    /// EINVAL where its file system does not map owners.
    pub(crate) fn bind(&self, source: &Path, target: &Path, reach: Reach) -> io::Result<()> {
        let tree = Tree::of(source, reach)?;
        tree.map_owners(self.namespace(), reach)?;
        tree.attach(target)
    }
}

/// Why a child is in no user namespace. It has ended, and what it said is short.
fn refused(said: Option<ChildStderr>) -> io::Error {
    let mut text = Vec::new();
    if let Some(said) = said {
        // What was read until it failed is what there is.
        let _ = said.take(MAX_SAID).read_to_end(&mut text);
    }
    let allowed = fs::read_to_string(ALLOWED).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    io::Error::other(reason(text.trim(), allowed.trim()))
}

/// What to tell of it, by how many user namespaces this host allows.
fn reason(said: &str, allowed: &str) -> String {
    match allowed {
        "0" => "this host allows no user namespaces: set the sysctl user.max_user_namespaces, \
                such as to 15000"
            .to_owned(),
        _ => format!(
            "no new user namespace: {said} (this host allows {allowed}, by the sysctl user.max_user_namespaces)"
        ),
    }
}

/// What the child does.
///
/// # Errors
/// As the kernel refuses the namespace.
pub fn hold() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let mut output = io::stdout();
    output.write_all(HELD)?;
    output.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink()).map(drop)
}

/// The form of `/proc/<pid>/uid_map`.
fn text(mappings: &[IdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, one| {
        let _ = writeln!(text, "{} {} {}", one.container_id, one.host_id, one.size);
        text
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{MetadataExt, chown};

    use super::*;

    const MAPPING: IdMapping = IdMapping {
        host_id: 100_000,
        container_id: 0,
        size: 1000,
    };

    /// Users 0 to 999 as 100000 to 100999. This program is the test here, and has no verbs.
    pub(crate) fn users() -> Option<Users> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mapping owners needs root");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["--user", "sh", "-c", "printf held; cat"]);
        Some(Users::of(command, &[MAPPING], &[MAPPING]).unwrap())
    }

    #[test]
    fn a_child_that_is_in_no_namespace_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no room >&2; exit 1"]);
        let error = Users::of(command, &[MAPPING], &[MAPPING]).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("no room") || error.contains("set the sysctl"),
            "{error}"
        );
        let none = reason("no room", "0");
        assert!(none.contains("set the sysctl user.max_user_namespaces"));
        let full = reason("no room", "7");
        assert!(full.contains("no room") && full.contains("allows 7"));
    }

    #[test]
    fn owners_are_mapped_both_ways() {
        let Some(users) = users() else { return };
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (directory.path().join("s"), directory.path().join("t"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("root"), "").unwrap();
        users.bind(&source, &target, Reach::All).unwrap();
        let owner = |path: &Path| fs::metadata(path).unwrap().uid();
        assert_eq!(owner(&target.join("root")), 100_000);
        chown(target.join("root"), Some(100_007), None).unwrap();
        assert_eq!(owner(&source.join("root")), 7);
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn a_file_system_that_does_not_map_is_told() {
        let Some(users) = users() else { return };
        let target = tempfile::tempdir().unwrap();
        let error = users.bind(Path::new("/proc"), target.path(), Reach::Top);
        assert_eq!(error.unwrap_err().raw_os_error(), Some(nix::libc::EINVAL));
    }
}
