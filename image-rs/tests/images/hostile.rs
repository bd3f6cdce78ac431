//! Layers that try to get out, or to fill the machine up: each is refused by name, and leaves nothing.

use crate::room;

use std::io::Write;
use std::sync::Arc;

use image_rs::pull::PullError;
use image_rs::unpack::{Devices, UnpackError};
use image_rs::{LayerError, Policy, PullConfig};
use room::{LayerBuilder, NoKeys, Pack, Room, layer_error, push_image, read, small_limits};
use tar::EntryType;

async fn refused(
    room: &Room,
    tag: &str,
    layers: Vec<Vec<u8>>,
    config: Option<PullConfig>,
) -> UnpackError {
    let image = room.image(&format!("hostile:{tag}"));
    let layers: Vec<_> = layers
        .into_iter()
        .map(|layer| (layer, Pack::Gzip))
        .collect();
    push_image(&image, &layers, None).await;
    let config = config.unwrap_or_else(|| PullConfig::new(Policy::accept_anything()));
    let target = room.path(&format!("root-{tag}"));
    let error = room
        .puller_with(config, Arc::new(NoKeys))
        .pull(&image, &target)
        .await
        .unwrap_err();
    room.assert_no_leftovers();
    match error {
        PullError::Merge { source, .. } => source,
        other => match layer_error(other) {
            LayerError::Unpack(error) => error,
            other => panic!("{tag}: {other}"),
        },
    }
}

#[tokio::test]
async fn no_name_leads_out() {
    let Some(room) = Room::open().await else {
        return;
    };
    let new = LayerBuilder::new;
    let outside = room.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let up = format!("../../../{}", outside.display());
    let cases = [
        ("parent", new().file("../evil", "x")),
        ("deep-parent", new().dir("a").file("a/../../evil", "x")),
        ("absolute", new().file("/tmp/evil", "x")),
        ("link-parent", new().hard_link("a", "../../etc/passwd")),
        ("link-absolute", new().hard_link("a", "/etc/passwd")),
        ("link-missing", new().hard_link("a", "etc/passwd")),
        ("whiteout-parent", new().file("a/.wh..", "")),
        (
            "loop",
            new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/evil", "x"),
        ),
    ];
    for (tag, layer) in cases {
        let error = refused(&room, tag, vec![layer.finish()], None).await;
        let text = error.to_string();
        assert!(text.contains("refused"), "{tag}: {text}");
    }
    // Above the root is the root, so these stay inside.
    let climbing = [
        (
            "symlink-up",
            new().symlink("a", "../..").file("a/evil", "x"),
            "evil".to_owned(),
        ),
        (
            "symlink-far",
            new().symlink("a", &up).file("a/evil", "x"),
            format!("{}/evil", outside.display()).replacen('/', "", 1),
        ),
    ];
    for (tag, layer, inside) in climbing {
        let image = format!("climbs:{tag}");
        push_image(&room.image(&image), &[(layer.finish(), Pack::Gzip)], None).await;
        assert_eq!(read(&room.pull(&image).await.unwrap().rootfs, &inside), "x");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn links_of_a_lower_layer_do_not_lead_out_either() {
    let Some(room) = Room::open().await else {
        return;
    };
    let new = LayerBuilder::new;
    let lower = new()
        .symlink("a", "../../../../tmp")
        .symlink("abs", "/")
        .finish();
    // One that climbs stays at the root.
    let upper = new().file("a/evil", "x").finish();
    let layers = [(lower.clone(), Pack::Gzip), (upper, Pack::Gzip)];
    push_image(&room.image("climbs:1"), &layers, None).await;
    let pulled = room.pull("climbs:1").await.unwrap();
    assert_eq!(read(&pulled.rootfs, "tmp/evil"), "x");
    assert!(!std::path::Path::new("/tmp/evil").exists());
    // An absolute link means the image's own root, as it will for the workload.
    let upper = new().file("abs/inside", "x").finish();
    push_image(
        &room.image("abs:1"),
        &[(lower, Pack::Gzip), (upper, Pack::Gzip)],
        None,
    )
    .await;
    assert_eq!(
        read(&room.pull("abs:1").await.unwrap().rootfs, "inside"),
        "x"
    );
}

#[tokio::test]
async fn devices_are_a_matter_of_policy() {
    let Some(room) = Room::open().await else {
        return;
    };
    let layer = LayerBuilder::new()
        .entry("disk", EntryType::Block, "", b"")
        .finish();
    let config = PullConfig {
        devices: Devices::Refuse,
        ..PullConfig::new(Policy::accept_anything())
    };
    let error = refused(&room, "device", vec![layer], Some(config)).await;
    assert!(
        matches!(error, UnpackError::Device(ref name) if name == "disk"),
        "{error}"
    );
}

#[tokio::test]
async fn bombs_are_stopped() {
    let Some(room) = Room::open().await else {
        return;
    };
    let config = || {
        Some(PullConfig {
            limits: small_limits(),
            ..PullConfig::new(Policy::accept_anything())
        })
    };
    let mut many = LayerBuilder::new();
    for index in 0..20 {
        many = many.file(&format!("f{index}"), "");
    }
    let error = refused(&room, "entries", vec![many.finish()], config()).await;
    assert!(
        matches!(
            error,
            UnpackError::Limit {
                setting: "entries",
                ..
            }
        ),
        "{error}"
    );
    let big = LayerBuilder::new()
        .file("big", &"x".repeat(20_000))
        .finish();
    let error = refused(&room, "bytes", vec![big], config()).await;
    assert!(
        matches!(
            error,
            UnpackError::Limit {
                setting: "unpacked_bytes",
                ..
            }
        ),
        "{error}"
    );
    let deep = LayerBuilder::new().dir(&"d/".repeat(49)).finish();
    let mut limits = small_limits();
    limits.path_depth = 20;
    let shallow = PullConfig {
        limits,
        ..PullConfig::new(Policy::accept_anything())
    };
    let error = refused(&room, "deep", vec![deep], Some(shallow)).await;
    assert!(
        matches!(
            error,
            UnpackError::Limit {
                setting: "path_depth",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_gzip_bomb_is_stopped_by_its_ratio() {
    let Some(room) = Room::open().await else {
        return;
    };
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(8 << 20);
    header.set_cksum();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(header.as_bytes()).unwrap();
    encoder.write_all(&vec![0; 8 << 20]).unwrap();
    // Its diff_id is a lie as well; the ratio is refused while it is decompressed, before that is known.
    push_gzip(&room.image("bomb:1"), encoder.finish().unwrap()).await;
    let mut config = PullConfig::new(Policy::accept_anything());
    config.limits.ratio_floor_bytes = 1 << 20;
    let pull = room
        .puller_with(config, Arc::new(NoKeys))
        .pull(&room.image("bomb:1"), &room.path("root-b"))
        .await;
    let error = layer_error(pull.unwrap_err());
    assert!(
        matches!(error, LayerError::Unpack(UnpackError::Ratio { .. })),
        "{error}"
    );
    room.assert_no_leftovers();
}

async fn push_gzip(image: &image_rs::Reference, blob: Vec<u8>) -> image_rs::Digest {
    let registry = room::registry();
    let size = blob.len();
    let layer = registry.push_blob(image, blob.into()).await.unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_size = config.len();
    let config = registry.push_blob(image, config.into()).await.unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": size}],
    });
    registry
        .push_manifest(
            image,
            media_type,
            serde_json::to_vec(&manifest).unwrap().into(),
        )
        .await
        .unwrap();
    layer
}
