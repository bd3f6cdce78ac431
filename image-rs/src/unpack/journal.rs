//! What unpacking a layer left for the merge: whiteouts, directories as the layer describes them, late hard links.

use std::collections::BTreeMap;

use super::path::RelativePath;

/// The journal of one layer.
#[derive(Debug, Default)]
pub struct Journal {
    /// Paths that hide what is below them in lower layers.
    pub(super) whiteouts: Vec<RelativePath>,
    /// Directories whose lower content is hidden.
    pub(super) opaques: Vec<RelativePath>,
    /// Directories that the layer describes; those which it only implies are not here.
    pub(super) directories: BTreeMap<RelativePath, Directory>,
    /// Hard links whose target is in a lower layer.
    pub(super) links: Vec<(RelativePath, RelativePath)>,
}

/// A directory's description. Mode and time are set when the whole tree stands, because work inside changes them.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}
