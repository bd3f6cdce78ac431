//! Manifests and indexes: the one for this machine is found, and what is none for it is named.

use image_rs::manifest::{ManifestError, Platform};
use image_rs::unpack::Limits;
use image_rs::{PullConfig, PullError};
use serde_json::json;

use super::blobs::{OCI_MANIFEST, manifest, write};
use super::room::{Pack, read};
use super::tarball::Tarball;
use super::{Here, config, packed, tree};

#[tokio::test]
async fn an_index_gives_the_variant_that_the_machine_runs() {
    let here = Here::new();
    let layout = here.layout("t");
    let mut entries = vec![json!({
        // What buildx adds to say how an image was built.
        "mediaType": OCI_MANIFEST, "digest": write(&layout, b"{}"), "size": 2,
        "platform": {"os": "unknown", "architecture": "unknown"},
    })];
    for (architecture, variant) in [
        ("amd64", "v3"),
        ("amd64", ""),
        ("arm64", "v8"),
        ("arm", "v6"),
        ("arm", "v7"),
        ("s390x", ""),
    ] {
        let name = format!("{architecture}{variant}");
        let tar = Tarball::new().file("name", &name).end();
        let manifest = manifest(&layout, &[packed(&tar, Pack::Gzip)], architecture).to_string();
        let mut platform = json!({"os": "linux", "architecture": architecture});
        if !variant.is_empty() {
            platform["variant"] = variant.into();
        }
        let digest = write(&layout, manifest.as_bytes());
        entries.push(json!({
            "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(), "platform": platform,
        }));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
    let index = layout
        .write_manifest(media_type, index.to_string().as_bytes())
        .unwrap();
    for (architecture, variant, expected) in [
        ("amd64", None, "amd64"),
        ("amd64", Some("v2"), "amd64"),
        ("amd64", Some("v4"), "amd64v3"),
        ("arm64", None, "arm64v8"),
        ("arm64", Some("v9"), "arm64v8"),
        ("arm", None, "armv7"),
        ("arm", Some("v6"), "armv6"),
        ("s390x", None, "s390x"),
    ] {
        let platform = Platform::new("linux", architecture, variant);
        let config = PullConfig {
            platform,
            ..config()
        };
        let pulled = here.pull("oci:$/layout:t", config).await.unwrap();
        assert_eq!(read(&pulled.rootfs, "name"), expected);
        assert_eq!(pulled.reference_digest, index);
        assert_ne!(pulled.manifest_digest, index);
    }
    for (architecture, variant) in [("arm", Some("v5")), ("riscv64", None)] {
        let platform = Platform::new("linux", architecture, variant);
        let config = PullConfig {
            platform,
            ..config()
        };
        let error = here.pull("oci:$/layout:t", config).await.unwrap_err();
        let PullError::Manifest {
            source: ManifestError::Platform { found, .. },
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert!(
            found.contains("linux/arm/v6") && found.contains("linux/s390x"),
            "{found}"
        );
    }
}

#[tokio::test]
async fn documents_that_are_no_image_for_us_are_named() {
    let here = Here::new();
    let layout = here.layout("t");
    let good = manifest(&layout, &[packed(&tree(), Pack::Gzip)], "amd64");
    let with = |path: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    let limits = |manifest_bytes| PullConfig {
        limits: Limits {
            manifest_bytes,
            layers: 1,
            ..Limits::default()
        },
        ..config()
    };
    let two = json!([good["layers"][0], good["layers"][0]]);
    let cases = [
        (json!({"schemaVersion": 1, "fsLayers": []}), "Schema1"),
        (with("/schemaVersion", json!(3)), "Version"),
        (
            with(
                "/config/mediaType",
                json!("application/vnd.cncf.helm.config.v1+json"),
            ),
            "MediaType",
        ),
        (
            with(
                "/layers/0/mediaType",
                json!("application/vnd.oci.image.layer.v1.tar+xz"),
            ),
            "MediaType",
        ),
        (with("/layers/0/size", json!(-1)), "Json"),
        (with("/layers/0/digest", json!("md5:00")), "Digest"),
        (with("/layers", two), "TooMany"),
        (with("/layers", json!([])), "Layers"),
        (
            manifest(&layout, &[packed(&tree(), Pack::Gzip)], "s390x"),
            "WrongPlatform",
        ),
    ];
    for (document, expected) in cases {
        layout
            .write_manifest(OCI_MANIFEST, document.to_string().as_bytes())
            .unwrap();
        let error = here
            .pull("oci:$/layout:t", limits(1 << 20))
            .await
            .unwrap_err();
        let PullError::Manifest { source, .. } = error else {
            panic!("{expected}: {error}")
        };
        assert!(
            format!("{source:?}").starts_with(expected),
            "{expected}: {source:?}"
        );
    }
    layout
        .write_manifest(OCI_MANIFEST, good.to_string().as_bytes())
        .unwrap();
    let error = here.pull("oci:$/layout:t", limits(100)).await.unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Manifest {
                source: ManifestError::TooLarge { .. },
                ..
            }
        ),
        "{error}"
    );
    here.pull("oci:$/layout:t", limits(1 << 20)).await.unwrap();
}
