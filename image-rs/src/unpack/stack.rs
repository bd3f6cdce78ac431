//! Layers that stay where they were unpacked, and come together as the lower directories of an overlay.
//!
//! ```text
//! top:     directories as the highest layer that describes them says ─┐
//! layer 2 ────────────────────────────────────────────────────────────┼─► lower directories of a container's overlay
//! layer 1 ────────────────────────────────────────────────────────────┤
//! layer 0 ────────────────────────────────────────────────────────────┘
//! ```
//!
//! So images share layers, and none is copied or moved. An overlay shows what the merge of [`super::Tree`] makes, with
//! one difference that can be made good: a directory that a layer has and does not describe keeps what lower layers say
//! of it, so such directories stand once more in `top`, which is the image's own. What no overlay can say has to be
//! merged: where such a directory is a link in a lower layer, the layer means what the link leads to; a file may be
//! one with a file of a lower layer; and a whiteout where nothing is below would itself be seen. Tools that build
//! images hardly ever write such layers.

use std::collections::{BTreeMap, BTreeSet};

use rustix::fs::FileType;

use super::journal::{Directory, Journal};
use super::lower::Lower;
use super::meta::finish_directory;
use super::path::{RelativePath, components};
use super::root::{self, Root};
use super::{Options, UnpackError};

/// Layers of one overlay; the kernel has a cap of 500.
const LOWERS_MAX: usize = 128;
/// Looks into layers, each for one path: an image of which more would be needed is merged.
const LOOKS_MAX: usize = 100_000;

/// One layer of an image.
#[derive(Debug, Clone, Copy)]
pub struct StackLayer<'a> {
    /// Its directory.
    pub root: &'a Root,
    /// What unpacking left.
    pub journal: &'a Journal,
    /// What [`super::make_lower`] found.
    pub lower: &'a Lower,
}

/// What a layer has under a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nothing; the layers below are seen through it.
    Nothing,
    /// A directory; the layers below are seen through it unless it is opaque.
    Directory { opaque: bool },
    /// A symbolic link.
    Link,
    /// Something that hides whatever lower layers have.
    Hidden,
}

/// Fills the empty directory `top`, and gives the places of those of `layers` (lowest first, none twice) that are to be
/// lower directories below it; `None` when the image has to be merged.
///
/// # Errors
/// See [`UnpackError`].
pub fn stack(
    layers: &[StackLayer<'_>],
    top: &Root,
    options: &Options,
) -> Result<Option<Vec<usize>>, UnpackError> {
    if layers.iter().any(|layer| layer.lower.needs_merge) {
        return Ok(None);
    }
    let places = 0..layers.len();
    let places: Vec<usize> = places
        .filter(|place| !layers[*place].lower.is_empty)
        .collect();
    let layers: Vec<StackLayer<'_>> = places.iter().map(|place| layers[*place]).collect();
    let looks = |layer: &StackLayer<'_>| layer.lower.implied.len() + layer.lower.whiteouts.len();
    let looks: usize = layers.iter().map(looks).sum();
    if layers.len() > LOWERS_MAX || looks.saturating_mul(layers.len()) > LOOKS_MAX {
        return Ok(None);
    }
    let stack = Stack { layers: &layers };
    if !stack.hides_what_is_there()? {
        return Ok(None);
    }
    let Some(described) = stack.described_from_below()? else {
        return Ok(None);
    };
    for path in described.keys() {
        top.make(path.as_bytes(), path.as_bytes())?;
    }
    // Deepest first, as in a merge.
    for (path, directory) in described.iter().rev() {
        let entry = path.as_bytes();
        let fd = root::confined(top.fd(), entry)
            .map_err(|errno| UnpackError::system("open", entry, errno))?;
        finish_directory(&fd, directory, options, entry)?;
    }
    Ok(Some(places))
}

struct Stack<'a> {
    layers: &'a [StackLayer<'a>],
}

