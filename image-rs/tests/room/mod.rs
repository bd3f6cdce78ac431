//! What the tests of pulling need: a real registry on a loopback port, tools that may be absent, images made by hand.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses a part of it"
)]

pub(crate) mod tool;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use image_rs::registry::{Registry, RegistryConfig};
use image_rs::unpack::Limits;
use image_rs::{Digest, LayerError, Policy, PullConfig, PullError, Pulled, Puller, Reference};
use ocicrypt::{Key, KeyError, KeySource};
use tempfile::TempDir;
pub use tool::{need_tool, run};
use transport::{ClientConfig, PlainHttp, Roots, TcpDial};

/// A registry of its own, stopped when dropped.
pub struct Room {
    process: Child,
    pub directory: TempDir,
    pub port: u16,
}

impl Room {
    /// Starts it; `None` when there is no registry to start.
    pub async fn open() -> Option<Self> {
        if !need_tool("docker-registry") {
            return None;
        }
        let directory = TempDir::new().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = directory.path().join("registry.yml");
        let store = directory.path().join("store");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
                 delete: {{enabled: true}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
                store.display()
            ),
        )
        .unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let room = Self {
            process,
            directory,
            port,
        };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
            {
                return Some(room);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the registry does not listen");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn image(&self, name: &str) -> Reference {
        format!("127.0.0.1:{}/{name}", self.port).parse().unwrap()
    }

    pub fn docker(&self, name: &str) -> String {
        format!("docker://127.0.0.1:{}/{name}", self.port)
    }

    pub fn registry(&self) -> Registry {
        registry()
    }

    pub fn puller(&self, keys: Arc<dyn KeySource>) -> Puller {
        self.puller_with(PullConfig::new(Policy::accept_anything()), keys)
    }

    pub fn puller_with(&self, config: PullConfig, keys: Arc<dyn KeySource>) -> Puller {
        Puller::new(config, self.registry(), keys)
    }

    /// Pulls into a directory named after the image.
    pub async fn pull(&self, name: &str) -> Result<Pulled, PullError> {
        let target = self.path(&format!("root-{}", name.replace([':', '/'], "-")));
        self.puller(Arc::new(NoKeys))
            .pull(&self.image(name), &target)
            .await
    }

    /// The file in which the registry keeps a blob.
    pub fn blob_file(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.path("store/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    /// Nothing of a failed pull may be left.
    pub fn assert_no_leftovers(&self) {
        let left = std::fs::read_dir(self.directory.path()).unwrap();
        let left: Vec<_> = left
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(
            !left
                .iter()
                .any(|name| name.starts_with(".pull-") || name.starts_with("root-")),
            "{left:?}"
        );
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client for registries on this machine.
pub fn registry() -> Registry {
    let local: BTreeSet<String> = ["127.0.0.1".to_owned()].into();
    let mut config = ClientConfig::new(Roots::web());
    config.plain_http = PlainHttp::Hosts(local.clone());
    let client = transport::Client::new(Arc::new(TcpDial), config).unwrap();
    Registry::new(
        client,
        RegistryConfig {
            insecure: local,
            ..RegistryConfig::default()
        },
    )
}

/// A source without keys.
pub struct NoKeys;

#[async_trait]
impl KeySource for NoKeys {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        Err(KeyError::NotFound {
            kid: kid.to_owned(),
        })
    }
}

/// A layer in the making.
pub struct LayerBuilder(tar::Builder<Vec<u8>>);

impl LayerBuilder {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn entry(mut self, name: &str, kind: tar::EntryType, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        // Written raw, because the crate refuses the hostile names that these tests are about.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == tar::EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.entry(name, tar::EntryType::Regular, "", content.as_bytes())
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(name, tar::EntryType::Directory, "", b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, tar::EntryType::Symlink, target, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, tar::EntryType::Link, target, b"")
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// How a test's layer is compressed.
#[derive(Clone, Copy, Debug)]
pub enum Pack {
    Plain,
    Gzip,
    GzipMembers,
    Zstd,
    ZstdFrames,
}

pub fn pack(tar: &[u8], how: Pack) -> (Vec<u8>, &'static str) {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (left, right) = tar.split_at(tar.len() / 3);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    match how {
        Pack::Plain => (tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
        Pack::Gzip => (gzip(tar), "application/vnd.oci.image.layer.v1.tar+gzip"),
        Pack::GzipMembers => (
            [gzip(left), gzip(right)].concat(),
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ),
        Pack::Zstd => (zstd(tar), "application/vnd.oci.image.layer.v1.tar+zstd"),
        Pack::ZstdFrames => (
            [zstd(left), zstd(right)].concat(),
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    }
}

/// Pushes an image of these layers; `diff_ids` may be lied about.
pub async fn push_image(
    image: &Reference,
    layers: &[(Vec<u8>, Pack)],
    lie: Option<Digest>,
) -> Vec<Digest> {
    let registry = registry();
    let (mut descriptors, mut diff_ids, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    for (tar, how) in layers {
        let (blob, media_type) = pack(tar, *how);
        let size = blob.len();
        let digest = registry.push_blob(image, Bytes::from(blob)).await.unwrap();
        descriptors
            .push(serde_json::json!({"mediaType": media_type, "digest": digest, "size": size}));
        diff_ids.push(lie.clone().unwrap_or_else(|| Digest::of(tar)));
        digests.push(digest);
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = Bytes::from(serde_json::to_vec(&config).unwrap());
    let size = config.len();
    let digest = registry.push_blob(image, config).await.unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size},
        "layers": descriptors,
    });
    registry
        .push_manifest(
            image,
            media_type,
            Bytes::from(serde_json::to_vec(&manifest).unwrap()),
        )
        .await
        .unwrap();
    digests
}

/// The layer's own error; any other is a failed test.
pub fn layer_error(error: PullError) -> LayerError {
    match error {
        PullError::Layer { source, .. } => *source,
        other => panic!("not a layer's error: {other}"),
    }
}

pub fn small_limits() -> Limits {
    Limits {
        entries: 10,
        unpacked_bytes: 10_000,
        ..Limits::default()
    }
}

pub fn read(root: &Path, name: &str) -> String {
    std::fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}
