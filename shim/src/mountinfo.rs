//! The kernel's list of what is mounted (proc(5), `/proc/pid/mountinfo`).

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

/// The list of this process.
const LIST: &str = "/proc/self/mountinfo";
/// Cap on a list, in bytes: a node with thousands of pods has a few MiB.
const LIST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// What of its file system is mounted.
    pub(crate) root: String,
    /// Where.
    pub(crate) point: PathBuf,
    /// The file system's type.
    pub(crate) kind: String,
    /// The file system's own options.
    pub(crate) options: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut file_system = file_system.split(' ');
        Some(Self {
            root: unescaped(mount.next()?),
            point: PathBuf::from(unescaped(mount.next()?)),
            kind: file_system.next()?.to_owned(),
            options: file_system.nth(1)?.to_owned(),
        })
    }
}

/// The list as it is now.
///
/// # Errors
/// It cannot be read, or is larger than any host's.
pub(crate) fn read() -> io::Result<String> {
    let mut list = String::new();
    File::open(LIST)?
        .take(LIST_BYTES_MAX + 1)
        .read_to_string(&mut list)?;
    if list.len() as u64 > LIST_BYTES_MAX {
        return Err(io::Error::other(format!("{LIST} is too long")));
    }
    Ok(list)
}

/// The mounts of a list, in its order: of those on one point the last is seen.
pub(crate) fn mounts(list: &str) -> impl DoubleEndedIterator<Item = Mount> {
    list.lines().filter_map(Mount::parse)
}

/// The kernel writes what would end a field as a backslash and three octal digits.
fn unescaped(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_line_has_its_fields_wherever_optional_ones_end() {
        let list = "36 35 98:0 /a\\040b /mnt/c\\011d rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n\
                    37 35 0:5 / /proc rw - proc proc rw\n\
                    no mount\n";
        let all: Vec<_> = mounts(list).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(
            all[0],
            Mount {
                root: "/a b".into(),
                point: "/mnt/c\td".into(),
                kind: "ext3".into(),
                options: "rw,errors=continue".into(),
            }
        );
        assert_eq!(all[1].kind, "proc");
    }

    #[test]
    fn this_process_has_a_root() {
        let list = read().unwrap();
        assert!(mounts(&list).any(|mount| mount.point == Path::new("/")));
    }
}