impl<'a> Stack<'a> {
    /// The directories of `top`; `None` when the image has to be merged.
    fn described_from_below(
        &self,
    ) -> Result<Option<BTreeMap<RelativePath, &'a Directory>>, UnpackError> {
        let mut paths = BTreeSet::new();
        for (place, layer) in self.layers.iter().enumerate() {
            for path in &layer.lower.implied {
                let Some(directory) = self.below(place, path)? else {
                    return Ok(None);
                };
                if directory.is_some() && self.is_seen(place, path)? {
                    paths.insert(path.clone());
                }
            }
        }
        // A directory on the way to one of them is in front of those below it, too; the root is in any case.
        let mut all = BTreeMap::new();
        paths.insert(RelativePath::default());
        for path in paths {
            let mut next = Some(path);
            while let Some(path) = next {
                let parent = path.split().map(|(parent, _)| RelativePath::below(parent));
                if let Some(directory) = self.description(&path)? {
                    all.insert(path, directory);
                }
                next = parent.filter(|parent| !all.contains_key(parent));
            }
        }
        Ok(Some(all))
    }

    /// What the layers below say of a directory that a layer only implies: outer `None` when the image has to be merged.
    fn below(
        &self,
        place: usize,
        path: &RelativePath,
    ) -> Result<Option<Option<&'a Directory>>, UnpackError> {
        if self.layers[place].lower.cuts(path) {
            return Ok(Some(None));
        }
        for lower in self.layers[..place].iter().rev() {
            match see(lower, path)? {
                Seen::Nothing => {}
                Seen::Link => return Ok(None),
                Seen::Hidden => break,
                Seen::Directory { opaque } => {
                    let described = lower.journal.directories.get(path);
                    if described.is_some() || opaque {
                        return Ok(Some(described));
                    }
                }
            }
        }
        Ok(Some(None))
    }

    /// Whether each whiteout is in a directory that comes together with one below it: in others it would be seen.
    fn hides_what_is_there(&self) -> Result<bool, UnpackError> {
        for (place, layer) in self.layers.iter().enumerate() {
            for path in layer.lower.hiding() {
                let mut below = self.layers[..place].iter().rev();
                let seen = below.find_map(|lower| match see(lower, &path) {
                    Ok(Seen::Nothing) => None,
                    seen => Some(seen),
                });
                if !matches!(seen.transpose()?, Some(Seen::Directory { .. })) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Whether no layer above has anything to say of the path.
    fn is_seen(&self, place: usize, path: &RelativePath) -> Result<bool, UnpackError> {
        for layer in &self.layers[place + 1..] {
            if see(layer, path)? != Seen::Nothing {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The highest description of a directory that is seen from above.
    fn description(&self, path: &RelativePath) -> Result<Option<&'a Directory>, UnpackError> {
        for layer in self.layers.iter().rev() {
            match see(layer, path)? {
                Seen::Nothing => {}
                Seen::Link | Seen::Hidden => break,
                Seen::Directory { opaque } => {
                    let described = layer.journal.directories.get(path);
                    if described.is_some() || opaque {
                        return Ok(described);
                    }
                }
            }
        }
        Ok(None)
    }
}

fn see(layer: &StackLayer<'_>, path: &RelativePath) -> Result<Seen, UnpackError> {
    let entry = path.as_bytes();
    let last = path.depth();
    let mut directory = layer.root.reopen()?;
    for (depth, name) in components(entry).enumerate() {
        let is_last = depth + 1 == last;
        match root::kind_at(&directory, name, entry)? {
            None if layer.lower.cuts(path) => return Ok(Seen::Hidden),
            None => return Ok(Seen::Nothing),
            Some(FileType::Directory) => directory = root::child(&directory, name, entry)?,
            Some(FileType::Symlink) if is_last => return Ok(Seen::Link),
            Some(_) => return Ok(Seen::Hidden),
        }
    }
    Ok(Seen::Directory {
        opaque: layer.lower.cuts(path),
    })
}
