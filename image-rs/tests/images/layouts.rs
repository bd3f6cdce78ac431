//! Encryption and decryption between layouts: what is left of a run that ends early, of an image that is encrypted in
//! place, and what a layout of another tool may look like.

use crate::blobs;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use blobs::{Blob, OCI_MANIFEST, image, write};
use image_rs::Digest;
use image_rs::digest::{Algorithm, Hasher};
use image_rs::layout::{Layout, LayoutError};
use image_rs::manifest::Platform;
use image_rs::place::{Place, PlaceError};
use image_rs::recrypt::{self, Recipients, RecryptError, Report};
use ocicrypt::{Key, KeyError, KeySource};
use serde_json::{Value, json};
use tempfile::TempDir;

const KID: &str = "kbs:///a/b/c";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A broker with one key.
struct OneKey;

#[async_trait]
impl KeySource for OneKey {
    async fn key(&self, _: &str) -> Result<Key, KeyError> {
        Ok(Key::new(vec![7; 32]))
    }
}

fn recipients() -> Recipients {
    Recipients {
        broker: vec![(KID.to_owned(), Key::new(vec![7; 32]))],
        ..Recipients::default()
    }
}

fn quiet() -> Report {
    Arc::new(|_| {})
}

fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

async fn encrypt(from: &Layout, to: &Layout) -> Result<Digest, RecryptError> {
    let [from, to] = [from, to].map(|layout| Place::Layout(layout.clone()));
    recrypt::encrypt(&from, &to, &amd64(), &recipients(), &quiet()).await
}

async fn decrypt(from: &Layout, to: &Layout) -> Result<Digest, RecryptError> {
    let [from, to] = [from, to].map(|layout| Place::Layout(layout.clone()));
    recrypt::decrypt(&from, &to, &amd64(), &OneKey, &quiet()).await
}

fn layout(directory: &TempDir, name: &str) -> Layout {
    Layout::new(directory.path().join(name), Some("t".to_owned()))
}

fn blob_names(directory: &TempDir, name: &str) -> Vec<String> {
    let mut names = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        let blobs = directory.path().join(name).join("blobs").join(algorithm);
        let list = std::fs::read_dir(blobs).into_iter().flatten();
        names.extend(list.map(|it| it.unwrap().file_name().into_string().unwrap()));
    }
    names.sort();
    names
}

fn every_file(below: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(below).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(every_file(&path)),
            false => files.push(path),
        }
    }
    files
}

fn sha512(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(bytes);
    hasher.finish()
}

/// The manifest as it stands, to be changed.
fn document(layout: &Layout) -> Value {
    serde_json::from_slice(&layout.manifest().unwrap().0).unwrap()
}

/// Polls the work as often as it is ready to go on, at most `times`; dropped then, it is as if it were interrupted.
async fn poll_for<F: Future>(work: F, times: usize) -> Option<F::Output> {
    let mut work = Box::pin(work);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..times {
        if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
            return Some(done);
        }
        // Whoever let others go on is woken when this test does.
        tokio::task::yield_now().await;
    }
    None
}

