//! Pulls of whole images through the mirror: what the registry is still asked for, and what a lying host achieves.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use image_rs::registry::{AuthFile, NodeMirror, Reach, RegistryConfig, Share};
use image_rs::{Digest, Policy, PullConfig, Puller};
use ocicrypt::{Key, KeyError, KeySource};
use shim::mirror::Store;
use transport::{Dial, Roots, TcpDial, Timeouts};

use crate::host::{Host, ROOMY, content};
use crate::liar::{LIES, Liar, Lie};
use crate::registry::{Image, Registry};

/// How long an offer may take to arrive after its pull.
const ARRIVAL: Duration = Duration::from_secs(30);

struct NoKeys;

#[async_trait]
impl KeySource for NoKeys {
    async fn key(&self, key_id: &str) -> Result<Key, KeyError> {
        panic!("no key is needed, and {key_id} is asked for")
    }
}

/// A guest of one pod.
struct Guest {
    registry: image_rs::registry::Registry,
    image: image_rs::Reference,
}

impl Guest {
    fn new(registry: &Registry, mirror: Option<(Arc<dyn Dial>, Share, Timeouts)>) -> Self {
        let image = registry.image();
        let auth = format!(
            r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNzd29yZA=="}}}}}}"#,
            image.registry()
        );
        let config = RegistryConfig {
            insecure: ["127.0.0.1".to_owned()].into(),
            auth: AuthFile::from_json(auth.as_bytes()).unwrap(),
            ..RegistryConfig::default()
        };
        let reach = Reach::new(Roots::web());
        let client = image_rs::registry::Registry::open(Arc::new(TcpDial), &reach, config);
        let mut registry = client.unwrap();
        if let Some((dial, share, timeouts)) = mirror {
            let mirror = NodeMirror::with_timeouts(dial, share, timeouts);
            registry = registry.with_node_mirror(mirror.unwrap());
        }
        Self { registry, image }
    }

    /// One that an honest host serves.
    fn on(registry: &Registry, host: &Host, share: Share) -> Self {
        let dial = Arc::new(host.clone());
        Self::new(registry, Some((dial, share, NodeMirror::TIMEOUTS)))
    }

    async fn pull(&self, image: &Image) {
        let place = tempfile::tempdir().unwrap();
        let mut config = PullConfig::new(Policy::accept_anything());
        config.ownership = image_rs::unpack::Ownership::Caller;
        let puller = Puller::new(config, self.registry.clone(), Arc::new(NoKeys));
        let target = place.path().join("rootfs");
        let pulled = puller.pull(&self.image, &target).await;
        pulled.unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(std::fs::read(target.join("marker")).unwrap(), image.marker);
    }
}

