//! Manifests, indexes and configurations: read from exact bytes, with caps, from OCI and Docker schema 2 alike.

mod platform;

pub use platform::Platform;

use std::collections::HashMap;

use oci_spec::image::ImageConfiguration;
use ocicrypt::annotation::PREFIX;
use ocicrypt::media_type;
use serde::Deserialize;

use crate::digest::{BadDigest, Digest};
use crate::shown::shown_list;

/// Cap on a manifest or an index, in bytes; the distribution specification's own advice.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Cap on a configuration, in bytes.
pub const CONFIG_BYTES_MAX: usize = 1024 * 1024;
/// Cap on the manifests that an index lists.
const INDEX_ENTRIES_MAX: usize = 512;

/// An OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// An OCI configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A Docker configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What configurations are called in images; some old writers of Docker's gave theirs no name.
const CONFIGS: [&str; 3] = [OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream"];
/// What the media types of Docker's first format begin with.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What we ask a registry for.
pub const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

/// Why a manifest or a configuration is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of its kind.
    #[error("the {what} is not valid JSON of its kind")]
    Json {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Where it is not.
        #[source]
        source: serde_json::Error,
    },
    /// Docker's first format, in which the image is not named by its content.
    #[error(
        "the image is in Docker's schema 1, which is not supported; push it again with a current tool, which writes schema 2"
    )]
    Schema1,
    /// A format of the future.
    #[error("the manifest has schema version {0}, not 2")]
    Version(u64),
    /// A cap.
    #[error("the manifest has {found} bytes, more than the limit \"manifest_bytes\" of {cap}")]
    TooLarge {
        /// How many.
        found: usize,
        /// The cap.
        cap: usize,
    },
    /// A document of another kind.
    #[error("media type {0:?} is not supported; an OCI or Docker schema 2 image is needed")]
    MediaType(String),
    /// Both layers and manifests, which readers understand differently.
    #[error("the manifest is both an image and an index")]
    Ambiguous,
    /// A digest in it.
    #[error(transparent)]
    Digest(#[from] BadDigest),
    /// A cap.
    #[error("the {what} has {found} entries, more than {cap}")]
    TooMany {
        /// Layers or manifests.
        what: &'static str,
        /// How many.
        found: usize,
        /// The cap.
        cap: usize,
    },
    /// No image for us.
    #[error("the image has none for {wanted}; it has: {found}")]
    Platform {
        /// Which platform was asked for.
        wanted: String,
        /// What the index lists.
        found: String,
    },
    /// The configuration and the manifest disagree.
    #[error("the manifest has {layers} layers, but the configuration {diff_ids} diff_ids")]
    Layers {
        /// Layers of the manifest.
        layers: usize,
        /// `rootfs.diff_ids` of the configuration.
        diff_ids: usize,
    },
    /// The configuration is for another machine.
    #[error("the image is for {found}, but this machine is {wanted}")]
    WrongPlatform {
        /// This machine.
        wanted: String,
        /// The configuration's.
        found: String,
    },
}

/// One entry of a manifest or an index.
#[derive(Debug, Clone)]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its annotations.
    pub annotations: HashMap<String, String>,
    /// Where else it is said to be, for a layer that may not be distributed.
    pub urls: Vec<String>,
}

impl Descriptor {
    /// Whether it has the annotations of an encrypted layer without its media type.
    #[must_use]
    pub fn has_lost_type(&self) -> bool {
        let mut names = self.annotations.keys();
        !media_type::is_encrypted(&self.media_type) && names.any(|name| name.starts_with(PREFIX))
    }
}

/// An image's manifest.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The document's own media type.
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// What a name of an image leads to.
#[derive(Debug, Clone)]
pub enum Document {
    /// One image.
    Image(Manifest),
    /// Images for several platforms.
    Index(Vec<IndexEntry>),
}

/// One image of an index.
#[derive(Debug, Clone)]
pub struct IndexEntry {
    /// Where it is.
    pub descriptor: Descriptor,
    /// Whom it is for; an index in an OCI layout may leave it out.
    pub platform: Option<Platform>,
}

