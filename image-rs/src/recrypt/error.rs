//! Why an image was not encrypted or decrypted.

use ocicrypt::NoEntropy;
use ocicrypt::annotation::AnnotationError;
use ocicrypt::cipher::CipherError;
use ocicrypt::jwe::JweError;
use ocicrypt::keyprovider::ProviderError;
use ocicrypt::packet::PacketError;

use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::place::PlaceError;

/// Why an image was not encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum RecryptError {
    /// Reading or writing it.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A layer's media type.
    #[error("layer {digest} has media type {media_type:?}, which is not a tar layer")]
    LayerType {
        /// Which layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// Encrypted twice.
    #[error("layer {0} is encrypted already; decrypt the image first")]
    AlreadyEncrypted(Digest),
    /// Encrypted, though its media type does not say so.
    #[error(
        "layer {digest} has the annotations of an encrypted layer, but media type {media_type:?}: the tool that wrote \
         the image has lost its \"+encrypted\"; copy the image again with one that keeps it"
    )]
    LostType {
        /// Which layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// Nothing to do.
    #[error("no layer of the image is encrypted")]
    NotEncrypted,
    /// Nobody could open it.
    #[error("no key to encrypt for")]
    NoRecipient,
    /// The blob of a layer.
    #[error("layer {expected} is damaged: found {found}")]
    Digest {
        /// The manifest's digest.
        expected: Digest,
        /// That of the bytes.
        found: Digest,
    },
    /// The digest that was wrapped with the key is another layer's.
    #[error("the key of layer {layer} was wrapped for layer {wrapped:?}")]
    WrappedDigest {
        /// Which layer.
        layer: Digest,
        /// The digest in its private options.
        wrapped: String,
    },
    /// What came out is not what the configuration names.
    #[error(
        "layer {layer} is not what the image's configuration names: expected diff_id {expected}, found {found}"
    )]
    DiffId {
        /// Which layer.
        layer: Digest,
        /// The configuration's.
        expected: String,
        /// That of the layer.
        found: Digest,
    },
    /// The cipher.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// Wrapping for a broker's key.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// Wrapping for a public key.
    #[error(transparent)]
    Jwe(#[from] JweError),
    /// Wrapping by a key provider.
    #[error("key provider {name:?} does not wrap the layer key")]
    Provider {
        /// Which provider.
        name: String,
        /// Why not.
        source: ProviderError,
    },
    /// What was wrapped is nothing that could be unwrapped.
    #[error("the annotations of an encrypted layer, as they would be written: {0}")]
    Annotations(#[from] AnnotationError),
    /// Unwrapping.
    #[error(transparent)]
    Keys(#[from] ocicrypt::Error),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] NoEntropy),
    /// The manifest cannot be written anew.
    #[error("the manifest is not a JSON object with layers")]
    Manifest,
}

impl From<ManifestError> for RecryptError {
    fn from(error: ManifestError) -> Self {
        Self::Place(error.into())
    }
}
