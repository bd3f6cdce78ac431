//! Encrypted images: what skopeo encrypts we pull, what we encrypt skopeo decrypts, and damage is refused.

use crate::room;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use image_rs::manifest::Platform;
use image_rs::place::Place;
use image_rs::pull::PullError;
use image_rs::recrypt::{self, Recipients, RecryptError, Report};
use image_rs::{Digest, LayerError, inspect};
use ocicrypt::cipher::CipherError;
use ocicrypt::jwe::{PrivateKey, PublicKey};
use ocicrypt::{Key, KeyError, KeySource};
use room::{LayerBuilder, NoKeys, Pack, Room, layer_error, need_tool, push_image, read, run};

/// A broker's keys and private keys.
#[derive(Default)]
struct Keys {
    broker: HashMap<String, Vec<u8>>,
    private: Vec<PrivateKey>,
}

#[async_trait]
impl KeySource for Keys {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        let found = self.broker.get(kid).cloned().map(Key::new);
        found.ok_or_else(|| KeyError::NotFound {
            kid: kid.to_owned(),
        })
    }

    fn private_keys(&self) -> &[PrivateKey] {
        &self.private
    }
}

const KID: &str = "kbs:///default/image-key/1";

fn vector(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("ocicrypt/tests/vectors")
        .join(name);
    path.to_str().unwrap().to_owned()
}

fn private(name: &str) -> Keys {
    let key = PrivateKey::from_pem(&std::fs::read(vector(name)).unwrap()).unwrap();
    Keys {
        private: vec![key],
        ..Keys::default()
    }
}

fn broker(key: [u8; 32]) -> Keys {
    Keys {
        broker: HashMap::from([(KID.to_owned(), key.to_vec())]),
        ..Keys::default()
    }
}

fn layers() -> Vec<(Vec<u8>, Pack)> {
    let first = LayerBuilder::new()
        .dir("etc")
        .file("etc/secret", &"first ".repeat(9000))
        .finish();
    let second = LayerBuilder::new()
        .file("etc/other", &"second ".repeat(9000))
        .finish();
    let third = LayerBuilder::new().file("third", "3").finish();
    vec![
        (first, Pack::Gzip),
        (second, Pack::ZstdFrames),
        (third, Pack::Plain),
    ]
}

fn assert_whole(root: &Path) {
    assert_eq!(read(root, "etc/secret"), "first ".repeat(9000));
    assert_eq!(read(root, "etc/other"), "second ".repeat(9000));
    assert_eq!(read(root, "third"), "3");
}

fn quiet() -> Report {
    Arc::new(|_| {})
}

fn place(room: &Room, name: &str) -> Place {
    Place::Registry(room.registry(), room.image(name))
}

async fn encrypt(room: &Room, name: &str, recipients: &Recipients) -> Digest {
    push_image(&room.image("plain:1"), &layers(), None).await;
    let (from, to) = (place(room, "plain:1"), place(room, name));
    recrypt::encrypt(&from, &to, &Platform::host(), recipients, &quiet())
        .await
        .unwrap()
}

/// A room with an image `sealed:1`, encrypted for a broker's key of sevens, and its digest.
async fn sealed() -> Option<(Room, Digest)> {
    let room = Room::open().await?;
    let digest = encrypt(&room, "sealed:1", &for_broker([7; 32])).await;
    Some((room, digest))
}

/// `skopeo copy` between images of the room's registry.
fn skopeo(room: &Room, options: &[&str], [from, to]: [&str; 2]) {
    let (from, to) = (room.docker(from), room.docker(to));
    let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    run(
        "skopeo",
        &[&["copy", "-q"], &tls[..], options, &[&from, &to]].concat(),
    );
}

fn for_broker(key: [u8; 32]) -> Recipients {
    Recipients {
        broker: vec![(KID.to_owned(), Key::new(key.to_vec()))],
        ..Recipients::default()
    }
}

