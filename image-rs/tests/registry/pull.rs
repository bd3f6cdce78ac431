//! Whole pulls through mirrors that lie about layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use image_rs::manifest::Platform;
use image_rs::registry::{PullFromMirror, RegistryError};
use image_rs::{Digest, LayerError, Policy, PullConfig, PullError, Puller};
use tempfile::TempDir;

use crate::mirror::{IMAGE, PLAIN, mirrored};
use crate::real::NoKeys;
use crate::server::{Act, Asked, Server, World, reply};

fn archive(name: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    // Written raw, because the crate refuses names that lead out.
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(5);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append(&header, &b"hello"[..]).unwrap();
    tar.into_inner().unwrap()
}

/// An image of one layer as a registry serves it, with `served` in place of the layer.
fn image(layer: &[u8], served: &[u8]) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    image_of(layer, Digest::of(layer), served)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "what is returned borrows nothing"
)]
fn image_of(
    layer: &[u8],
    diff_id: Digest,
    served: &[u8],
) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static {
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }))
    .unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": Digest::of(layer), "size": layer.len()}],
    }))
    .unwrap();
    let blobs = BTreeMap::from([
        (Digest::of(&config).to_string(), config),
        (Digest::of(layer).to_string(), served.to_vec()),
    ]);
    move |asked| {
        let name = asked.target.rsplit('/').next().unwrap_or_default();
        match blobs.get(name) {
            Some(blob) => reply(200, &[], blob),
            None => reply(200, &[("content-type", media_type)], &manifest),
        }
    }
}

async fn pull(layer: &[u8], at_mirror: &[u8], at_registry: &[u8]) -> Result<String, PullError> {
    let mirror = Server::plain(image(layer, at_mirror)).await;
    let server = Server::plain(image(layer, at_registry)).await;
    pull_from(&mirror, &server).await
}

async fn pull_from(mirror: &Server, server: &Server) -> Result<String, PullError> {
    let world = World::with(&[("m.test", mirror), ("r.test", server)]);
    let registry = world.registry(&PLAIN, |_, setup| {
        setup.rules = mirrored(PullFromMirror::All)
    });
    let mut config = PullConfig::new(Policy::accept_anything());
    // Enough for the file once: what a lie used up does not count.
    config.limits.unpacked_bytes = 7;
    let puller = Puller::new(config, registry, Arc::new(NoKeys));
    let directory = TempDir::new().unwrap();
    let target = directory.path().join("root");
    let pulled = puller.pull(&IMAGE.parse().unwrap(), &target).await;
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(names.len(), usize::from(pulled.is_ok()), "{names:?}");
    let root = pulled?.rootfs;
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
    Ok(std::fs::read_to_string(root.join("file")).unwrap())
}

#[tokio::test]
async fn a_layer_that_a_mirror_falsified_comes_from_the_registry() {
    let layer = archive("file");
    let mut flipped = layer.clone();
    flipped[512] ^= 1;
    let mut broken = layer.clone();
    broken[..512].fill(0xff);
    for lie in [
        flipped,
        broken,
        archive("other"),
        archive("/absolute"),
        archive("a/../../out"),
    ] {
        assert_eq!(pull(&layer, &lie, &layer).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_layer_that_is_wrong_everywhere_is_refused_with_each_place() {
    let layer = archive("file");
    let other = archive("other");
    let error = match pull(&layer, &other, &other).await.unwrap_err() {
        PullError::Layer { source, .. } => *source,
        error => panic!("{error}"),
    };
    let LayerError::Fetch(error) = error else {
        panic!("{error}");
    };
    assert!(
        matches!(error.decisive(), RegistryError::Digest { .. }),
        "{error}"
    );
    let text = error.to_string();
    for place in ["mirror m.test/cache/team/a", "registry r.test/team/a"] {
        assert!(text.contains(place), "{text}");
    }
}

#[tokio::test]
async fn a_layer_that_is_bad_itself_is_refused_as_what_it_is() {
    let layer = archive("a/../../out");
    let error = pull(&layer, &layer, &layer).await.unwrap_err();
    let PullError::Layer { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(**source, LayerError::Unpack(_)), "{source}");
}

#[tokio::test]
async fn a_layer_that_is_what_the_manifest_names_is_not_fetched_again() {
    let layer = archive("file");
    let other = Digest::of(b"another content");
    let mirror = Server::plain(image_of(&layer, other.clone(), &layer)).await;
    let server = Server::plain(image_of(&layer, other.clone(), &layer)).await;
    let error = pull_from(&mirror, &server).await.unwrap_err();
    let PullError::Layer { source, .. } = &error else {
        panic!("{error}");
    };
    assert!(matches!(**source, LayerError::DiffId { .. }), "{source}");
    assert!(server.lines().is_empty(), "{:?}", server.lines());
}
