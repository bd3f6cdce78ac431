//! Layers that are kept: an image that comes later fetches and unpacks only what is new.

use crate::gate;
use crate::overlay;
use crate::room;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gate::Gate;
use image_rs::manifest::Platform;
use image_rs::pull::Shared;
use image_rs::recrypt::{self, Recipients, Report};
use image_rs::{
    Digest, LayerError, Place, Policy, PullConfig, PullError, Pulled, Puller, Reference,
};
use ocicrypt::{Key, KeyError, KeySource};
use overlay::{Overlay, can_mount};
use room::{LayerBuilder, NoKeys, Pack, Room, layer_error, push_image, read, run};
use serde_json::Value;

const KID: &str = "kbs:///default/image-key/1";

/// A registry that counts, and the pulls of one pod.
struct Pod {
    room: Room,
    gate: Gate,
    shared: Shared,
    puller: Puller,
}

impl Pod {
    async fn open() -> Option<Self> {
        Self::with(Arc::new(NoKeys), |room| room.path("pod")).await
    }

    async fn with(keys: Arc<dyn KeySource>, home: impl Fn(&Room) -> PathBuf) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let room = Room::open().await?;
        let gate = Gate::start(room.port).await;
        gate.open();
        let home = home(&room);
        let _ = std::fs::create_dir(&home);
        let config = PullConfig::new(Policy::accept_anything());
        let shared = Shared::new(config.concurrency).keeping(home);
        let puller = room.puller_with(config, keys).sharing(&shared);
        Some(Self {
            room,
            gate,
            shared,
            puller,
        })
    }

    async fn pull(&self, name: &str, target: &Path) -> Result<Pulled, PullError> {
        self.puller.pull(&self.gate.image(name), target).await
    }

    async fn push(&self, name: &str, layers: &[&[u8]]) -> Vec<Digest> {
        let layers: Vec<_> = layers
            .iter()
            .map(|tar| (tar.to_vec(), Pack::Gzip))
            .collect();
        push_image(&self.room.image(name), &layers, None).await
    }

    fn fetched(&self, digest: &Digest) -> usize {
        self.gate.asked(&format!("blobs/{digest}"))
    }

    /// What is in the store besides images.
    fn kept(&self) -> usize {
        count(&self.room.path("pod"))
    }
}

fn count(home: &Path) -> usize {
    let names = std::fs::read_dir(home).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let hidden: Vec<_> = names.filter(|name| name.starts_with('.')).collect();
    assert!(
        hidden.iter().all(|name| name.starts_with(".layer-")),
        "{hidden:?}"
    );
    hidden.len()
}

fn mount(pulled: &Pulled) -> Overlay {
    Overlay::mount(
        [pulled.rootfs.as_path()]
            .into_iter()
            .chain(pulled.layers.paths()),
    )
}

fn layer(name: &str, content: &str) -> Vec<u8> {
    LayerBuilder::new()
        .dir("d")
        .file(&format!("d/{name}"), content)
        .finish()
}

#[tokio::test]
async fn an_image_that_comes_later_fetches_only_what_is_new() {
    let Some(pod) = Pod::open().await else {
        return;
    };
    let (base, one, two) = (
        layer("base", "b"),
        layer("one", "1"),
        layer("base", "other"),
    );
    let first = pod.push("a:1", &[&base, &one]).await;
    let second = pod.push("b:1", &[&base, &two]).await;
    let place = |name: &str| pod.room.path("pod").join(name);
    let a = pod.pull("a:1", &place("a")).await.unwrap();
    let b = pod.pull("b:1", &place("b")).await.unwrap();
    assert_eq!(first[0], second[0]);
    for digest in first.iter().chain(&second) {
        assert_eq!(pod.fetched(digest), 1);
    }
    let last = |pulled: &Pulled| pulled.layers.paths().last().map(Path::to_owned);
    assert_eq!(last(&a), last(&b), "one directory serves both");
    assert_eq!(pod.kept(), 3);
    let (a, b) = (mount(&a), mount(&b));
    assert_eq!(
        (
            read(a.path(), "d/base").as_str(),
            read(a.path(), "d/one").as_str()
        ),
        ("b", "1")
    );
    assert_eq!(read(b.path(), "d/base"), "other");
    assert!(!b.path().join("d/one").exists());
}

#[tokio::test]
async fn the_same_image_again_fetches_no_layer_but_is_looked_at_again() {
    let Some(pod) = Pod::open().await else {
        return;
    };
    let through_a_link = LayerBuilder::new().file("link/more", "2").finish();
    let base = LayerBuilder::new()
        .dir("d")
        .file("d/base", "1")
        .symlink("link", "d")
        .finish();
    let plain = pod.push("p:1", &[&base]).await;
    let merged = pod.push("m:1", &[&base, &through_a_link]).await;
    for (name, digests) in [("p:1", plain), ("m:1", merged)] {
        for time in 1..=2 {
            let target = pod.room.path("pod").join(format!("{}-{time}", &name[..1]));
            let pulled = pod.pull(name, &target).await.unwrap();
            let root = mount(&pulled);
            assert_eq!(read(root.path(), "link/base"), "1");
            assert_eq!(root.path().join("d/more").exists(), name == "m:1");
        }
        for digest in &digests {
            assert_eq!(pod.fetched(digest), 1, "{name}");
        }
        assert_eq!(pod.gate.asked(&format!("/{}/manifests/1", &name[..1])), 2);
    }
}

