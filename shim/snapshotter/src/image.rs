//! What containerd's labels say of an image, and who is to have its files.

use std::collections::BTreeMap;

use crate::glob;
use crate::record::{Content, Record};
use crate::status::Status;

/// The name that a layer is to be committed under: with it, an answer that it exists spares its fetch.
pub(crate) const TARGET: &str = "containerd.io/snapshot.ref";
/// The image's reference. containerd sets it where its CRI plugin says `disable_snapshot_annotations = false`.
pub(crate) const REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
/// The digest of its manifest.
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// Who has the files of a layer that containerd is about to fetch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Whose<'a> {
    /// A guest will pull it, and containerd need not: under this name.
    Guest(&'a str),
    /// containerd fetches and unpacks it.
    Host,
}

/// Decides it. What has no target is not a pull: containerd has the layer's blob already, or it is a container's.
pub(crate) fn whose<'a>(labels: &'a BTreeMap<String, String>, unpack: &[String]) -> Whose<'a> {
    let Some(target) = labels.get(TARGET).filter(|target| !target.is_empty()) else {
        return Whose::Host;
    };
    match reference(labels) {
        Some(image) if glob::any(unpack, image) => Whose::Host,
        _ => Whose::Guest(target),
    }
}

/// The reference in some labels.
pub(crate) fn reference(labels: &BTreeMap<String, String>) -> Option<&str> {
    let reference = labels.get(REFERENCE).map(String::as_str);
    reference.filter(|reference| !reference.is_empty())
}

/// What the guest is told: the image's reference, and what else is known of just that image. A container's own word
/// comes before that of the layer, which several images may share; a bare digest says no repository.
pub(crate) fn told(
    container: Option<&str>,
    layer: Option<&Record>,
) -> (String, BTreeMap<String, String>) {
    let container = container.filter(|image| !image.is_empty() && !image.starts_with("sha256:"));
    let labels = layer.map(|layer| &layer.labels);
    let pulled = labels.and_then(reference);
    let Some(image) = container.or(pulled) else {
        return (String::new(), BTreeMap::new());
    };
    let labels = labels.filter(|_| pulled == Some(image));
    let metadata = labels.into_iter().flatten();
    let metadata = metadata.filter(|(name, _)| [REFERENCE, MANIFEST].contains(&name.as_str()));
    let metadata = metadata.map(|(name, value)| (name.clone(), value.clone()));
    (image.to_owned(), metadata.collect())
}

/// containerd keeps one snapshot for a layer, and this one has no files.
pub(crate) fn shared_with_guests(labels: &BTreeMap<String, String>, below: &[&Record]) -> Status {
    let image = reference(labels).unwrap_or("the image");
    let other = below.iter().filter(|one| one.content == Content::Guest);
    let other = other.filter_map(|one| reference(&one.labels)).next();
    Status::state(format!(
        "{image} is to be unpacked on the host, and some of its layers were left to guests with {}: list that image \
         under `unpack` too, remove it from containerd, and pull both",
        other.unwrap_or("another image")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn a_pull_is_left_to_guests_but_for_what_is_listed() {
        let unpack = ["*/pause:*".to_owned()];
        let image = |name| labels(&[(TARGET, "sha256:a"), (REFERENCE, name)]);
        assert_eq!(whose(&image("r/app:1"), &unpack), Whose::Guest("sha256:a"));
        assert_eq!(whose(&image("r/pause:3"), &unpack), Whose::Host);
        let unnamed = labels(&[(TARGET, "sha256:a")]);
        assert_eq!(whose(&unnamed, &unpack), Whose::Guest("sha256:a"));
        let no_pull = labels(&[(REFERENCE, "r/app:1")]);
        assert_eq!(whose(&no_pull, &unpack), Whose::Host);
    }

    #[test]
    fn the_guest_is_told_of_the_containers_image_and_not_of_another_with_its_layers() {
        let layer = Record {
            labels: labels(&[
                (REFERENCE, "r/a:1"),
                (MANIFEST, "sha256:m"),
                ("containerd.io/snapshot/cri.image-layers", "long"),
            ]),
            ..Record::new(1)
        };
        let known = labels(&[(REFERENCE, "r/a:1"), (MANIFEST, "sha256:m")]);
        for container in [None, Some("r/a:1"), Some("sha256:abc"), Some("")] {
            let (image, metadata) = told(container, Some(&layer));
            assert_eq!(
                (image.as_str(), &metadata),
                ("r/a:1", &known),
                "{container:?}"
            );
        }
        let (image, metadata) = told(Some("r/b:1"), Some(&layer));
        assert_eq!((image.as_str(), metadata.len()), ("r/b:1", 0));
        assert_eq!(told(None, None), (String::new(), BTreeMap::new()));
    }
}