async fn wait_for(directory: &Path, digests: &[&Digest]) {
    let store = Store::open(directory, ROOMY).unwrap();
    let since = Instant::now();
    let is_whole = |digest: &&Digest| {
        let found = store.read(digest).unwrap();
        found.is_some_and(|reading| reading.length().is_some())
    };
    while !digests.iter().all(is_whole) {
        assert!(since.elapsed() < ARRIVAL, "the mirror was not filled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[expect(clippy::ptr_arg, reason = "it is what an iterator over texts calls")]
fn is_blob(path: &String) -> bool {
    path.contains("/blobs/")
}

#[tokio::test]
async fn the_second_pull_asks_the_registry_for_no_blob() {
    let place = tempfile::tempdir().unwrap();
    let image = Image::new(&content(1, 3_000_000));
    let registry = Registry::with(&image).await;
    let first = Guest::on(&registry, &Host::with(place.path(), ROOMY), Share::All);
    first.pull(&image).await;
    let asked = registry.take_log();
    assert_eq!(
        asked.iter().filter(|path| is_blob(path)).count(),
        2,
        "{asked:?}"
    );
    wait_for(place.path(), &[&image.config, &image.layer]).await;
    let second = Guest::on(&registry, &Host::with(place.path(), ROOMY), Share::All);
    second.pull(&image).await;
    // The tag is still the registry's to resolve.
    assert_eq!(registry.take_log(), ["/v2/team/app/manifests/v1"]);
}

#[tokio::test]
async fn a_host_that_keeps_no_mirror_is_asked_once_and_missed_by_nobody() {
    let image = Image::new(&content(1, 100_000));
    let registry = Registry::with(&image).await;
    let host = Host::without();
    let guest = Guest::on(&registry, &host, Share::All);
    guest.pull(&image).await;
    guest.pull(&image).await;
    assert_eq!(host.times_dialled(), 1);
}

#[tokio::test]
async fn of_what_is_not_encrypted_a_careful_guest_says_nothing() {
    let place = tempfile::tempdir().unwrap();
    let image = Image::new(&content(1, 100_000));
    let registry = Registry::with(&image).await;
    let host = Host::with(place.path(), ROOMY);
    Guest::on(&registry, &host, Share::Encrypted)
        .pull(&image)
        .await;
    assert_eq!(host.times_dialled(), 0);
}

#[tokio::test]
async fn an_encrypted_layer_is_shared_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    // As the stream sees it, any bytes are ciphertext.
    let image = Image::new(&content(1, 2_000_000));
    let registry = Registry::with(&image).await;
    for asked in [1, 0] {
        let host = Host::with(place.path(), ROOMY);
        let guest = Guest::on(&registry, &host, Share::Encrypted);
        let size = image.layer_bytes.len() as u64;
        let blob = guest.registry.blob(&guest.image, &image.layer, size);
        let mut blob = blob.encrypted();
        let mut all = Vec::new();
        while let Some(piece) = blob.next().await.unwrap() {
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, image.layer_bytes);
        assert_eq!(registry.take_log().len(), asked);
        wait_for(place.path(), &[&image.layer]).await;
    }
}

#[tokio::test]
async fn a_reader_that_gives_up_leaves_nothing_in_the_mirror() {
    let place = tempfile::tempdir().unwrap();
    let image = Image::new(&content(1, 3_000_000));
    let registry = Registry::with(&image).await;
    let host = Host::with(place.path(), ROOMY);
    let guest = Guest::on(&registry, &host, Share::All);
    let size = image.layer_bytes.len() as u64;
    let mut blob = guest.registry.blob(&guest.image, &image.layer, size);
    blob.next().await.unwrap();
    let fill = place.path().join("fill");
    let is_filling = || std::fs::read_dir(&fill).is_ok_and(|mut list| list.next().is_some());
    let since = Instant::now();
    while !is_filling() {
        assert!(since.elapsed() < ARRIVAL, "nothing was offered");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(blob);
    while is_filling() {
        assert!(since.elapsed() < ARRIVAL, "the offer stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        Store::open(place.path(), ROOMY)
            .unwrap()
            .read(&image.layer)
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn whatever_the_host_does_the_image_is_the_registrys() {
    for lie in LIES {
        let image = Image::new(&content(1, 300_000));
        let registry = Registry::with(&image).await;
        let liar = Liar::new(lie, &image.layer_bytes);
        let told = Told::default();
        let listening = tracing::subscriber::set_default(told.clone());
        let brief = Duration::from_secs(1);
        let timeouts = Timeouts {
            dial: brief,
            tls: brief,
            head: brief,
            body: brief,
        };
        let guest = Guest::new(
            &registry,
            Some((Arc::new(liar.clone()), Share::All, timeouts)),
        );
        guest.pull(&image).await;
        drop(listening);
        let asked = registry.take_log();
        assert!(
            asked.iter().any(|path| path.contains("/manifests/v1")),
            "{lie:?}"
        );
        let layer = format!("/v2/team/app/blobs/{}", image.layer);
        assert!(asked.contains(&layer), "{lie:?}: {asked:?}");
        // Blobs are all that it is asked for, without a name or credentials.
        let requests = liar.asked();
        let layer = image.layer.to_string();
        assert!(
            requests.iter().any(|request| request.contains(&layer)),
            "{lie:?}"
        );
        for request in requests {
            let path = request.split_once(' ').map(|(_, rest)| rest).unwrap();
            let is_plain = (path.starts_with("/v2/blob/blobs/sha256:")
                || path.starts_with("/v2/blob/blobs/uploads/?digest=sha256:"))
                && !request.to_lowercase().contains("authorization")
                && !request.contains("team");
            assert!(is_plain, "{lie:?}: {request}");
        }
        // Whether a size is the mirror's fault or the manifest's, nobody knows.
        let is_size = matches!(lie, Lie::Shortened | Lie::Lengthened);
        let passed = told.has("the node's mirror is passed by")
            || is_size && told.has("the next place is asked");
        assert!(passed, "{lie:?}: {:?}", told.0);
    }
}

#[tokio::test]
async fn a_mirror_that_lies_again_and_again_is_not_asked_any_more() {
    let image = Image::new(&content(1, 100_000));
    let registry = Registry::with(&image).await;
    let liar = Liar::new(Lie::Flipped, &image.layer_bytes);
    let dial = Arc::new(liar.clone());
    let guest = Guest::new(&registry, Some((dial, Share::All, NodeMirror::TIMEOUTS)));
    // It rests after each lie; the clock is turned on, so that it is asked again.
    let size = image.layer_bytes.len() as u64;
    for _ in 0..6 {
        let mut blob = guest.registry.blob(&guest.image, &image.layer, size);
        while blob.next().await.unwrap().is_some() {}
        let _ = blob.refuse(Digest::of(b"what came"));
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(3600)).await;
        tokio::time::resume();
    }
    assert_eq!(liar.asked().len(), 3);
}

/// What is told while it is listened to.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<String>>);

impl Told {
    fn has(&self, words: &str) -> bool {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.contains(words)
    }
}

impl tracing::field::Visit for Told {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(text, "{}: {value:?}", field.name());
    }
}

impl tracing::Subscriber for Told {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