#[tokio::test]
async fn what_skopeo_encrypts_is_pulled() {
    let Some(room) = Room::open().await else {
        return;
    };
    if !need_tool("skopeo") {
        return;
    }
    push_image(&room.image("plain:1"), &layers(), None).await;
    for key in ["rsa", "p256", "p384", "p521"] {
        let public = format!("jwe:{}", vector(&format!("{key}.pub.pem")));
        let sealed = format!("skopeo:{key}");
        skopeo(&room, &["--encryption-key", &public], ["plain:1", &sealed]);
        let image = room.image(&sealed);
        let target = room.path(&format!("root-{key}"));
        let puller = room.puller(Arc::new(private(&format!("{key}.pem"))));
        let pulled = puller
            .pull(&image, &target)
            .await
            .unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(pulled.encrypted_layers, 3);
        assert_whole(&target);
        let error = room
            .puller(Arc::new(NoKeys))
            .pull(&image, &room.path("none"))
            .await
            .unwrap_err();
        assert!(matches!(error, PullError::Keys { .. }), "{error}");
    }
}

#[tokio::test]
async fn skopeo_may_compress_while_it_encrypts() {
    let Some(room) = Room::open().await else {
        return;
    };
    if !need_tool("skopeo") {
        return;
    }
    // The digest that skopeo wraps is then that of the layer before it was compressed.
    push_image(
        &room.image("tar:1"),
        &[(LayerBuilder::new().file("a", "1").finish(), Pack::Plain)],
        None,
    )
    .await;
    let public = format!("jwe:{}", vector("rsa.pub.pem"));
    let gzip = ["--dest-compress-format", "gzip"];
    skopeo(
        &room,
        &[&gzip[..], &["--encryption-key", &public]].concat(),
        ["tar:1", "tar:2"],
    );
    let pulled = room
        .puller(Arc::new(private("rsa.pem")))
        .pull(&room.image("tar:2"), &room.path("root-t"))
        .await;
    assert_eq!(read(&pulled.unwrap().rootfs, "a"), "1");
}

#[tokio::test]
async fn what_we_encrypt_skopeo_decrypts() {
    let Some(room) = Room::open().await else {
        return;
    };
    if !need_tool("skopeo") {
        return;
    }
    for key in ["rsa", "p256", "p384", "p521"] {
        let public =
            PublicKey::from_pem(&std::fs::read(vector(&format!("{key}.pub.pem"))).unwrap())
                .unwrap();
        let sealed = format!("ours:{key}");
        encrypt(
            &room,
            &sealed,
            &Recipients {
                public: vec![public],
                ..Recipients::default()
            },
        )
        .await;
        let plain = format!("theirs:{key}");
        let private = vector(&format!("{key}.pem"));
        skopeo(&room, &["--decryption-key", &private], [&sealed, &plain]);
        let pulled = room.pull(&plain).await.unwrap();
        assert_eq!(pulled.encrypted_layers, 0);
        assert_whole(&pulled.rootfs);
    }
}

#[tokio::test]
async fn a_brokers_key_opens_what_was_encrypted_for_it() {
    let Some((room, digest)) = sealed().await else {
        return;
    };
    let image = room.image("sealed:1");
    let pulled = room
        .puller(Arc::new(broker([7; 32])))
        .pull(&image, &room.path("sealed"))
        .await
        .unwrap();
    assert_eq!(
        (pulled.encrypted_layers, pulled.manifest_digest),
        (3, digest)
    );
    assert_whole(&pulled.rootfs);

    let seen = inspect::inspect(&place(&room, "sealed:1"), &Platform::host())
        .await
        .unwrap();
    assert!(
        seen.layers
            .iter()
            .all(|layer| layer.encrypted && layer.ways[0].key_id.as_deref() == Some(KID))
    );

    let error = room
        .puller(Arc::new(broker([8; 32])))
        .pull(&image, &room.path("root-x"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains(KID), "{error}");
    let error = room
        .puller(Arc::new(NoKeys))
        .pull(&image, &room.path("root-x"))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("does not exist at the broker"),
        "{error}"
    );
    room.assert_no_leftovers();
}

