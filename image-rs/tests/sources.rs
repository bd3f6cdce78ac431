//! Images that are in no registry: in a layout and in an archive of one, in every format; and what a refusal leaves.

#![allow(clippy::unwrap_used)]

mod blobs;
mod room;
mod tarball;

use std::path::Path;
use std::sync::Arc;

use blobs::{Blob, OCI_MANIFEST, image, manifest, write};
use image_rs::layout::{Layout, LayoutError};
use image_rs::manifest::{ManifestError, Platform};
use image_rs::place::{Place, PlaceError};
use image_rs::unpack::{Limits, UnpackError};
use image_rs::{Digest, LayerError, Policy, PullConfig, PullError, Pulled, Puller};
use room::{NoKeys, Pack, layer_error, need_tool, pack, read, run};
use serde_json::json;
use tarball::{Tarball, snapshot};
use tempfile::TempDir;

/// A directory for a layout, and for what is pulled from it.
struct Here(TempDir);

impl Here {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn layout(&self, tag: &str) -> Layout {
        Layout::new(self.0.path().join("layout"), Some(tag.to_owned()))
    }

    fn target(&self) -> std::path::PathBuf {
        self.0.path().join("pulled/root")
    }

    async fn pull(&self, place: &str, config: PullConfig) -> Result<Pulled, PullError> {
        let registry = room::registry();
        let place = place.replace("$", self.0.path().to_str().unwrap());
        let place = Place::parse(&place, &registry).unwrap();
        let pulled = self.0.path().join("pulled");
        let _ = std::fs::remove_dir_all(&pulled);
        std::fs::create_dir(&pulled).unwrap();
        let puller = Puller::new(config, registry, Arc::new(NoKeys));
        let result = puller.pull_from(&place, &self.target()).await;
        let left = std::fs::read_dir(&pulled).unwrap().count();
        assert_eq!(left, usize::from(result.is_ok()), "{place}");
        result
    }
}

fn config() -> PullConfig {
    PullConfig {
        platform: Platform::new("linux", "amd64", None),
        ..PullConfig::new(Policy::accept_anything())
    }
}

fn tree() -> Vec<u8> {
    let content = "hello ".repeat(5000);
    Tarball::new()
        .dir("./")
        .dir("etc")
        .file("etc/motd", content)
        .symlink("m", "etc/motd")
        .end()
}

fn packed(tar: &[u8], how: Pack) -> Blob {
    let (bytes, media_type) = pack(tar, how);
    Blob::packed(tar, bytes, media_type)
}

/// Frames that decoders skip, as zstd:chunked has them before, between and behind its data.
fn chunked(tar: &[u8]) -> Blob {
    let skipped = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18], &length[..], bytes].concat()
    };
    let mut bytes = skipped(b"head");
    for piece in tar.chunks(3000) {
        bytes.extend(zstd::encode_all(piece, 1).unwrap());
    }
    bytes.extend(skipped(&[1; 3000]));
    bytes.extend(skipped(b"GNUlInUx"));
    Blob::packed(tar, bytes, "application/vnd.oci.image.layer.v1.tar+zstd")
}

#[tokio::test]
async fn every_format_gives_the_same_tree() {
    let here = Here::new();
    let tar = tree();
    let mut all = vec![chunked(&tar)];
    for how in [
        Pack::Plain,
        Pack::Gzip,
        Pack::GzipMembers,
        Pack::Zstd,
        Pack::ZstdFrames,
    ] {
        let oci = packed(&tar, how);
        let zip = oci.media_type.rsplit(['+', '.']).next().unwrap().to_owned();
        all.push(oci.clone());
        for docker in ["rootfs.diff", "rootfs.foreign.diff"] {
            let zip = if zip == "tar" {
                String::new()
            } else {
                format!(".{zip}")
            };
            let media_type = format!("application/vnd.docker.image.{docker}.tar{zip}");
            all.push(Blob {
                media_type,
                ..oci.clone()
            });
        }
        let zip = if zip == "tar" {
            String::new()
        } else {
            format!("+{zip}")
        };
        let media_type = format!("application/vnd.oci.image.layer.nondistributable.v1.tar{zip}");
        all.push(Blob { media_type, ..oci });
    }
    assert_eq!(all.len(), 21);
    for blob in all {
        let media_type = blob.media_type.clone();
        image(&here.layout("t"), vec![blob]);
        let pulled = here.pull("oci:$/layout:t", config()).await;
        let root = pulled
            .unwrap_or_else(|error| panic!("{media_type}: {error}"))
            .rootfs;
        assert_eq!(read(&root, "m"), "hello ".repeat(5000), "{media_type}");
    }
}

