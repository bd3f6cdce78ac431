//! What an image says of itself without a key: its layers, and how each of them is encrypted.

use ocicrypt::annotation::{Encryption, PROVIDER_COCO, Wrapped};
use ocicrypt::media_type;
use ocicrypt::packet::Packet;

use crate::digest::Digest;
use crate::manifest::Platform;
use crate::place::{Place, PlaceError};

/// An image seen from outside.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Inspection {
    /// The digest of its manifest for the platform.
    pub manifest_digest: Digest,
    /// The digest of its configuration.
    pub config_digest: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<LayerInspection>,
}

/// One layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct LayerInspection {
    /// Its digest in the registry.
    pub digest: Digest,
    /// Its bytes in the registry.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// The ways to open it.
    pub ways: Vec<Way>,
    /// Why the ways cannot be read, for an encrypted layer whose annotations are damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// One way to open an encrypted layer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Way {
    /// The key provider, or `jwe`.
    pub provider: String,
    /// The key's id, where the provider is that of Confidential Containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
}

/// Looks at the image for `platform`.
///
/// # Errors
/// See [`PlaceError`].
pub async fn inspect(place: &Place, platform: &Platform) -> Result<Inspection, PlaceError> {
    let found = place.manifest(platform).await?;
    let layers = found.manifest.layers.iter().map(|layer| {
        let encrypted = media_type::is_encrypted(&layer.media_type);
        let (ways, damage) = match encrypted.then(|| Encryption::read(&layer.annotations)) {
            None => (Vec::new(), None),
            Some(Ok(encryption)) => (encryption.keys.iter().map(way).collect(), None),
            Some(Err(error)) => (Vec::new(), Some(error.to_string())),
        };
        LayerInspection {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            encrypted,
            ways,
            damage,
        }
    });
    let layers = layers.collect();
    Ok(Inspection {
        manifest_digest: found.digest,
        config_digest: found.manifest.config.digest,
        layers,
    })
}

fn way(wrapped: &Wrapped) -> Way {
    match wrapped {
        Wrapped::Provider { name, annotation } => {
            let packet = (name == PROVIDER_COCO)
                .then(|| Packet::from_json(annotation).ok())
                .flatten();
            Way {
                provider: name.clone(),
                key_id: packet.map(|packet| packet.kid().to_owned()),
            }
        }
        Wrapped::Jwe(_) => Way {
            provider: "jwe".to_owned(),
            key_id: None,
        },
    }
}
