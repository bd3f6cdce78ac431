//! Names of users and groups, looked up in the container's own files.
//!
//! The form is the image specification's `User`: `user`, `uid`, `user:group`, `uid:gid` and the
//! mixtures. A number needs no entry in the files; a name does. There is no NSS in the guest.
//! <https://github.com/opencontainers/image-spec/blob/main/config.md>

use std::io::ErrorKind;
use std::path::Path;

use agent_api::{GuestError, oci};

use crate::fault::invalid;
use crate::path::read_in_root;

const PHASE: &str = "user";
/// The files are read whole.
const MAX_FILE: u64 = 1024 * 1024;
/// The largest id; the one that is all ones means "as before" to the kernel.
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups that the files give a named or listed user.
    pub additional_gids: Vec<u32>,
}

/// Looks a user up below `root`.
///
/// # Errors
///
/// A name has no entry, or the files are there and cannot be read: without them a number would get other groups.
pub fn look_up(root: &Path, text: &str) -> Result<User, GuestError> {
    resolve(
        text,
        &file(root, "/etc/passwd")?,
        &file(root, "/etc/group")?,
    )
}

/// Names the home directory where the environment has none, as libcontainer does for a user that it knows of.
///
/// # Errors
///
/// The file of users is there and cannot be read.
pub fn fill_home(root: &Path, process: &mut oci::Process) -> Result<(), GuestError> {
    if process
        .Env
        .iter()
        .any(|variable| variable.starts_with("HOME="))
    {
        return Ok(());
    }
    let passwd = file(root, "/etc/passwd")?;
    let mut accounts = passwd.lines().filter_map(Account::parse);
    let found = accounts.find(|account| account.uid == process.User.UID);
    let home = found.map_or("/", |account| account.home);
    process.Env.push(format!("HOME={home}"));
    Ok(())
}

/// A file of the root; an image without it has numbers only.
fn file(root: &Path, path: &str) -> Result<String, GuestError> {
    match read_in_root(root, path, MAX_FILE) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(String::new())
        }
        read => read.map_err(|error| invalid(PHASE, format!("the image's {path}: {error}"))),
    }
}

/// Refuses what is no id of a user or a group.
///
/// # Errors
///
/// It is larger than any.
pub fn check(id: u32) -> Result<(), GuestError> {
    if id <= MAX_ID {
        return Ok(());
    }
    let message = format!("{id} is no user and no group: ids end at {MAX_ID}");
    Err(invalid(PHASE, message))
}

fn resolve(text: &str, passwd: &str, group: &str) -> Result<User, GuestError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == user,
        });
    let mut found = match (&entry, number) {
        (Some(account), _) => User {
            uid: account.uid,
            gid: account.gid,
            ..User::default()
        },
        (None, Some(uid)) => User {
            uid,
            ..User::default()
        },
        (None, None) if user.is_empty() => User::default(),
        (None, None) => {
            return Err(invalid(
                PHASE,
                format!("user {user:?} is not in the image's /etc/passwd"),
            ));
        }
    };
    match wanted_group {
        Some(wanted) => found.gid = group_id(wanted, group)?,
        // An explicit group stands alone; otherwise the user's groups come with it.
        None => {
            let name = entry.map(|account| account.name).unwrap_or_default();
            found.additional_gids = group
                .lines()
                .filter_map(Group::parse)
                .filter(|entry| !name.is_empty() && entry.members.split(',').any(|m| m == name))
                .map(|entry| entry.gid)
                .collect();
        }
    }
    Ok(found)
}

fn group_id(wanted: &str, group: &str) -> Result<u32, GuestError> {
    if let Ok(gid) = wanted.parse() {
        return Ok(gid);
    }
    group
        .lines()
        .filter_map(Group::parse)
        .find(|entry| entry.name == wanted)
        .map_or_else(
            || {
                Err(invalid(
                    PHASE,
                    format!("group {wanted:?} is not in the image's /etc/group"),
                ))
            },
            |entry| Ok(entry.gid),
        )
}

/// A line of passwd(5).
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(Self {
            name,
            uid,
            gid,
            home,
        })
    }
}

/// A line of group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:50:web,other\nadm:x:51:other\n";

    fn user(uid: u32, gid: u32, additional_gids: &[u32]) -> User {
        User {
            uid,
            gid,
            additional_gids: additional_gids.to_vec(),
        }
    }

    #[test]
    fn an_id_that_the_kernel_takes_for_none_is_refused() {
        check(0).unwrap();
        check(MAX_ID).unwrap();
        assert!(check(MAX_ID + 1).is_err());
        assert!(check(u32::MAX).is_err());
    }

    #[test]
    fn names_and_numbers_are_resolved() {
        for (text, expected) in [
            ("", user(0, 0, &[])),
            ("root", user(0, 0, &[])),
            ("web", user(33, 34, &[50])),
            ("33", user(33, 34, &[50])),
            ("web:adm", user(33, 51, &[])),
            ("1000", user(1000, 0, &[])),
            ("1000:1001", user(1000, 1001, &[])),
            ("web:", user(33, 34, &[50])),
        ] {
            assert_eq!(resolve(text, PASSWD, GROUP).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn the_files_are_those_of_the_root_whatever_leads_to_them() {
        let root = tempfile::tempdir().unwrap();
        // An image without the files has numbers only.
        assert_eq!(look_up(root.path(), "33").unwrap(), user(33, 0, &[]));
        assert!(look_up(root.path(), "web").is_err());
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(root.path().join("accounts"), PASSWD).unwrap();
        // Absolute, and further up than there is: both end at the root.
        std::os::unix::fs::symlink("/../../accounts", etc.join("passwd")).unwrap();
        std::fs::write(etc.join("group"), GROUP).unwrap();
        assert_eq!(look_up(root.path(), "web").unwrap(), user(33, 34, &[50]));
    }

    #[test]
    fn a_home_is_the_users_unless_it_is_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        let home = |uid: u32, env: &[&str]| {
            let mut process = oci::Process::new();
            process.User.mut_or_insert_default().UID = uid;
            process.Env = env.iter().map(|variable| (*variable).to_owned()).collect();
            fill_home(root.path(), &mut process).unwrap();
            process.Env.pop().unwrap()
        };
        assert_eq!(home(33, &["A=1"]), "HOME=/var/www");
        assert_eq!(home(7, &[]), "HOME=/");
        assert_eq!(home(33, &["HOME=/x"]), "HOME=/x");
    }

    #[test]
    fn files_that_cannot_be_read_are_not_taken_for_empty() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        for bytes in [vec![b'#'; 2 << 20], b"web:x:33:34:\xff\n".to_vec()] {
            std::fs::write(etc.join("passwd"), bytes).unwrap();
            assert!(look_up(root.path(), "33").is_err());
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("web:nobody", PASSWD, GROUP).is_err());
        assert!(resolve("-1", PASSWD, GROUP).is_err());
    }
}
