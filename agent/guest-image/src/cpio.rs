//! An initramfs: the `newc` format of cpio that Linux unpacks at boot (`Documentation/driver-api/
//! early-userspace/buffer-format.rst` in the kernel's tree), written so that the same files give
//! the same bytes. Entries are sorted by path, belong to root, carry no time, and are numbered
//! in order.

use std::collections::BTreeMap;

/// Why an archive cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// The format has 32 bits for a size.
    #[error("`{0}` is larger than 4 GiB, which the format cannot say")]
    TooLarge(String),
    /// Paths are relative, without `.`, `..` and empty parts, and at most 4095 bytes.
    #[error("`{0}` is no path for an initramfs")]
    Path(String),
    /// The directory of an entry is no entry.
    #[error("`{0}` has no directory to be in")]
    Orphan(String),
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A directory, with its permission bits.
    Directory(u32),
    /// A file, with its permission bits and content.
    File(u32, Vec<u8>),
    /// A character device: permission bits, major, minor.
    Character(u32, u32, u32),
    /// A symbolic link and where it points.
    Symlink(String),
}

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive(BTreeMap<String, Node>);

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFLNK: u32 = 0o120_000;
/// The kernel reads the archive as one file of a block device's sectors.
const BLOCK: usize = 512;
/// `PATH_MAX` less the closing zero.
const PATH_MAX: usize = 4095;

impl Archive {
    /// Puts a node at a path, in place of what was there.
    ///
    /// # Errors
    /// [`CpioError::Path`] when the path is not relative and plain.
    pub fn add(&mut self, path: &str, node: Node) -> Result<(), CpioError> {
        let plain = !path.split('/').any(|part| matches!(part, "" | "." | ".."));
        if !plain || path.len() > PATH_MAX || path.contains('\0') {
            return Err(CpioError::Path(path.to_owned()));
        }
        self.0.insert(path.to_owned(), node);
        Ok(())
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// [`CpioError`] when the format cannot hold a file, or an entry's directory is missing: the
    /// kernel would drop such an entry without a word.
    pub fn bytes(&self) -> Result<Vec<u8>, CpioError> {
        let mut out = Vec::new();
        let mut number = 0;
        for (path, node) in &self.0 {
            if let Some((parent, _)) = path.rsplit_once('/')
                && !matches!(self.0.get(parent), Some(Node::Directory(_)))
            {
                return Err(CpioError::Orphan(path.clone()));
            }
            number += 1;
            write_entry(&mut out, number, path, node)?;
        }
        write_entry(&mut out, 0, "TRAILER!!!", &Node::File(0, Vec::new()))?;
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        Ok(out)
    }
}

fn write_entry(out: &mut Vec<u8>, number: u32, path: &str, node: &Node) -> Result<(), CpioError> {
    let (mode, links, device, content): (u32, u32, (u32, u32), &[u8]) = match node {
        Node::Directory(mode) => (S_IFDIR | mode, 2, (0, 0), &[]),
        Node::File(0, empty) => (0, 1, (0, 0), empty),
        Node::File(mode, content) => (S_IFREG | mode, 1, (0, 0), content),
        Node::Character(mode, major, minor) => (S_IFCHR | mode, 1, (*major, *minor), &[]),
        Node::Symlink(target) => (S_IFLNK | 0o777, 1, (0, 0), target.as_bytes()),
    };
    let size = u32::try_from(content.len()).map_err(|_| CpioError::TooLarge(path.to_owned()))?;
    let name_size = u32::try_from(path.len() + 1).map_err(|_| CpioError::Path(path.to_owned()))?;
    // In the order of the format: inode, mode, uid, gid, links, mtime, size, device of the file
    // system, device node, name size, checksum (unused by this variant).
    let fields = [
        number, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(order: &[usize]) -> Archive {
        let nodes = [
            ("dev", Node::Directory(0o755)),
            ("dev/console", Node::Character(0o600, 5, 1)),
            ("init", Node::File(0o755, b"program".to_vec())),
            ("sbin", Node::Directory(0o755)),
            ("sbin/init", Node::Symlink("/init".to_owned())),
        ];
        let mut archive = Archive::default();
        for index in order {
            let (path, node) = nodes[*index].clone();
            archive.add(path, node).unwrap();
        }
        archive
    }

    #[test]
    fn the_order_of_adding_changes_nothing() {
        let sorted = sample(&[0, 1, 2, 3, 4]).bytes().unwrap();
        assert_eq!(sorted, sample(&[4, 2, 1, 3, 0]).bytes().unwrap());
        assert_eq!(sorted.len() % BLOCK, 0);
    }

    #[test]
    fn an_entry_is_laid_out_as_the_format_says() {
        let mut archive = Archive::default();
        archive
            .add("a", Node::File(0o644, b"hello".to_vec()))
            .unwrap();
        let bytes = archive.bytes().unwrap();
        let header = "070701000000010000\
                      81a4000000000000000000000001000000000000000500000000000000000000000000000000\
                      0000000200000000";
        assert_eq!(std::str::from_utf8(&bytes[..110]).unwrap(), header);
        // The name ends at 112, a multiple of four; the content is padded to the next entry.
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(&bytes[120 + 110..120 + 120], b"TRAILER!!!");
    }

    #[test]
    fn paths_that_would_leave_the_root_are_refused() {
        let mut archive = Archive::default();
        for path in ["/init", "a//b", "a/../b", "", ".", "a/"] {
            let refused = archive.add(path, Node::Directory(0o755));
            assert_eq!(refused, Err(CpioError::Path(path.to_owned())), "{path}");
        }
    }

    #[test]
    fn an_entry_without_its_directory_is_refused() {
        let mut archive = Archive::default();
        archive
            .add("modules/load", Node::File(0o644, Vec::new()))
            .unwrap();
        assert_eq!(
            archive.bytes(),
            Err(CpioError::Orphan("modules/load".to_owned()))
        );
    }
}