impl Document {
    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn read(
        bytes: &[u8],
        content_type: Option<&str>,
        layers_max: usize,
    ) -> Result<Self, ManifestError> {
        let wire: Wire = json(bytes, "manifest")?;
        if wire.layers.is_some() && wire.manifests.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        let named = wire
            .media_type
            .clone()
            .or_else(|| content_type.map(bare_media_type));
        let schema_1 = named
            .as_deref()
            .is_some_and(|name| name.starts_with(SCHEMA_1));
        match wire.schema_version {
            Some(1) => return Err(ManifestError::Schema1),
            _ if schema_1 => return Err(ManifestError::Schema1),
            None | Some(2) => {}
            Some(other) => return Err(ManifestError::Version(other)),
        }
        match (wire.manifests, wire.config, wire.layers) {
            (Some(list), _, _) => {
                check_type(named.as_deref(), [OCI_INDEX, DOCKER_LIST])?;
                capped("index", list.len(), INDEX_ENTRIES_MAX)?;
                Ok(Self::Index(
                    list.into_iter()
                        .map(IndexEntry::try_from)
                        .collect::<Result<_, _>>()?,
                ))
            }
            (None, Some(config), Some(layers)) => {
                let media_type = check_type(named.as_deref(), [OCI_MANIFEST, DOCKER_MANIFEST])?;
                capped("manifest", layers.len(), layers_max)?;
                Ok(Self::Image(Manifest {
                    media_type,
                    config: config.try_into()?,
                    layers: layers
                        .into_iter()
                        .map(Descriptor::try_from)
                        .collect::<Result<_, _>>()?,
                }))
            }
            _ => Err(ManifestError::MediaType(
                named.unwrap_or_else(|| "none".to_owned()),
            )),
        }
    }
}

/// Holds a document to its limit, where that is lower than [`MANIFEST_BYTES_MAX`].
///
/// # Errors
/// [`ManifestError::TooLarge`].
pub fn check_size(bytes: &[u8], cap: usize) -> Result<(), ManifestError> {
    let found = bytes.len();
    match found <= cap {
        true => Ok(()),
        false => Err(ManifestError::TooLarge { found, cap }),
    }
}

/// Chooses the image for `platform`.
///
/// # Errors
/// [`ManifestError::Platform`] tells what there is.
pub fn select<'a>(
    entries: &'a [IndexEntry],
    platform: &Platform,
) -> Result<&'a IndexEntry, ManifestError> {
    let of = |wanted: &Platform| {
        entries
            .iter()
            .find(|entry| entry.platform.as_ref() == Some(wanted))
    };
    let chosen = platform.acceptable().iter().find_map(of);
    // A layout with one image often does not say for whom; its configuration will.
    let alone = match entries {
        [entry] if entry.platform.is_none() => Some(entry),
        _ => None,
    };
    chosen.or(alone).ok_or_else(|| {
        let names = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .map(Platform::to_string);
        let names: Vec<_> = names.collect();
        ManifestError::Platform {
            wanted: platform.to_string(),
            found: shown_list(names.iter().map(String::as_str)),
        }
    })
}

/// Reads a configuration, and checks that it fits its manifest and this machine.
///
/// # Errors
/// See [`ManifestError`].
pub fn read_config(
    bytes: &[u8],
    manifest: &Manifest,
    platform: &Platform,
) -> Result<(ImageConfiguration, Vec<Digest>), ManifestError> {
    let media_type = manifest.config.media_type.as_str();
    if !CONFIGS.contains(&media_type) {
        return Err(ManifestError::MediaType(media_type.to_owned()));
    }
    let config: ImageConfiguration = json(bytes, "configuration")?;
    let found = Platform::new(
        &config.os().to_string(),
        &config.architecture().to_string(),
        None,
    );
    if !found.is_machine_of(platform) {
        return Err(ManifestError::WrongPlatform {
            wanted: platform.to_string(),
            found: found.to_string(),
        });
    }
    let diff_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    if diff_ids.len() != manifest.layers.len() {
        let (layers, diff_ids) = (manifest.layers.len(), diff_ids.len());
        return Err(ManifestError::Layers { layers, diff_ids });
    }
    Ok((config, diff_ids))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
    #[serde(default)]
    urls: Option<Vec<String>>,
    #[serde(default)]
    platform: Option<WirePlatform>,
}

