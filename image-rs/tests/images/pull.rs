//! Pulling from a real registry: every compression, whiteouts, and damage of every kind.

use crate::room;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use image_rs::pull::PullError;
use image_rs::{Digest, LayerError, Policy, PullConfig};
use room::{LayerBuilder, NoKeys, Pack, Room, layer_error, need_tool, push_image, read, run};

#[tokio::test]
async fn every_compression_gives_the_same_tree() {
    let Some(room) = Room::open().await else {
        return;
    };
    let tar = LayerBuilder::new()
        .dir("etc")
        .file("etc/motd", &"hello ".repeat(5000))
        .symlink("m", "etc/motd")
        .finish();
    for how in [
        Pack::Plain,
        Pack::Gzip,
        Pack::GzipMembers,
        Pack::Zstd,
        Pack::ZstdFrames,
    ] {
        let name = format!("pack:{how:?}");
        push_image(&room.image(&name), &[(tar.clone(), how)], None).await;
        let pulled = room
            .pull(&name)
            .await
            .unwrap_or_else(|error| panic!("{how:?}: {error}"));
        assert_eq!(read(&pulled.rootfs, "m"), "hello ".repeat(5000), "{how:?}");
        let etc = std::fs::metadata(pulled.rootfs.join("etc")).unwrap();
        assert_eq!((etc.mtime(), etc.mode() & 0o7777), (1_000_000_000, 0o755));
    }
}

#[tokio::test]
async fn whiteouts_hide_lower_layers_only() {
    let Some(room) = Room::open().await else {
        return;
    };
    let lower = LayerBuilder::new()
        .dir("a")
        .file("a/gone", "1")
        .file("a/kept", "1")
        .dir("opaque")
        .file("opaque/old", "1")
        .dir("opaque/sub")
        .file("opaque/sub/old", "1")
        .file("replaced", "file")
        .dir("tofile")
        .file("tofile/x", "1")
        .symlink("link", "a")
        .file("again", "old")
        .finish();
    // The whiteout of "again" stands behind the new "again": it hides the lower one only.
    let upper = LayerBuilder::new()
        .file("a/.wh.gone", "")
        .file("opaque/new", "2")
        .file("opaque/.wh..wh..opq", "")
        .dir("replaced")
        .file("replaced/y", "2")
        .file("tofile", "2")
        .file("link/through", "2")
        .file("again", "new")
        .file(".wh.again", "")
        .hard_link("late", "a/kept")
        .finish();
    push_image(
        &room.image("w:1"),
        &[(lower, Pack::Gzip), (upper, Pack::Zstd)],
        None,
    )
    .await;
    let root = room.pull("w:1").await.unwrap().rootfs;
    assert!(!root.join("a/gone").exists());
    assert_eq!(read(&root, "a/kept"), "1");
    assert_eq!(read(&root, "opaque/new"), "2");
    assert!(!root.join("opaque/old").exists() && !root.join("opaque/sub").exists());
    assert_eq!(read(&root, "replaced/y"), "2");
    assert_eq!(read(&root, "tofile"), "2");
    assert_eq!(
        read(&root, "a/through"),
        "2",
        "a directory that is only implied does not replace a link"
    );
    assert_eq!(read(&root, "again"), "new");
    let inode = |name: &str| std::fs::metadata(root.join(name)).unwrap().ino();
    assert_eq!(inode("late"), inode("a/kept"));
    assert!(
        !std::fs::read_dir(&root).unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(".wh."))
    );
}

