//! Room for an image: refused before the first byte where it cannot fit, and named where it runs out.

use std::path::{Path, PathBuf};

use super::kept::Kept;
use super::stage;
use super::{PullConfig, PullError};
use crate::manifest::Manifest;
use crate::place::Place;

/// Bytes that an image has compressed, and that were free before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) compressed: u64,
    pub(super) available: u64,
}

impl PullConfig {
    /// Refuses before the first byte what cannot fit: a layer is at least as large unpacked as compressed. Layers that
    /// are kept need no room, and those that nobody uses give theirs. Blocking.
    pub(super) fn check_space(
        &self,
        image: &Place,
        manifest: &Manifest,
        target: &Path,
        kept: Option<&Kept>,
    ) -> Result<Space, PullError> {
        let compressed = manifest
            .layers
            .iter()
            .fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        let cap = self.limits.compressed_bytes;
        if compressed > cap {
            return Err(PullError::TooLarge {
                image: image.to_string(),
                found: compressed,
                cap,
            });
        }
        let place = stage::parent_of(target);
        let (mut needed, mut available) = (compressed, stage::free_bytes(&place)?);
        if let Some(kept) = kept {
            let new = manifest.layers.iter();
            let new = new.filter(|layer| !kept.has(&layer.digest));
            needed = new.fold(0, |sum, layer| sum.saturating_add(layer.size));
            let wanted: Vec<_> = manifest.layers.iter().map(|l| l.digest.clone()).collect();
            while needed > available && kept.evict(&wanted) {
                available = stage::free_bytes(&place)?;
            }
        }
        let space = Space {
            compressed,
            available,
        };
        if needed > available {
            return Err(self.no_space(image, space, (needed, 0), place));
        }
        Ok(space)
    }

    pub(super) fn no_space(
        &self,
        image: &Place,
        space: Space,
        (needed, files): (u64, u64),
        place: PathBuf,
    ) -> PullError {
        PullError::NoSpace {
            image: image.to_string(),
            needed,
            compressed: space.compressed,
            files,
            available: space.available,
            place,
            setting: self.space_setting.clone(),
        }
    }
}
