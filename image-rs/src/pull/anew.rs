//! Whether a layer that failed is fetched once more, from a place that is not to blame.
//!
//! A mirror may send what it wants, so nothing that is wrong with its bytes says anything of the image: the layer is
//! thrown away and begins anew at the next place, until the registry itself has given every byte.

use crate::layer::LayerError;
use crate::place::BlobReader;
use crate::registry::RegistryError;
use crate::unpack::UnpackError;

/// Begins the same blob anew from its first byte, for what was unpacked of it to be thrown away; else the error that
/// stands, with every place that gave wrong bytes.
pub(super) fn begin_anew(blob: &mut BlobReader, error: LayerError) -> Result<(), LayerError> {
    let BlobReader::Registry(blob) = blob else {
        return Err(error);
    };
    let text = error.to_string();
    match &error {
        LayerError::Digest { found, .. } => match blob.refuse(found.clone()) {
            Ok(()) => {}
            Err(all @ RegistryError::Nowhere { .. }) => return Err(all.into()),
            Err(_) => return Err(error),
        },
        // Every byte was what the manifest names.
        LayerError::DiffId { .. }
        | LayerError::WrappedDigest { .. }
        | LayerError::BadWrappedDigest(_)
        | LayerError::Cipher(_)
        // No place is left, or nobody waits for it.
        | LayerError::Fetch(_)
        | LayerError::Source(_)
        | LayerError::Foreign { .. }
        | LayerError::GivenUp
        // Not the bytes' fault, and it would end in the same way.
        | LayerError::Unpack(UnpackError::NoSpace(_)) => return Err(error),
        LayerError::Decompress(_) | LayerError::Unpack(_) => {
            if !blob.doubt(&error) {
                return Err(error);
            }
        }
    }
    tracing::warn!(error = text, "a layer is fetched anew from the next place");
    Ok(())
}
