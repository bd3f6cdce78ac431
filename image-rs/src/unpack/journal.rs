//! What unpacking a layer left for the merge: whiteouts, directories as the layer describes them, late hard links.

use std::collections::BTreeMap;

use super::path::{RelativePath, take_below};

/// The journal of one layer.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// Paths that hide what is below them in lower layers.
    pub(super) whiteouts: Vec<RelativePath>,
    /// Directories whose lower content is hidden.
    pub(super) opaques: Vec<RelativePath>,
    /// Directories that the layer describes; those which it only implies are not here.
    pub(super) directories: BTreeMap<RelativePath, Directory>,
    /// Hard links whose target is in a lower layer.
    pub(super) links: BTreeMap<RelativePath, Link>,
    /// Links so far, which numbers them: one may lead to another.
    pub(super) links_seen: u64,
}

/// A hard link that is still to be made.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// Its place among all.
    pub(super) order: u64,
    /// What it links to.
    pub(super) target: RelativePath,
}

/// A directory's description. It is set when the whole tree stands: work inside changes the time, a closed mode or an
/// inherited access list would change the work.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Journal {
    /// Something else stands under `path` now.
    pub(super) fn forget(&mut self, path: &RelativePath) {
        take_below(&mut self.directories, path);
        take_below(&mut self.links, path);
    }

    pub(super) fn add_link(&mut self, link: RelativePath, target: RelativePath) {
        let order = self.links_seen;
        self.links_seen += 1;
        self.links.insert(link, Link { order, target });
    }

    /// The late links in the archive's order.
    pub(super) fn take_links(&mut self) -> Vec<(RelativePath, RelativePath)> {
        let mut links: Vec<_> = std::mem::take(&mut self.links).into_iter().collect();
        links.sort_unstable_by_key(|(_, link)| link.order);
        links
            .into_iter()
            .map(|(path, link)| (path, link.target))
            .collect()
    }
}

/// What a name costs in memory besides its bytes.
const NAME_OVERHEAD: u64 = 128;

/// Bytes that a name and what is kept with it take.
pub(super) fn cost(path: &RelativePath, xattrs: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    let kept = xattrs
        .iter()
        .map(|(name, value)| name.len() + value.len() + 2 * size_of::<Vec<u8>>());
    NAME_OVERHEAD + path.as_bytes().len() as u64 + kept.sum::<usize>() as u64
}
