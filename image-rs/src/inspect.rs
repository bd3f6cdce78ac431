//! What an image says of itself without a key: its layers, and how each of them is encrypted.

use ocicrypt::annotation::{self, Encryption, Wrapped};
use ocicrypt::cipher::CIPHER;
use ocicrypt::packet::{Format, Packet};
use ocicrypt::{jwe, media_type};

use crate::digest::Digest;
use crate::manifest::Platform;
use crate::place::{Place, PlaceError};

/// What is said of a layer whose media type does not say what its annotations do.
const LOST_TYPE: &str =
    "its annotations are those of an encrypted layer, but its media type has lost \"+encrypted\"";

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
    /// The cipher, for an encrypted layer whose annotations can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cipher: Option<&'static str>,
    /// The ways to open it.
    pub ways: Vec<Way>,
    /// Ways that we do not go, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
    /// Why the ways cannot be read, for an encrypted layer whose annotations are damaged, or that says of itself that it
    /// is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// One way to open an encrypted layer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Way {
    /// The key provider, or `jwe`.
    pub provider: String,
    /// How the layer key is wrapped: a packet's version and algorithm, or a JWE's algorithm for this recipient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The key's id: a packet's, or what the writer of a JWE called its recipient.
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
            None if layer.has_lost_type() => (Vec::new(), Some(LOST_TYPE.to_owned())),
            None => (Vec::new(), None),
            Some(Ok(encryption)) => (encryption.keys.iter().flat_map(ways).collect(), None),
            Some(Err(error)) => (Vec::new(), Some(error.to_string())),
        };
        let refused = if encrypted {
            annotation::refused(&layer.annotations)
        } else {
            Vec::new()
        };
        LayerInspection {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            encrypted,
            cipher: (encrypted && damage.is_none()).then_some(CIPHER),
            ways,
            refused,
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

fn ways(wrapped: &Wrapped) -> Vec<Way> {
    match wrapped {
        Wrapped::Provider { name, annotation } => {
            let packet = Packet::from_json(annotation).ok();
            let scheme = packet.as_ref().map(|packet| {
                let version = match packet.format() {
                    Format::V1 => "1",
                    Format::V2 => "2",
                };
                format!("packet {version}, {}", packet.wrap_type())
            });
            vec![Way {
                provider: name.clone(),
                scheme,
                key_id: packet.map(|packet| packet.kid().to_owned()),
            }]
        }
        Wrapped::Jwe(message) => {
            let way = |scheme, key_id| Way {
                provider: "jwe".to_owned(),
                scheme: Some(scheme),
                key_id,
            };
            match jwe::recipients(message) {
                Ok(recipients) => recipients
                    .into_iter()
                    .map(|recipient| way(recipient.algorithm, recipient.key_id))
                    .collect(),
                Err(error) => vec![way(error.to_string(), None)],
            }
        }
    }
}
