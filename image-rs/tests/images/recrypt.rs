//! Encryption and decryption between places: every kind of layer, archives, key providers, and what a failure leaves.

use crate::room;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use image_rs::manifest::Platform;
use image_rs::place::Place;
use image_rs::recrypt::{self, ProviderRecipient, Recipients, RecryptError, Report};
use image_rs::{Digest, inspect};
use ocicrypt::keyprovider::{Address, Endpoint, Listener, Provider, serve_grpc};
use ocicrypt::packet::Format;
use ocicrypt::{Key, KeyError, KeySource, media_type};
use room::{LayerBuilder, NoKeys, Pack, Room, need_tool, pack, push_image, read, run};
use serde_json::{Value, json};

const KID: &str = "kbs:///default/image-key/1";
const OTHER: &str = "kbs:///default/image-key/2";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A broker that counts what it is asked.
#[derive(Default)]
struct Counting {
    keys: HashMap<&'static str, [u8; 32]>,
    asked: Mutex<BTreeMap<String, usize>>,
}

impl Counting {
    fn new(keys: &[(&'static str, [u8; 32])]) -> Arc<Self> {
        Arc::new(Self {
            keys: keys.iter().copied().collect(),
            ..Self::default()
        })
    }
}

#[async_trait]
impl KeySource for Counting {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        *self
            .asked
            .lock()
            .unwrap()
            .entry(kid.to_owned())
            .or_default() += 1;
        let found = self.keys.get(kid).map(|key| Key::new(key.to_vec()));
        found.ok_or_else(|| KeyError::NotFound {
            kid: kid.to_owned(),
        })
    }
}

fn quiet() -> Report {
    Arc::new(|_| {})
}

fn place(room: &Room, name: &str) -> Place {
    Place::Registry(room.registry(), room.image(name))
}

fn recipients(keys: &[(&str, [u8; 32])]) -> Recipients {
    let broker = keys.iter();
    Recipients {
        broker: broker
            .map(|(kid, key)| ((*kid).to_owned(), Key::new(key.to_vec())))
            .collect(),
        ..Recipients::default()
    }
}

async fn encrypt(from: &Place, to: &Place, to_whom: &Recipients) -> Result<Digest, RecryptError> {
    recrypt::encrypt(from, to, &Platform::host(), to_whom, &quiet()).await
}

async fn decrypt(from: &Place, to: &Place, keys: &dyn KeySource) -> Result<Digest, RecryptError> {
    recrypt::decrypt(from, to, &Platform::host(), keys, &quiet()).await
}

async fn manifest(room: &Room, name: &str) -> Value {
    let raw = room.registry().manifest(&room.image(name)).await.unwrap();
    serde_json::from_slice(&raw.bytes).unwrap()
}

async fn put(to: &Place, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut blob = to.start_blob().await.unwrap();
    blob.write(bytes).await.unwrap();
    blob.finish(&digest).await.unwrap();
    digest
}

/// One layer of each type that an image may have, each with a file of its own. In a layout, because a registry takes no
/// layers that lie elsewhere. Gives the manifest as well.
async fn every_type(room: &Room) -> (Place, Value) {
    let text = format!("oci:{}:v1", room.path("plain").display());
    let plain = Place::parse(&text, &room.registry()).unwrap();
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (index, media_type) in media_type::layers().enumerate() {
        let tar = LayerBuilder::new()
            .file(&format!("f{index}"), media_type)
            .finish();
        let how = match media_type::parse(media_type).unwrap().compression {
            media_type::Compression::None => Pack::Plain,
            media_type::Compression::Gzip => Pack::GzipMembers,
            media_type::Compression::Zstd => Pack::ZstdFrames,
        };
        let blob = pack(&tar, how).0;
        let digest = put(&plain, &blob).await;
        let mut layer = json!({"mediaType": media_type, "digest": digest, "size": blob.len()});
        if media_type.contains("foreign") || media_type.contains("nondistributable") {
            layer["urls"] = json!(["https://registry.example/blob"]);
        }
        layers.push(layer);
        diff_ids.push(Digest::of(&tar));
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string();
    let digest = put(&plain, config.as_bytes()).await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest, "size": config.len(),
        },
    });
    let bytes = Bytes::from(manifest.to_string());
    plain.write_manifest(MANIFEST, bytes).await.unwrap();
    (plain, manifest)
}

fn assert_every_file(root: &Path) {
    for (index, media_type) in media_type::layers().enumerate() {
        assert_eq!(read(root, &format!("f{index}")), media_type);
    }
}

