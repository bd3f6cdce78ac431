//! The directory of a snapshot's own files: made with the rights of the one below, counted, removed.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::record::Usage;

/// The files themselves.
const FILES: &str = "fs";
/// What overlayfs works in.
const WORK: &str = "work";
/// What stat(2) counts in.
const BLOCK_BYTES: u64 = 512;

/// A snapshot's directory.
#[derive(Debug, Clone)]
pub(crate) struct Tree(PathBuf);

impl Tree {
    /// That of snapshot `id` below `directory`.
    pub(crate) fn new(directory: &Path, id: u64) -> Self {
        Self(directory.join(id.to_string()))
    }

    /// Where its files are.
    pub(crate) fn files(&self) -> PathBuf {
        self.0.join(FILES)
    }

    /// Where overlayfs works.
    pub(crate) fn work(&self) -> PathBuf {
        self.0.join(WORK)
    }

    /// Makes it, in the place of what a start that died has left. The root of what lies above another has its owner
    /// and mode, because overlayfs shows those of the uppermost.
    pub(crate) fn make(&self, below: Option<&Self>) -> io::Result<()> {
        self.remove()?;
        let mut private = fs::DirBuilder::new();
        private.mode(0o700);
        private.create(&self.0)?;
        private.create(self.work())?;
        fs::DirBuilder::new().mode(0o755).create(self.files())?;
        let Some(below) = below else { return Ok(()) };
        let model = fs::symlink_metadata(below.files())?;
        chown(self.files(), Some(model.uid()), Some(model.gid()))?;
        fs::set_permissions(self.files(), Permissions::from_mode(model.mode() & 0o7777))
    }

    /// Removes it with all that is in it; it may be gone.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// What its files take, each once however many names it has. What vanishes meanwhile is not counted.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        let mut seen = BTreeSet::new();
        let mut open = vec![self.files()];
        while let Some(path) = open.pop() {
            let meta = match fs::symlink_metadata(&path) {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if meta.nlink() > 1 && !meta.is_dir() && !seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            usage.bytes += meta.blocks() * BLOCK_BYTES;
            usage.inodes += 1;
            if meta.is_dir() {
                open.extend(entries(&path)?);
            }
        }
        Ok(usage)
    }
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_two_names_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::new(directory.path(), 1);
        tree.make(None).unwrap();
        let empty = tree.usage().unwrap();
        fs::write(tree.files().join("a"), [1; 10_000]).unwrap();
        let one = tree.usage().unwrap();
        assert_eq!(one.inodes, empty.inodes + 1);
        assert!(one.bytes >= empty.bytes + 10_000);
        fs::hard_link(tree.files().join("a"), tree.files().join("b")).unwrap();
        assert_eq!(tree.usage().unwrap(), one);
        tree.remove().unwrap();
        tree.remove().unwrap();
        assert_eq!(tree.usage().unwrap(), Usage::default());
    }

    #[test]
    fn a_root_has_the_mode_of_the_one_below() {
        let directory = tempfile::tempdir().unwrap();
        let [below, above] = [1, 2].map(|id| Tree::new(directory.path(), id));
        below.make(None).unwrap();
        fs::set_permissions(below.files(), Permissions::from_mode(0o1711)).unwrap();
        above.make(Some(&below)).unwrap();
        let mode = fs::metadata(above.files()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o1711);
    }
}