#[tokio::test]
async fn an_image_goes_through_a_layout_and_back() {
    let Some((room, _)) = sealed().await else {
        return;
    };
    let layout = Place::parse(
        &format!("oci:{}:v1", room.path("layout").display()),
        &room.registry(),
    )
    .unwrap();
    let (from, to, platform) = (
        place(&room, "sealed:1"),
        place(&room, "back:1"),
        Platform::host(),
    );
    recrypt::decrypt(&from, &layout, &platform, &broker([7; 32]), &quiet())
        .await
        .unwrap();
    recrypt::encrypt(&layout, &to, &platform, &for_broker([9; 32]), &quiet())
        .await
        .unwrap();
    let pulled = room
        .puller(Arc::new(broker([9; 32])))
        .pull(&room.image("back:1"), &room.path("back"))
        .await
        .unwrap();
    assert_whole(&pulled.rootfs);
    let twice = recrypt::encrypt(&to, &layout, &platform, &for_broker([9; 32]), &quiet())
        .await
        .unwrap_err();
    assert!(
        matches!(twice, RecryptError::AlreadyEncrypted(_)),
        "{twice}"
    );
    let wrong = recrypt::decrypt(&to, &layout, &platform, &broker([1; 32]), &quiet())
        .await
        .unwrap_err();
    assert!(matches!(wrong, RecryptError::Keys(_)), "{wrong}");
}

/// The registry's owner alters a layer and the manifest with it: only the HMAC is left to tell.
#[tokio::test]
async fn an_altered_layer_with_an_altered_manifest_fails_by_its_hmac() {
    let Some((room, _)) = sealed().await else {
        return;
    };
    let (registry, image) = (room.registry(), room.image("sealed:1"));
    let raw = registry.manifest(&image).await.unwrap();
    let mut document: serde_json::Value = serde_json::from_slice(&raw.bytes).unwrap();
    let digest: Digest = document["layers"][2]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let mut blob = registry
        .small_blob(&image, &digest, 1 << 20)
        .await
        .unwrap()
        .to_vec();
    // In the padding of the archive, so that nothing but the HMAC can notice.
    *blob.last_mut().unwrap() ^= 1;
    let forged = room.image("forged:1");
    for layer in document["layers"].as_array().unwrap() {
        let digest: Digest = layer["digest"].as_str().unwrap().parse().unwrap();
        let bytes = registry.small_blob(&image, &digest, 1 << 20).await.unwrap();
        registry.push_blob(&forged, bytes).await.unwrap();
    }
    let config: Digest = document["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    registry
        .push_blob(
            &forged,
            registry.small_blob(&image, &config, 1 << 20).await.unwrap(),
        )
        .await
        .unwrap();
    document["layers"][2]["digest"] = registry
        .push_blob(&forged, blob.into())
        .await
        .unwrap()
        .to_string()
        .into();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    registry
        .push_manifest(&forged, media_type, document.to_string().into())
        .await
        .unwrap();
    let pulled = room
        .puller(Arc::new(broker([7; 32])))
        .pull(&forged, &room.path("root-f"))
        .await;
    let error = layer_error(pulled.unwrap_err());
    assert!(
        matches!(error, LayerError::Cipher(CipherError::Hmac)),
        "{error}"
    );
    room.assert_no_leftovers();
}

#[tokio::test]
async fn a_broken_source_leaves_no_image() {
    let Some(room) = Room::open().await else {
        return;
    };
    let digests = push_image(&room.image("plain:1"), &layers(), None).await;
    let file = room.blob_file(&digests[0]);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (from, to) = (place(&room, "plain:1"), place(&room, "never:1"));
    let error = recrypt::encrypt(
        &from,
        &to,
        &Platform::host(),
        &for_broker([7; 32]),
        &quiet(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, RecryptError::Digest { .. }), "{error}");
    assert!(
        room.registry()
            .manifest(&room.image("never:1"))
            .await
            .is_err()
    );
}
