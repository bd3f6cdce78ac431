//! What is refused leaves nothing: [`Here::pull`] looks after each.

use image_rs::unpack::{Limits, UnpackError};
use image_rs::{Digest, LayerError, PullConfig, PullError};

use super::blobs::{Blob, image};
use super::room::{Pack, layer_error};
use super::tarball::Tarball;
use super::{Here, config, packed, tree};

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
            hostile(Tarball::new().symlink("a", "a").file("a/x", "x")),
            "Unpack(Loop",
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
        image(&here.layout("t"), &[good.clone(), blob, good.clone()]);
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
    image(&here.layout("t"), std::slice::from_ref(&blob));
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
    let lower = Tarball::new().symlink("a", "a").end();
    let upper = Tarball::new().file("a/x", "x").end();
    image(
        &here.layout("t"),
        &[lower, upper].map(|tar| packed(&tar, Pack::Zstd)),
    );
    let error = here.pull("oci:$/layout:t", config()).await.unwrap_err();
    let PullError::Merge {
        source: UnpackError::Loop(_),
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(!here.target().exists());
}