#[tokio::test]
async fn every_type_of_layer_is_encrypted_pulled_and_decrypted() {
    let Some(room) = Room::open().await else {
        return;
    };
    let (plain, before) = every_type(&room).await;
    let count = before["layers"].as_array().unwrap().len();
    let (sealed, opened) = (place(&room, "sealed:1"), place(&room, "opened:1"));
    encrypt(&plain, &sealed, &recipients(&[(KID, [7; 32])]))
        .await
        .unwrap();
    let document = manifest(&room, "sealed:1").await;
    for layer in document["layers"].as_array().unwrap() {
        let name = layer["mediaType"].as_str().unwrap();
        assert!(
            name.starts_with("application/vnd.oci.") && name.ends_with("+encrypted"),
            "{name}"
        );
        // What lies there is not what the layer has become.
        assert!(layer.get("urls").is_none(), "{layer}");
    }
    let keys = Counting::new(&[(KID, [7; 32])]);
    let puller = room.puller(keys.clone());
    let pulled = puller
        .pull(&room.image("sealed:1"), &room.path("root-sealed"))
        .await
        .unwrap();
    assert_eq!(pulled.encrypted_layers, count);
    assert_every_file(&pulled.rootfs);
    assert_eq!(
        keys.asked.lock().unwrap()[KID],
        1,
        "one question for {count} layers"
    );

    decrypt(&sealed, &opened, &*keys).await.unwrap();
    let after = manifest(&room, "opened:1").await;
    for index in 0..count {
        let (before, after) = (&before["layers"][index], &after["layers"][index]);
        assert_eq!(before["digest"], after["digest"]);
        assert!(after.get("annotations").is_none(), "{after}");
    }
    assert_every_file(&room.pull("opened:1").await.unwrap().rootfs);
}