#[tokio::test]
async fn a_layout_and_its_archive_give_what_the_registry_does() {
    let here = Here::new();
    let digest = image(&here.layout("t"), vec![packed(&tree(), Pack::Gzip)]);
    let pulled = here.pull("oci:$/layout:t", config()).await.unwrap();
    assert_eq!(
        (&pulled.manifest_digest, &pulled.reference_digest),
        (&digest, &digest)
    );
    let from_layout = snapshot(&pulled.rootfs);
    let (directory, archive) = (here.0.path().join("layout"), here.0.path().join("a.tar"));
    let (directory, archive) = (directory.to_str().unwrap(), archive.to_str().unwrap());
    run("tar", &["-C", directory, "-cf", archive, "."]);
    let pulled = here.pull("oci-archive:$/a.tar:t", config()).await.unwrap();
    assert_eq!(snapshot(&pulled.rootfs), from_layout);
    let pinned = format!("oci-archive:$/a.tar@{digest}");
    assert_eq!(
        here.pull(&pinned, config()).await.unwrap().manifest_digest,
        digest
    );
    if need_tool("skopeo") {
        let (from, to) = (
            format!("oci:{directory}:t"),
            format!("oci-archive:{archive}.2:s"),
        );
        run("skopeo", &["copy", "-q", &from, &to]);
        let pulled = here
            .pull("oci-archive:$/a.tar.2:s", config())
            .await
            .unwrap();
        assert_eq!(snapshot(&pulled.rootfs), from_layout);
    }
    let source = |error: PullError| match error {
        PullError::Source(error) => *error,
        other => panic!("{other}"),
    };
    let error = source(
        here.pull("oci:$/layout:absent", config())
            .await
            .unwrap_err(),
    );
    assert!(
        matches!(error, PlaceError::Layout(LayoutError::NoImage { .. })),
        "{error}"
    );
    let error = source(here.pull("oci:$/nowhere:t", config()).await.unwrap_err());
    assert!(
        matches!(error, PlaceError::Layout(LayoutError::NotOne(_))),
        "{error}"
    );
    run("gzip", &["-k", archive]);
    let error = source(
        here.pull("oci-archive:$/a.tar.gz:t", config())
            .await
            .unwrap_err(),
    );
    assert!(
        matches!(error, PlaceError::Layout(LayoutError::Archive { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_layout_is_allowed_by_the_default_alone() {
    let here = Here::new();
    image(&here.layout("t"), vec![packed(&tree(), Pack::Gzip)]);
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let reject = r#"[{"type":"reject"}]"#;
    for policy in [
        format!(r#"{{"default":{reject},"transports":{{"docker":{{"":{accept}}}}}}}"#),
        format!(r#"{{"default":{accept},"transports":{{"oci":{{"":{accept}}}}}}}"#),
        r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}"#.to_owned(),
    ] {
        let config = PullConfig {
            policy: Policy::from_json(policy.as_bytes()).unwrap(),
            ..config()
        };
        let error = here.pull("oci:$/layout:t", config).await.unwrap_err();
        assert!(matches!(error, PullError::Policy(_)), "{policy}: {error}");
    }
}

#[tokio::test]
async fn layers_may_be_empty_or_there_twice() {
    let here = Here::new();
    let empty = Tarball::new().end();
    let first = Tarball::new().file("a", "1").file("b", "1").end();
    let second = Tarball::new().file("a", "2").file(".wh.b", "").end();
    // The first layer once more: its files come back.
    let layers = [&empty, &first, &empty, &second, &first, &empty];
    image(
        &here.layout("t"),
        layers.map(|tar| packed(tar, Pack::Gzip)).into(),
    );
    let root = here.pull("oci:$/layout:t", config()).await.unwrap().rootfs;
    assert_eq!(
        (read(&root, "a"), read(&root, "b")),
        ("1".into(), "1".into())
    );
    image(&here.layout("none"), Vec::new());
    let root = here
        .pull("oci:$/layout:none", config())
        .await
        .unwrap()
        .rootfs;
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
}

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
        let manifest = manifest(&layout, vec![packed(&tar, Pack::Gzip)], architecture).to_string();
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
    let good = manifest(&layout, vec![packed(&tree(), Pack::Gzip)], "amd64");
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
            manifest(&layout, vec![packed(&tree(), Pack::Gzip)], "s390x"),
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

/// What a layer's bytes can be, told by the layer's error; the pull itself asserts that nothing is left.
#[tokio::test]
async fn a_refused_layer_leaves_nothing() {
    let here = Here::new();
    let good = packed(&tree(), Pack::Gzip);
    let hostile = |tar: Tarball| packed(&tar.end(), Pack::Gzip);
    let bomb = |how| packed(&Tarball::new().file("zeros", vec![0; 8 << 20]).end(), how);
    let mut window = zstd::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(27).unwrap();
    std::io::Write::write_all(&mut window, &tree()).unwrap();
    let window = Blob::packed(
        &tree(),
        window.finish().unwrap(),
        "application/vnd.oci.image.layer.v1.tar+zstd",
    );
    let cut = |how: Pack, left: usize| {
        let mut blob = packed(&tree(), how);
        let length = blob.bytes.len() * left / 10;
        blob.bytes.truncate(length);
        blob
    };
    let lie = Blob {
        diff_id: Digest::of(b"lie"),
        ..good.clone()
    };
    let cases = [
        (hostile(Tarball::new().file("../x", "x")), "Unpack(Parent"),
        (
            hostile(Tarball::new().symlink("a", "..").file("a/x", "x")),
            "Unpack(Escape",
        ),
        (
            hostile(Tarball::new().file("a", "x".repeat(2 << 20))),
            "Unpack(Limit { setting: \"file_bytes\"",
        ),
        (bomb(Pack::Gzip), "Unpack(Ratio"),
        (bomb(Pack::Zstd), "Unpack(Ratio"),
        (window, "Unpack(Limit { setting: \"zstd_window_bytes\""),
        (cut(Pack::Gzip, 5), "Decompress"),
        (cut(Pack::Zstd, 5), "Decompress"),
        (cut(Pack::Plain, 5), "Unpack(Truncated"),
        (lie, "DiffId"),
        (
            Blob {
                bytes: b"no gzip".to_vec(),
                ..good.clone()
            },
            "Decompress",
        ),
    ];
    let limits = Limits {
        ratio: 100,
        ratio_floor_bytes: 1 << 20,
        file_bytes: 1 << 20,
        ..Limits::default()
    };
    for (blob, expected) in cases {
        let large = expected.contains("Ratio");
        // Between layers that are good, which then are unpacked already or still to come.
        image(&here.layout("t"), vec![good.clone(), blob, good.clone()]);
        let mut limits = limits.clone();
        if large {
            limits.file_bytes = 1 << 30;
        }
        let config = PullConfig { limits, ..config() };
        let error = layer_error(here.pull("oci:$/layout:t", config).await.unwrap_err());
        let text = format!("{error:?}");
        assert!(text.starts_with(expected), "{expected}: {text}");
    }
}

#[tokio::test]
async fn a_layout_that_lies_is_found_out() {
    let here = Here::new();
    let blob = packed(&tree(), Pack::Gzip);
    let digest = Digest::of(&blob.bytes);
    image(&here.layout("t"), vec![blob.clone()]);
    let file = here.0.path().join("layout/blobs/sha256").join(digest.hex());
    let put = |bytes: &[u8]| std::fs::write(&file, bytes).unwrap();
    let mut bytes = blob.bytes.clone();
    bytes[100] ^= 1;
    put(&bytes);
    let error = layer_error(here.pull("oci:$/layout:t", config()).await.unwrap_err());
    assert!(matches!(error, LayerError::Digest { .. }), "{error}");
    put(&blob.bytes[..50]);
    let error = here.pull("oci:$/layout:t", config()).await.unwrap_err();
    assert!(error.to_string().contains("has 50 bytes"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let error = here.pull("oci:$/layout:t", config()).await.unwrap_err();
    assert!(error.to_string().contains(digest.hex()), "{error}");
}

/// Layers that are good one by one, and cannot be merged.
#[tokio::test]
async fn a_refused_merge_leaves_nothing() {
    let here = Here::new();
    let lower = Tarball::new().symlink("a", "../../..").end();
    let upper = Tarball::new().file("a/x", "x").end();
    image(
        &here.layout("t"),
        [lower, upper].map(|tar| packed(&tar, Pack::Zstd)).into(),
    );
    let error = here.pull("oci:$/layout:t", config()).await.unwrap_err();
    let PullError::Merge {
        source: UnpackError::Escape { .. },
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(!Path::new(&here.target()).exists());
}