#[derive(Deserialize)]
struct WirePlatform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl TryFrom<WireDescriptor> for Descriptor {
    type Error = ManifestError;

    fn try_from(wire: WireDescriptor) -> Result<Self, ManifestError> {
        Ok(Self {
            media_type: wire.media_type,
            digest: wire.digest.parse()?,
            size: wire.size,
            annotations: wire.annotations.unwrap_or_default(),
            urls: wire.urls.unwrap_or_default(),
        })
    }
}

impl TryFrom<WireDescriptor> for IndexEntry {
    type Error = ManifestError;

    fn try_from(mut wire: WireDescriptor) -> Result<Self, ManifestError> {
        let platform = wire.platform.take();
        let platform = platform
            .map(|wire| Platform::new(&wire.os, &wire.architecture, wire.variant.as_deref()));
        Ok(Self {
            descriptor: wire.try_into()?,
            platform,
        })
    }
}

fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what, source })
}

fn bare_media_type(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn check_type(named: Option<&str>, known: [&str; 2]) -> Result<String, ManifestError> {
    match named {
        Some(name) if known.contains(&name) => Ok(name.to_owned()),
        // The OCI specification lets a manifest leave its own media type out.
        None => Ok(known[0].to_owned()),
        Some(other) => Err(ManifestError::MediaType(other.to_owned())),
    }
}

fn capped(what: &'static str, found: usize, cap: usize) -> Result<(), ManifestError> {
    if found <= cap {
        Ok(())
    } else {
        Err(ManifestError::TooMany { what, found, cap })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(extra: &str) -> String {
        format!(
            r#"{{"mediaType":"x","digest":"{}","size":1{extra}}}"#,
            Digest::of(b"")
        )
    }

    #[test]
    fn an_index_gives_the_image_of_our_platform() {
        let entry = |arch: &str| {
            descriptor(&format!(
                r#","platform":{{"os":"linux","architecture":"{arch}"}}"#
            ))
        };
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#,
            entry("s390x"),
            entry("amd64")
        );
        let Document::Index(entries) = Document::read(text.as_bytes(), None, 9).unwrap() else {
            panic!("an index")
        };
        let platform = |architecture: &str| Platform::new("linux", architecture, None);
        assert_eq!(
            select(&entries, &platform("amd64")).unwrap().platform,
            Some(platform("amd64"))
        );
        let error = select(&entries, &platform("arm64"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("linux/s390x, linux/amd64"), "{error}");
    }

    #[test]
    fn the_words_of_an_index_steer_no_terminal() {
        let platform = r#","platform":{"os":"linux","architecture":"\u001b[2Jx\u202e"}"#;
        let text = format!(r#"{{"manifests":[{}]}}"#, descriptor(platform));
        let Document::Index(entries) = Document::read(text.as_bytes(), None, 9).unwrap() else {
            panic!("an index")
        };
        let error = select(&entries, &Platform::new("linux", "amd64", None));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("linux/\\u{1b}[2Jx\\u{202e}"), "{error:?}");
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let one = descriptor("");
        let both = format!(r#"{{"config":{one},"layers":[],"manifests":[]}}"#);
        assert!(matches!(
            Document::read(both.as_bytes(), None, 9),
            Err(ManifestError::Ambiguous)
        ));
        let many = format!(r#"{{"config":{one},"layers":[{one},{one}]}}"#);
        assert!(matches!(
            Document::read(many.as_bytes(), None, 1),
            Err(ManifestError::TooMany { found: 2, .. })
        ));
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        for (text, media_type) in [("{}", Some(signed)), (r#"{"schemaVersion":1}"#, None)] {
            let schema1 = Document::read(text.as_bytes(), media_type, 9);
            assert!(
                matches!(schema1, Err(ManifestError::Schema1)),
                "{schema1:?}"
            );
        }
        let future = Document::read(br#"{"schemaVersion":3}"#, None, 9);
        assert!(
            matches!(future, Err(ManifestError::Version(3))),
            "{future:?}"
        );
        let lying = format!(r#"{{"mediaType":"{OCI_INDEX}","config":{one},"layers":[]}}"#);
        assert!(matches!(
            Document::read(lying.as_bytes(), None, 9),
            Err(ManifestError::MediaType(_))
        ));
    }
}