#[tokio::test]
async fn pulls_at_the_same_time_share_a_layer_too() {
    let Some(pod) = Pod::open().await else {
        return;
    };
    let base = layer("base", &"b".repeat(1 << 20));
    let digests = pod.push("s:1", &[&base, &base]).await;
    let place = |name: &str| pod.room.path("pod").join(name);
    let (one, two) = (place("one"), place("two"));
    let (one, two) = tokio::join!(pod.pull("s:1", &one), pod.pull("s:1", &two));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(pod.fetched(&digests[0]), 1);
    assert_eq!(pod.kept(), 1);
    for pulled in [&one, &two] {
        assert_eq!(pulled.layers.paths().count(), 1);
        assert_eq!(read(mount(pulled).path(), "d/base").len(), 1 << 20);
    }
}

#[tokio::test]
async fn a_pull_that_fails_leaves_no_layer() {
    let Some(pod) = Pod::open().await else {
        return;
    };
    let (good, bad) = (layer("good", "1"), layer("bad", "2"));
    let layers = [(good.clone(), Pack::Gzip), (bad, Pack::Gzip)];
    push_image(&pod.room.image("f:1"), &layers, Some(Digest::of(&good))).await;
    let target = pod.room.path("pod").join("f");
    let error = layer_error(pod.pull("f:1", &target).await.unwrap_err());
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    assert_eq!(std::fs::read_dir(pod.room.path("pod")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_nobody_uses_makes_room_and_what_is_in_use_stays() {
    let home = |room: &Room| {
        let small = room.path("small");
        std::fs::create_dir(&small).unwrap();
        let at = small.to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=10m", "none", at]);
        small
    };
    let Some(pod) = Pod::with(Arc::new(NoKeys), home).await else {
        return;
    };
    let small = pod.room.path("small");
    // Compressed to nothing, so that want of room shows only in the middle.
    let large = |name: &str| layer(name, &name.repeat(6 << 20));
    let mut digests = Vec::new();
    for name in ["x", "y", "z"] {
        digests.extend(pod.push(&format!("{name}:1"), &[&large(name)]).await);
    }
    drop(pod.pull("x:1", &small.join("x")).await.unwrap());
    assert_eq!(count(&small), 1);
    let y = pod.pull("y:1", &small.join("y")).await.unwrap();
    assert_eq!(count(&small), 1, "x made room");
    let error = pod.pull("z:1", &small.join("z")).await.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { .. }), "{error}");
    assert_eq!(read(mount(&y).path(), "d/y").len(), 6 << 20);
    drop(y);
    pod.pull("z:1", &small.join("z")).await.unwrap();
    assert_eq!(pod.fetched(&digests[0]), 1);
    pod.pull("x:1", &small.join("x-again")).await.unwrap();
    assert!(pod.fetched(&digests[0]) > 1);
    drop((pod.puller, pod.shared));
    assert_eq!(count(&small), 0, "nothing outlives the pod");
    run("umount", &["-l", small.to_str().unwrap()]);
}

/// A broker with one key, or none.
struct Broker(Option<[u8; 32]>);

#[async_trait]
impl KeySource for Broker {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        let found = self.0.filter(|_| kid == KID);
        found
            .map(|key| Key::new(key.to_vec()))
            .ok_or_else(|| KeyError::NotFound {
                kid: kid.to_owned(),
            })
    }
}

async fn manifest(room: &Room, image: &Reference) -> Value {
    let raw = room.registry().manifest(image).await.unwrap();
    serde_json::from_slice(&raw.bytes).unwrap()
}

#[tokio::test]
async fn an_encrypted_layer_is_shared_only_with_who_opens_it() {
    let Some(pod) = Pod::with(Arc::new(Broker(Some([7; 32]))), |room| room.path("pod")).await
    else {
        return;
    };
    pod.push("plain:1", &[&layer("secret", "s")]).await;
    let place = |name: &str| Place::Registry(pod.room.registry(), pod.room.image(name));
    let to_whom = Recipients {
        broker: vec![(KID.to_owned(), Key::new(vec![7; 32]))],
        ..Recipients::default()
    };
    let quiet: Report = Arc::new(|_| {});
    for name in ["enc:1", "enc:2"] {
        let platform = Platform::host();
        recrypt::encrypt(&place("plain:1"), &place(name), &platform, &to_whom, &quiet)
            .await
            .unwrap();
    }
    let target = |name: &str| pod.room.path("pod").join(name);
    let first = pod.pull("enc:1", &target("first")).await.unwrap();
    let again = pod.pull("enc:1", &target("again")).await.unwrap();
    assert_eq!(read(mount(&again).path(), "d/secret"), "s");
    let one = manifest(&pod.room, &pod.room.image("enc:1")).await;
    let digest: Digest = one["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(pod.fetched(&digest), 1);

    // Its digest, with a key that was made for another layer.
    let mut forged = manifest(&pod.room, &pod.room.image("enc:2")).await;
    for member in ["digest", "size"] {
        forged["layers"][0][member] = one["layers"][0][member].clone();
    }
    let bytes = Bytes::from(forged.to_string());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let image = pod.room.image("enc:forged");
    pod.room
        .registry()
        .push_manifest(&image, media_type, bytes)
        .await
        .unwrap();
    let error = layer_error(pod.pull("enc:forged", &target("forged")).await.unwrap_err());
    assert!(matches!(error, LayerError::Cipher(_)), "{error}");

    // The same image where the broker does not release the key.
    let puller = pod.room.puller(Arc::new(Broker(None))).sharing(&pod.shared);
    let image = pod.gate.image("enc:1");
    let refused = puller.pull(&image, &target("refused")).await.unwrap_err();
    assert!(matches!(refused, PullError::Keys { .. }), "{refused}");
    assert_eq!(read(mount(&first).path(), "d/secret"), "s");
}
