//! Whether a layer that failed is fetched once more, from a place that is not to blame.
//!
//! A mirror may send what it wants, so nothing that is wrong with its bytes says anything of the image: the layer is
//! thrown away and begins anew at the next place, until the registry itself has given every byte.

use crate::layer::LayerError;
use crate::place::BlobReader;

/// Whether the same blob now comes anew from its first byte; what was unpacked of it is to be thrown away.
pub(super) fn begins_anew(blob: &mut BlobReader, error: &LayerError) -> bool {
    let BlobReader::Registry(blob) = blob else {
        return false;
    };
    let anew = match error {
        LayerError::Digest { found, .. } => blob.refuse(found.clone()).is_ok(),
        // Every byte was what the manifest names.
        LayerError::DiffId { .. }
        | LayerError::WrappedDigest { .. }
        | LayerError::BadWrappedDigest(_) => false,
        // No place is left, or nobody waits for it.
        LayerError::Fetch(_)
        | LayerError::Source(_)
        | LayerError::Foreign { .. }
        | LayerError::GivenUp => false,
        LayerError::Cipher(_) | LayerError::Decompress(_) | LayerError::Unpack(_) => {
            blob.doubt(error)
        }
    };
    if anew {
        tracing::warn!(%error, "a layer is fetched anew from the next place");
    }
    anew
}
