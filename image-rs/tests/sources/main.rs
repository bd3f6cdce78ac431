//! Images that are in no registry: in a layout and in an archive of one, in every format; and what a refusal leaves.

#![allow(clippy::unwrap_used)]

#[path = "../blobs/mod.rs"]
mod blobs;
mod document;
mod refused;
#[path = "../room/mod.rs"]
mod room;
#[path = "../tarball/mod.rs"]
mod tarball;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blobs::{Blob, image};
use image_rs::layout::{Layout, LayoutError};
use image_rs::manifest::Platform;
use image_rs::place::{Place, PlaceError};
use image_rs::{Policy, PullConfig, PullError, Pulled, Puller};
use room::{NoKeys, Pack, need_tool, pack, read, run};
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
        image(&here.layout("t"), &[blob]);
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
    let digest = image(&here.layout("t"), &[packed(&tree(), Pack::Gzip)]);
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
    image(&here.layout("t"), &[packed(&tree(), Pack::Gzip)]);
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let reject = r#"[{"type":"reject"}]"#;
    let key = STANDARD.encode(include_bytes!("../../ocicrypt/tests/vectors/p256.pub.pem"));
    for policy in [
        format!(r#"{{"default":{reject},"transports":{{"docker":{{"":{accept}}}}}}}"#),
        format!(r#"{{"default":{accept},"transports":{{"oci":{{"":{accept}}}}}}}"#),
        format!(r#"{{"default":[{{"type":"sigstoreSigned","keyData":"{key}"}}]}}"#),
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
        &layers.map(|tar| packed(tar, Pack::Gzip)),
    );
    let root = here.pull("oci:$/layout:t", config()).await.unwrap().rootfs;
    assert_eq!(
        (read(&root, "a"), read(&root, "b")),
        ("1".into(), "1".into())
    );
    image(&here.layout("none"), &[]);
    let root = here
        .pull("oci:$/layout:none", config())
        .await
        .unwrap()
        .rootfs;
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
}
