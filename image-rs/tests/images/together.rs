//! Pulls that are watched, cancelled, or run at the same time as others that need the same.

use crate::gate;
use crate::room;

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gate::Gate;
use image_rs::pull::{Progress, PullPhase};
use image_rs::{Policy, PullConfig, PullError, Pulled, Puller, Reference};
use room::{LayerBuilder, NoKeys, Pack, Room, push_image, read};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const LAYER_BYTES: usize = 4 << 20;
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pull of its own, and how far it is.
struct Running {
    pull: JoinHandle<Result<Pulled, PullError>>,
    progress: watch::Receiver<Progress>,
}

impl Running {
    fn start(puller: &Puller, image: Reference, target: PathBuf) -> Self {
        let (sender, progress) = watch::channel(Progress::default());
        let puller = puller.clone();
        let pull = tokio::spawn(async move { puller.pull_watched(&image, &target, sender).await });
        Self { pull, progress }
    }

    async fn until(&mut self, what: impl FnMut(&Progress) -> bool) {
        let until = self.progress.wait_for(what);
        let _ = tokio::time::timeout(PATIENCE, until)
            .await
            .unwrap()
            .unwrap();
    }

    async fn end(self) -> Pulled {
        tokio::time::timeout(PATIENCE, self.pull)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }
}

fn puller(room: &Room) -> Puller {
    let config = PullConfig::new(Policy::accept_anything());
    room.puller_with(config, Arc::new(NoKeys))
}

/// Bytes that are the same each time, and that no two places of a layer share.
fn content(seed: u32) -> String {
    let mut text = String::new();
    for line in 0.. {
        writeln!(text, "{seed} {line}").unwrap();
        if text.len() > LAYER_BYTES {
            break;
        }
    }
    text
}

fn layer(seed: u32) -> Vec<u8> {
    LayerBuilder::new()
        .dir("d")
        .file("d/large", &content(seed))
        .file(&format!("own-{seed}"), "1")
        .symlink("link", "d/large")
        .hard_link("d/hard", "d/large")
        .finish()
}

#[tokio::test]
async fn progress_tells_each_phase_and_every_byte() {
    let Some(room) = Room::open().await else {
        return;
    };
    let layers = [(layer(1), Pack::Plain), (layer(2), Pack::Gzip)];
    let digests = push_image(&room.image("p:1"), &layers, None).await;
    let gate = Gate::start(room.port).await;
    let mut running = Running::start(&puller(&room), gate.image("p:1"), room.path("root-p"));
    running.until(|now| now.fetched() > 0).await;
    let now = running.progress.borrow().clone();
    assert_eq!(now.phase, PullPhase::Layers);
    let told: Vec<_> = now
        .layers
        .iter()
        .map(|layer| layer.digest.clone())
        .collect();
    assert_eq!(told, digests);
    assert!(now.fetched() < now.size());
    gate.open();
    let mut progress = running.progress.clone();
    let pulled = running.end().await;
    let now = progress.borrow_and_update().clone();
    assert_eq!(now.phase, PullPhase::Done);
    assert!(now.layers.iter().all(|layer| layer.done));
    assert_eq!(
        (now.fetched(), now.size()),
        (pulled.compressed_bytes, pulled.compressed_bytes)
    );
}