/// Other writers keep Docker's types, in a manifest of either kind.
#[tokio::test]
async fn dockers_encrypted_types_are_pulled() {
    let Some(room) = Room::open().await else {
        return;
    };
    let (plain, _) = every_type(&room).await;
    let sealed = place(&room, "sealed:1");
    encrypt(&plain, &sealed, &recipients(&[(KID, [7; 32])]))
        .await
        .unwrap();
    let mut document = manifest(&room, "sealed:1").await;
    for (layer, name) in document["layers"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .zip(media_type::layers())
    {
        layer["mediaType"] = media_type::encrypted(name).into();
    }
    for (tag, kind) in [("oci", MANIFEST), ("docker", DOCKER_MANIFEST)] {
        let (registry, image) = (room.registry(), room.image(&format!("sealed:{tag}")));
        document["mediaType"] = kind.into();
        let bytes = Bytes::from(document.to_string());
        registry.push_manifest(&image, kind, bytes).await.unwrap();
        let puller = room.puller(Counting::new(&[(KID, [7; 32])]));
        let pulled = puller
            .pull(&image, &room.path(&format!("root-{tag}")))
            .await;
        assert_every_file(&pulled.unwrap().rootfs);
    }
}

#[tokio::test]
async fn several_keys_are_asked_for_once_each_and_any_of_them_opens() {
    let Some(room) = Room::open().await else {
        return;
    };
    let (plain, _) = every_type(&room).await;
    let both = recipients(&[(KID, [7; 32]), (OTHER, [8; 32])]);
    encrypt(&plain, &place(&room, "sealed:1"), &both)
        .await
        .unwrap();
    for (index, keys) in [
        [(KID, [7; 32]), (OTHER, [8; 32])].as_slice(),
        &[(KID, [7; 32])],
        &[(OTHER, [8; 32])],
    ]
    .into_iter()
    .enumerate()
    {
        let keys = Counting::new(keys);
        let puller = room.puller(keys.clone());
        let target = room.path(&format!("root-{index}"));
        let pulled = puller.pull(&room.image("sealed:1"), &target).await;
        assert_every_file(&pulled.unwrap().rootfs);
        let asked = keys.asked.lock().unwrap().clone();
        assert_eq!(asked.into_values().collect::<Vec<_>>(), [1, 1]);
    }
}

#[tokio::test]
async fn a_key_provider_wraps_for_the_image_and_its_key_opens_it() {
    let Some(room) = Room::open().await else {
        return;
    };
    let (plain, _) = every_type(&room).await;
    let socket = room.path("provider");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let provider = Arc::new(Provider {
        name: None,
        kid: None,
        kek: Some(Key::new(vec![7; 32])),
        read_key: |_| Err("no file".to_owned()),
    });
    let serving = tokio::spawn(serve_grpc(Listener::Unix(listener), provider));
    let to = Recipients {
        providers: vec![ProviderRecipient {
            name: "own".to_owned(),
            words: format!("keyid={KID}"),
            endpoint: Endpoint::Grpc(Address::Unix(socket)),
        }],
        ..Recipients::default()
    };
    let sealed = place(&room, "sealed:1");
    encrypt(&plain, &sealed, &to).await.unwrap();
    let puller = room.puller(Counting::new(&[(KID, [7; 32])]));
    let pulled = puller
        .pull(&room.image("sealed:1"), &room.path("root"))
        .await;
    assert_every_file(&pulled.unwrap().rootfs);
    serving.abort();
    let gone = encrypt(&plain, &place(&room, "never:1"), &to)
        .await
        .unwrap_err();
    assert!(matches!(gone, RecryptError::Provider { .. }), "{gone}");
    assert!(
        room.registry()
            .manifest(&room.image("never:1"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_image_goes_through_archives_of_both_writers() {
    let Some(room) = Room::open().await else {
        return;
    };
    if !need_tool("skopeo") {
        return;
    }
    let (plain, _) = every_type(&room).await;
    let archive = |name: &str| {
        let text = format!("oci-archive:{}:v1", room.path(name).display());
        (Place::parse(&text, &room.registry()).unwrap(), text)
    };
    let (sealed, sealed_text) = archive("sealed.tar");
    encrypt(&plain, &sealed, &recipients(&[(KID, [7; 32])]))
        .await
        .unwrap();
    // skopeo copies what is encrypted as it is, and so shows that it can read our archive.
    let (copy, copy_text) = archive("copy.tar");
    run("skopeo", &["copy", "-q", &sealed_text, &copy_text]);
    for archive in [&sealed, &copy] {
        let keys = Counting::new(&[(KID, [7; 32])]);
        decrypt(archive, &place(&room, "opened:1"), &*keys)
            .await
            .unwrap();
        let _ = std::fs::remove_dir_all(room.path("root-opened-1"));
        assert_every_file(&room.pull("opened:1").await.unwrap().rootfs);
    }
    // An archive that stands is replaced only by a whole one.
    let before = std::fs::read(room.path("sealed.tar")).unwrap();
    let (again, _) = archive("sealed.tar");
    let failed = decrypt(&copy, &again, &NoKeys).await.unwrap_err();
    assert!(matches!(failed, RecryptError::Keys(_)), "{failed}");
    drop(again);
    assert_eq!(std::fs::read(room.path("sealed.tar")).unwrap(), before);
}

#[tokio::test]
async fn a_failure_leaves_a_layout_as_it_was() {
    let Some(room) = Room::open().await else {
        return;
    };
    let small = (LayerBuilder::new().file("a", "1").finish(), Pack::Plain);
    let large = LayerBuilder::new()
        .file("b", &"2".repeat(3_000_000))
        .finish();
    let digests = push_image(&room.image("plain:1"), &[small, (large, Pack::Plain)], None).await;
    let text = format!("oci:{}:v1", room.path("layout").display());
    let layout = Place::parse(&text, &room.registry()).unwrap();
    let keys = recipients(&[(KID, [7; 32])]);
    let plain = place(&room, "plain:1");
    encrypt(&plain, &layout, &keys).await.unwrap();
    let names = || {
        let blobs = std::fs::read_dir(room.path("layout/blobs/sha256")).unwrap();
        let mut names: Vec<_> = blobs.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let twice = encrypt(&layout, &layout, &keys).await.unwrap_err();
    assert!(
        matches!(twice, RecryptError::AlreadyEncrypted(_)),
        "{twice}"
    );
    // The second layer is damaged, long after the first was written.
    let file = room.blob_file(&digests[1]);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let failed = encrypt(&plain, &layout, &keys).await.unwrap_err();
    assert!(matches!(failed, RecryptError::Digest { .. }), "{failed}");
    assert_eq!(names(), before);
}

#[tokio::test]
async fn both_packet_versions_are_written_and_shown_without_a_key() {
    let Some(room) = Room::open().await else {
        return;
    };
    let (plain, _) = every_type(&room).await;
    for (tag, format, scheme) in [
        ("v1", Format::V1, "packet 1, A256GCM"),
        ("v2", Format::V2, "packet 2, A256GCM"),
    ] {
        let mut to = recipients(&[(KID, [7; 32])]);
        to.format = format;
        let sealed = place(&room, &format!("sealed:{tag}"));
        encrypt(&plain, &sealed, &to).await.unwrap();
        let seen = inspect::inspect(&sealed, &Platform::host()).await.unwrap();
        for layer in &seen.layers {
            let way = &layer.ways[0];
            assert_eq!(way.scheme.as_deref(), Some(scheme));
            assert_eq!(way.key_id.as_deref(), Some(KID));
            assert_eq!(layer.cipher, Some("AES_256_CTR_HMAC_SHA256"));
        }
        let json = serde_json::to_string(&seen).unwrap();
        assert!(!json.contains("wrapped"), "{json}");
        let opened = place(&room, &format!("opened:{tag}"));
        let keys = Counting::new(&[(KID, [7; 32])]);
        decrypt(&sealed, &opened, &*keys).await.unwrap();
    }
}
