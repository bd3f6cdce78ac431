//! Media types of layers, plain and encrypted: the encrypted one is the plain one with `+encrypted` behind it.

/// What stands behind the media type of an encrypted layer.
const SUFFIX: &str = "+encrypted";

/// How the plain bytes of a layer are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A bare tar.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

/// What a layer's media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layer {
    /// How the tar inside is compressed.
    pub compression: Compression,
    /// Whether the blob is encrypted.
    pub encrypted: bool,
}

/// Every media type that a tar layer has in OCI and Docker images.
const LAYERS: [(&str, Compression); 12] = [
    ("application/vnd.oci.image.layer.v1.tar", Compression::None),
    (
        "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Gzip,
    ),
    (
        "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::Zstd,
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        Compression::None,
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        Compression::Gzip,
    ),
    (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        Compression::Zstd,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        Compression::None,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Compression::Gzip,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        Compression::Zstd,
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        Compression::None,
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        Compression::Gzip,
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
        Compression::Zstd,
    ),
];

/// Every media type that a plain tar layer has.
pub fn layers() -> impl Iterator<Item = &'static str> {
    LAYERS.iter().map(|(name, _)| *name)
}

/// Reads a layer's media type; `None` when it is not a tar layer that we know.
#[must_use]
pub fn parse(media_type: &str) -> Option<Layer> {
    let (plain, encrypted) = match media_type.strip_suffix(SUFFIX) {
        Some(plain) => (plain, true),
        None => (media_type, false),
    };
    let (_, compression) = LAYERS.iter().find(|(known, _)| *known == plain)?;
    Some(Layer {
        compression: *compression,
        encrypted,
    })
}

/// The OCI media type of the same kind of layer; `None` when it is not a tar layer that we know.
///
/// An encrypted layer needs annotations, which only OCI descriptors have.
#[must_use]
pub fn oci(media_type: &str) -> Option<String> {
    let layer = parse(media_type)?;
    let plain = decrypted(media_type);
    let base = if plain.contains("foreign") || plain.contains("nondistributable") {
        "application/vnd.oci.image.layer.nondistributable.v1.tar"
    } else {
        "application/vnd.oci.image.layer.v1.tar"
    };
    let compression = match layer.compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    Some(format!(
        "{base}{compression}{}",
        if layer.encrypted { SUFFIX } else { "" }
    ))
}

/// The media type of the same layer once it is encrypted.
#[must_use]
pub fn encrypted(media_type: &str) -> String {
    if is_encrypted(media_type) {
        media_type.to_owned()
    } else {
        format!("{media_type}{SUFFIX}")
    }
}

/// The media type of the same layer once it is decrypted.
#[must_use]
pub fn decrypted(media_type: &str) -> &str {
    media_type.strip_suffix(SUFFIX).unwrap_or(media_type)
}

/// Whether the media type is that of an encrypted layer.
#[must_use]
pub fn is_encrypted(media_type: &str) -> bool {
    media_type.ends_with(SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_type_has_an_encrypted_one() {
        for (plain, compression) in LAYERS {
            let sealed = encrypted(plain);
            assert_eq!(
                parse(plain),
                Some(Layer {
                    compression,
                    encrypted: false
                })
            );
            assert_eq!(
                parse(&sealed),
                Some(Layer {
                    compression,
                    encrypted: true
                })
            );
            assert_eq!(decrypted(&sealed), plain);
            assert_eq!(encrypted(&sealed), sealed);
        }
    }

    #[test]
    fn docker_layers_have_an_oci_type() {
        let oci = |text: &str| oci(&format!("application/vnd.{text}"));
        let layer = "application/vnd.oci.image.layer";
        assert_eq!(
            oci("docker.image.rootfs.diff.tar.gzip").unwrap(),
            format!("{layer}.v1.tar+gzip")
        );
        assert_eq!(
            oci("docker.image.rootfs.foreign.diff.tar.zstd+encrypted").unwrap(),
            format!("{layer}.nondistributable.v1.tar+zstd+encrypted")
        );
        assert_eq!(
            oci("oci.image.layer.v1.tar").unwrap(),
            format!("{layer}.v1.tar")
        );
        assert_eq!(oci("oci.image.config.v1+json"), None);
    }

    #[test]
    fn what_is_no_layer_is_not_guessed_at() {
        assert_eq!(parse("application/vnd.oci.image.layer.v1.tar+xz"), None);
        assert_eq!(
            parse("application/vnd.oci.image.layer.v1.tar+gzip+encrypted+encrypted"),
            None
        );
    }
}