#[tokio::test]
async fn a_cancelled_pull_leaves_nothing() {
    let Some(room) = Room::open().await else {
        return;
    };
    let layers = [(layer(1), Pack::Plain), (layer(2), Pack::Plain)];
    push_image(&room.image("c:1"), &layers, None).await;
    let gate = Gate::start(room.port).await;
    let store = room.path("store-of-cancelled");
    std::fs::create_dir(&store).unwrap();
    let mut running = Running::start(&puller(&room), gate.image("c:1"), store.join("root"));
    running.until(|now| now.fetched() > 0).await;
    assert_ne!(std::fs::read_dir(&store).unwrap().count(), 0);
    running.pull.abort();
    let empty = async {
        while std::fs::read_dir(&store).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.unwrap();
}

#[tokio::test]
async fn pulls_of_one_image_join_in_one_fetch() {
    let Some(room) = Room::open().await else {
        return;
    };
    let digests = push_image(&room.image("j:1"), &[(layer(1), Pack::Plain)], None).await;
    let gate = Gate::start(room.port).await;
    let puller = puller(&room);
    let mut first = Running::start(&puller, gate.image("j:1"), room.path("root-1"));
    first.until(|now| now.fetched() > 0).await;
    let mut second = Running::start(&puller, gate.image("j:1"), room.path("root-2"));
    second.until(|now| now.fetched() > 0).await;
    gate.open();
    let (first, second) = (first.end().await.rootfs, second.end().await.rootfs);
    assert_eq!(gate.asked(&format!("blobs/{}", digests[0])), 1);
    for root in [&first, &second] {
        assert_eq!(read(root, "link"), content(1));
        let inode = |name: &str| std::fs::metadata(root.join(name)).unwrap().ino();
        assert_eq!(
            inode("d/hard"),
            inode("d/large"),
            "names of one file stay so"
        );
        let times = std::fs::symlink_metadata(root.join("link")).unwrap();
        assert_eq!(times.mtime(), 1_000_000_000);
    }
    std::fs::write(first.join("d/large"), "changed").unwrap();
    assert_eq!(
        read(&second, "d/large"),
        content(1),
        "each has files of its own"
    );
    room_is_tidy(&room);
}

#[tokio::test]
async fn who_joined_goes_on_when_the_first_is_cancelled() {
    let Some(room) = Room::open().await else {
        return;
    };
    let digests = push_image(&room.image("g:1"), &[(layer(1), Pack::Plain)], None).await;
    let gate = Gate::start(room.port).await;
    let puller = puller(&room);
    let mut first = Running::start(&puller, gate.image("g:1"), room.path("root-1"));
    first.until(|now| now.fetched() > 0).await;
    let mut second = Running::start(&puller, gate.image("g:1"), room.path("root-2"));
    second.until(|now| now.fetched() > 0).await;
    first.pull.abort();
    gate.open();
    let second = second.end().await.rootfs;
    assert_eq!(gate.asked(&format!("blobs/{}", digests[0])), 2);
    assert_eq!(read(&second, "d/large"), content(1));
    room_is_tidy(&room);
}

#[tokio::test]
async fn images_that_share_a_layer_fetch_it_once() {
    let Some(room) = Room::open().await else {
        return;
    };
    let (base, a, b) = (layer(1), layer(2), layer(3));
    let layers = |top: Vec<u8>| [(base.clone(), Pack::Gzip), (top, Pack::Gzip)];
    let digests = push_image(&room.image("a:1"), &layers(a), None).await;
    push_image(&room.image("b:1"), &layers(b), None).await;
    let gate = Gate::start(room.port).await;
    // The base of the first is on its way for as long as the gate is closed.
    let config = PullConfig {
        concurrency: 4.try_into().unwrap(),
        ..PullConfig::new(Policy::accept_anything())
    };
    let puller = room.puller_with(config, Arc::new(NoKeys));
    let mut first = Running::start(&puller, gate.image("a:1"), room.path("root-1"));
    first
        .until(|now| now.layers.iter().all(|l| l.fetched > 0) && !now.layers.is_empty())
        .await;
    let mut second = Running::start(&puller, gate.image("b:1"), room.path("root-2"));
    second
        .until(|now| now.layers.first().is_some_and(|l| l.fetched > 0))
        .await;
    gate.open();
    let (first, second) = (first.end().await.rootfs, second.end().await.rootfs);
    assert_eq!(gate.asked(&format!("blobs/{}", digests[0])), 1);
    assert_eq!(read(&first, "d/large"), content(2));
    assert_eq!(read(&second, "d/large"), content(3));
    assert!(second.join("own-1").exists() && !second.join("own-2").exists());
}

#[tokio::test]
async fn a_layer_that_an_image_has_twice_is_fetched_once() {
    let Some(room) = Room::open().await else {
        return;
    };
    let (base, other) = (layer(1), layer(2));
    let empty = LayerBuilder::new().finish();
    let layers = [&base, &empty, &other, &base, &empty].map(|tar| (tar.clone(), Pack::Gzip));
    let digests = push_image(&room.image("t:1"), &layers, None).await;
    let gate = Gate::start(room.port).await;
    gate.open();
    let puller = room.puller(Arc::new(NoKeys));
    let (image, target) = (gate.image("t:1"), room.path("root-t"));
    let root = puller.pull(&image, &target).await.unwrap().rootfs;
    for digest in &digests {
        assert_eq!(gate.asked(&format!("blobs/{digest}")), 1);
    }
    // The one that is there twice comes last, too.
    assert_eq!(read(&root, "d/large"), content(1));
    assert!(root.join("own-1").exists() && root.join("own-2").exists());
    room_is_tidy(&room);
}

/// What pulls work in is gone, also that of one that was cancelled.
fn room_is_tidy(room: &Room) {
    let names = std::fs::read_dir(room.directory.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names.filter(|name| name.starts_with(".pull-")).collect();
    assert!(left.is_empty(), "{left:?}");
}