#[tokio::test]
async fn an_image_of_the_usual_tools_is_pulled() {
    let Some(room) = Room::open().await else {
        return;
    };
    if !need_tool("umoci") || !need_tool("skopeo") {
        return;
    }
    let layout = room.path("layout");
    let image = format!("{}:v1", layout.display());
    let content = room.path("content");
    std::fs::create_dir_all(content.join("usr/bin")).unwrap();
    std::fs::write(content.join("usr/bin/tool"), vec![7; 300_000]).unwrap();
    run("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    run("umoci", &["new", "--image", &image]);
    run(
        "umoci",
        &[
            "insert",
            "--image",
            &image,
            content.join("usr").to_str().unwrap(),
            "/usr",
        ],
    );
    run(
        "umoci",
        &[
            "insert",
            "--image",
            &image,
            content.join("usr/bin/tool").to_str().unwrap(),
            "/second",
        ],
    );
    for (format, tag) in [("gzip", "g"), ("zstd", "z")] {
        let args = [
            "copy",
            "-q",
            "--dest-tls-verify=false",
            "--dest-compress-format",
            format,
        ];
        let target = room.docker(&format!("umoci:{tag}"));
        run(
            "skopeo",
            &[&args[..], &[&format!("oci:{image}"), &target]].concat(),
        );
        let root = room.pull(&format!("umoci:{tag}")).await.unwrap().rootfs;
        assert_eq!(
            std::fs::read(root.join("usr/bin/tool")).unwrap(),
            vec![7; 300_000]
        );
        assert_eq!(std::fs::read(root.join("second")).unwrap().len(), 300_000);
    }
    // Docker's own media types, by way of a conversion.
    let args = [
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--format",
        "v2s2",
        &format!("oci:{image}"),
        &room.docker("umoci:d"),
    ];
    run("skopeo", &args);
    assert!(
        room.pull("umoci:d")
            .await
            .unwrap()
            .rootfs
            .join("usr/bin/tool")
            .exists()
    );
}

#[tokio::test]
async fn a_pinned_digest_is_checked() {
    let Some(room) = Room::open().await else {
        return;
    };
    push_image(
        &room.image("p:1"),
        &[(LayerBuilder::new().file("a", "1").finish(), Pack::Gzip)],
        None,
    )
    .await;
    let pulled = room.pull("p:1").await.unwrap();
    let pinned = room.image("p:1").pinned(pulled.manifest_digest.clone());
    let again = room
        .puller(Arc::new(NoKeys))
        .pull(&pinned, &room.path("pinned"))
        .await
        .unwrap();
    assert_eq!(again.manifest_digest, pulled.manifest_digest);
    let wrong = room.image("p:1").pinned(Digest::of(b"no such manifest"));
    let error = room
        .puller(Arc::new(NoKeys))
        .pull(&wrong, &room.path("wrong"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
async fn a_damaged_blob_names_both_digests_and_leaves_nothing() {
    let Some(room) = Room::open().await else {
        return;
    };
    for (how, tag) in [(Pack::Gzip, "g"), (Pack::Plain, "p"), (Pack::Zstd, "z")] {
        let tar = LayerBuilder::new()
            .file("a", &format!("{tag}{}", "content ".repeat(1000)))
            .finish();
        let name = format!("damaged:{tag}");
        let digests = push_image(&room.image(&name), &[(tar, how)], None).await;
        let file = room.blob_file(&digests[0]);
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        std::fs::write(&file, bytes).unwrap();
        match layer_error(room.pull(&name).await.unwrap_err()) {
            LayerError::Digest { expected, found } => {
                assert_eq!(expected, digests[0]);
                assert_ne!(found, expected);
            }
            other => panic!("{how:?}: {other:?}"),
        }
        room.assert_no_leftovers();
    }
}

#[tokio::test]
async fn a_blob_that_is_cut_short_is_refused() {
    let Some(room) = Room::open().await else {
        return;
    };
    let tar = LayerBuilder::new()
        .file("a", &"content ".repeat(1000))
        .finish();
    let digests = push_image(&room.image("short:1"), &[(tar, Pack::Plain)], None).await;
    let file = room.blob_file(&digests[0]);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = layer_error(room.pull("short:1").await.unwrap_err());
    assert!(matches!(error, LayerError::Fetch(_)), "{error}");
    room.assert_no_leftovers();
}

#[tokio::test]
async fn a_wrong_diff_id_is_refused() {
    let Some(room) = Room::open().await else {
        return;
    };
    let layers = [(LayerBuilder::new().file("a", "1").finish(), Pack::Gzip)];
    push_image(&room.image("lie:1"), &layers, Some(Digest::of(b"lie"))).await;
    let error = layer_error(room.pull("lie:1").await.unwrap_err());
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    room.assert_no_leftovers();
}

#[tokio::test]
async fn what_the_policy_refuses_is_not_even_asked_for() {
    let Some(room) = Room::open().await else {
        return;
    };
    let config = PullConfig::new(Policy::reject());
    let puller = room.puller_with(config, Arc::new(NoKeys));
    let error = puller
        .pull(&room.image("absent:1"), &room.path("root-x"))
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Policy(_)), "{error}");
    let error = room.pull("absent:1").await.unwrap_err();
    assert!(matches!(error, PullError::Registry(_)), "{error}");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
async fn an_image_that_cannot_fit_says_what_to_change() {
    let Some(room) = Room::open().await else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a small tmpfs needs root");
        return;
    }
    let small = room.path("small");
    std::fs::create_dir(&small).unwrap();
    run(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            "size=1m",
            "none",
            small.to_str().unwrap(),
        ],
    );
    let tar = LayerBuilder::new()
        .file("zeros", &"0".repeat(3 << 20))
        .finish();
    push_image(&room.image("big:z"), &[(tar.clone(), Pack::Gzip)], None).await;
    push_image(&room.image("big:p"), &[(tar, Pack::Plain)], None).await;
    for name in ["big:z", "big:p"] {
        let pull = room
            .puller(Arc::new(NoKeys))
            .pull(&room.image(name), &small.join("root"))
            .await;
        let error = pull.unwrap_err();
        assert!(matches!(error, PullError::NoSpace { .. }), "{error}");
        assert!(error.to_string().contains("default_memory"), "{error}");
        assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0, "{name}");
    }
    run("umount", &[small.to_str().unwrap()]);
}

/// A layer that may not be distributed is asked of the registry; where the manifest says it is, nobody is asked.
#[tokio::test]
async fn foreign_layers_come_from_the_registry_or_not_at_all() {
    let Some(room) = Room::open().await else {
        return;
    };
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let url = format!("http://{}/layer", elsewhere.local_addr().unwrap());
    let image = room.image("foreign:1");
    let tar = LayerBuilder::new().file("a", "1").finish();
    push_image(&image, &[(tar, Pack::Gzip)], None).await;
    let registry = room.registry();
    let raw = registry.manifest(&image).await.unwrap();
    let mut document: serde_json::Value = serde_json::from_slice(&raw.bytes).unwrap();
    let layer = &mut document["layers"][0];
    layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    layer["urls"] = serde_json::json!([url]);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let pushed = registry.push_manifest(&image, media_type, document.to_string().into());
    pushed.await.unwrap();
    let pulled = room.pull("foreign:1").await.unwrap();
    assert_eq!(read(&pulled.rootfs, "a"), "1");

    let digest: Digest = document["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    std::fs::remove_file(room.blob_file(&digest)).unwrap();
    let target = room.path("foreign");
    let puller = room.puller(Arc::new(NoKeys));
    let error = layer_error(puller.pull(&image, &target).await.unwrap_err());
    assert!(
        matches!(error, LayerError::Foreign { ref urls, .. } if *urls == [url]),
        "{error}"
    );
    assert!(elsewhere.accept().is_err(), "somebody called");
}