#[tokio::test]
async fn a_run_that_is_given_up_at_any_moment_leaves_no_file() {
    let here = tempfile::tempdir().unwrap();
    let (plain, sealed) = (layout(&here, "plain"), layout(&here, "sealed"));
    let large = vec![1; 8 << 20];
    image(&plain, &[Blob::plain(&large), Blob::plain(b"small")]);
    encrypt(&plain, &sealed).await.unwrap();
    let archive = here.path().join("out/opened.tar");
    let archive = Layout::parse_archive(&format!("{}:t", archive.display())).unwrap();
    let out = here.path().join("out");
    for to in [
        archive,
        Layout::new(out.join("opened"), Some("t".to_owned())),
    ] {
        let mut given_up = 0;
        for times in 1.. {
            std::fs::create_dir_all(&out).unwrap();
            // While it runs, nothing that is decrypted has a name.
            let done = poll_for(decrypt(&sealed, &to), times).await;
            if let Some(done) = done {
                done.unwrap();
                break;
            }
            assert_eq!(every_file(&out), Vec::<PathBuf>::new(), "{to} {times}");
            given_up += 1;
        }
        assert!(given_up >= 8, "{to} never let others go on: {given_up}");
        assert!(!every_file(&out).is_empty());
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[tokio::test]
async fn an_image_encrypted_in_place_leaves_nothing_plain_that_no_other_needs() {
    let here = tempfile::tempdir().unwrap();
    let at = |tag: &str| Layout::new(here.path().join("l"), Some(tag.to_owned()));
    let (one, other, named) = (at("t"), at("other"), at("named"));
    let (shared, own) = (Blob::plain(b"shared"), Blob::plain(b"own"));
    image(&other, std::slice::from_ref(&shared));
    let old = image(&one, &[shared.clone(), own.clone()]);
    // The tag that names the same image keeps it.
    let (bytes, _) = one.manifest().unwrap();
    named.write_manifest(OCI_MANIFEST, &bytes).unwrap();
    encrypt(&one, &one).await.unwrap();
    assert!(blob_names(&here, "l").contains(&old.hex().to_owned()));
    named.write_manifest(OCI_MANIFEST, &bytes).unwrap();
    encrypt(&named, &named).await.unwrap();
    let left = blob_names(&here, "l");
    assert!(!left.contains(&old.hex().to_owned()), "{left:?}");
    assert!(!left.contains(&own.diff_id.hex().to_owned()), "{left:?}");
    assert!(left.contains(&shared.diff_id.hex().to_owned()), "{left:?}");
    for layout in [&one, &other, &named] {
        layout.manifest().unwrap();
    }
    decrypt(&one, &layout(&here, "opened")).await.unwrap();
}

#[tokio::test]
async fn an_image_of_the_longer_hash_is_encrypted_and_decrypted() {
    let here = tempfile::tempdir().unwrap();
    let plain = layout(&here, "plain");
    image(&plain, &[Blob::plain(b"layer")]);
    let mut manifest = document(&plain);
    let put = |bytes: &[u8]| {
        let digest = sha512(bytes);
        let mut blob = plain.start_blob().unwrap();
        blob.write(bytes).unwrap();
        blob.finish(&digest).unwrap();
        digest
    };
    let config: Digest = manifest["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let config = plain.small_blob(&config, 4096).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["rootfs"]["diff_ids"] = json!([sha512(b"layer")]);
    let config = config.to_string();
    manifest["layers"][0]["digest"] = json!(put(b"layer"));
    manifest["config"]["digest"] = json!(put(config.as_bytes()));
    manifest["config"]["size"] = config.len().into();
    let bytes = manifest.to_string();
    plain
        .write_manifest(OCI_MANIFEST, bytes.as_bytes())
        .unwrap();
    let (sealed, opened) = (layout(&here, "sealed"), layout(&here, "opened"));
    encrypt(&plain, &sealed).await.unwrap();
    // By way of an archive, where its name is a long one.
    let archive = here.path().join("opened.tar");
    let archive = Layout::parse_archive(&format!("{}:t", archive.display())).unwrap();
    decrypt(&sealed, &archive).await.unwrap();
    let resealed = layout(&here, "resealed");
    encrypt(&archive, &resealed).await.unwrap();
    decrypt(&resealed, &opened).await.unwrap();
    let after = document(&opened);
    assert_eq!(after["config"], manifest["config"]);
    assert_eq!(after["layers"][0]["digest"], json!(Digest::of(b"layer")));
    assert!(blob_names(&here, "opened").contains(&sha512(config.as_bytes()).hex().to_owned()));
}

#[tokio::test]
async fn ciphertext_is_not_taken_for_a_layer_and_a_layer_must_be_the_configurations() {
    let here = tempfile::tempdir().unwrap();
    let (plain, sealed) = (layout(&here, "plain"), layout(&here, "sealed"));
    image(&plain, &[Blob::plain(b"one"), Blob::plain(b"two")]);
    encrypt(&plain, &sealed).await.unwrap();
    let good = document(&sealed);
    let (mut lost, mut swapped) = (good.clone(), good.clone());
    lost["layers"][1]["mediaType"] = TAR.into();
    swapped["layers"].as_array_mut().unwrap().reverse();
    let rewrite = |changed: &Value| {
        let bytes = changed.to_string();
        sealed
            .write_manifest(OCI_MANIFEST, bytes.as_bytes())
            .unwrap();
    };
    rewrite(&lost);
    let opened = layout(&here, "opened");
    for error in [
        decrypt(&sealed, &opened).await,
        encrypt(&sealed, &opened).await,
    ] {
        let error = error.unwrap_err();
        assert!(matches!(error, RecryptError::LostType { .. }), "{error}");
    }
    rewrite(&swapped);
    let error = decrypt(&sealed, &opened).await.unwrap_err();
    assert!(matches!(error, RecryptError::DiffId { .. }), "{error}");
    assert_eq!(blob_names(&here, "opened"), Vec::<String>::new());
    rewrite(&good);
    decrypt(&sealed, &opened).await.unwrap();
}

#[tokio::test]
async fn a_place_that_cannot_be_written_to_is_told_before_any_work() {
    let here = tempfile::tempdir().unwrap();
    let (plain, to) = (layout(&here, "plain"), layout(&here, "to"));
    image(&plain, &[Blob::plain(b"layer")]);
    to.write_manifest(OCI_MANIFEST, b"{}").unwrap();
    let index = here.path().join("to/index.json");
    for strange in [
        "[]",
        "\"x\"",
        "5",
        "null",
        "{",
        "{}",
        "{\"manifests\": {}}",
        "{\"manifests\": [5]}",
    ] {
        std::fs::write(&index, strange).unwrap();
        let error = encrypt(&plain, &to).await.unwrap_err();
        let RecryptError::Place(PlaceError::Layout(LayoutError::Index { .. })) = error else {
            panic!("{strange}: {error}");
        };
        assert_eq!(std::fs::read_to_string(&index).unwrap(), strange);
    }
    let pinned = format!(
        "{}:t@{}",
        here.path().join("new").display(),
        Digest::of(b"x")
    );
    let pinned = Layout::parse(&pinned).unwrap();
    let error = encrypt(&plain, &pinned).await.unwrap_err();
    let RecryptError::Place(PlaceError::Layout(LayoutError::Pinned(_))) = error else {
        panic!("{error}");
    };
    assert!(!here.path().join("new").exists());
}

/// Each on a thread of its own, as processes do it; the tag of each stays.
#[test]
fn writers_of_one_directory_lose_nothing_of_each_other() {
    const WRITERS: u8 = 8;
    const IMAGES: u8 = 6;
    let here = tempfile::tempdir().unwrap();
    let tag = |writer: u8, number: u8| {
        let tag = format!("t{writer}-{number}");
        Layout::new(here.path().join("l"), Some(tag))
    };
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let tag = &tag;
            scope.spawn(move || {
                for number in 0..IMAGES {
                    let layout = tag(writer, number);
                    write(&layout, b"shared");
                    image(&layout, &[Blob::plain(&[writer, number])]);
                }
            });
        }
    });
    for writer in 0..WRITERS {
        for number in 0..IMAGES {
            let layout = tag(writer, number);
            let layer = document(&layout)["layers"][0]["digest"].clone();
            let layer: Digest = layer.as_str().unwrap().parse().unwrap();
            layout.small_blob(&layer, 2).unwrap();
        }
    }
}

/// The blob is another image's by the time the run fails.
#[test]
fn a_run_that_fails_takes_no_blob_from_another_one() {
    let here = tempfile::tempdir().unwrap();
    let (one, other) = (layout(&here, "l"), layout(&here, "l"));
    write(&one, b"shared");
    image(&other, &[Blob::plain(b"shared")]);
    drop(one);
    other.small_blob(&Digest::of(b"shared"), 10).unwrap();
}
