//! The distribution project's own registry: with a password, with TLS, and as a mirror.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use image_rs::registry::{
    AuthFile, Mirror, PullFromMirror, Reach, Registry, RegistryConfig, RegistryError, Rule, Rules,
    Security,
};
use image_rs::{Digest, Policy, PullConfig, Puller, Reference};
use ocicrypt::{Key, KeyError, KeySource};
use tempfile::TempDir;
use transport::{Roots, TcpDial};

use crate::server::{content, quick, read};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `user` with the password `secret`, as htpasswd writes it.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A running registry with a store of its own.
struct Distribution {
    process: Child,
    directory: TempDir,
    port: u16,
}

impl Distribution {
    /// Starts it with more configuration; `None` where it is not installed.
    async fn start(more: impl FnOnce(&TempDir) -> String) -> Option<Self> {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|place| place.join("docker-registry").is_file())
        });
        assert!(
            found || std::env::var_os("CLOISTER_NO_SKIP").is_none(),
            "docker-registry is needed and absent"
        );
        if !found {
            eprintln!("skipped: docker-registry is not installed");
            return None;
        }
        let directory = TempDir::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let config = directory.path().join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n{}",
            directory.path().join("store").display(),
            more(&directory)
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            process,
            directory,
            port,
        };
        for _ in 0..400 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_ok()
            {
                return Some(registry);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the registry does not listen");
    }

    async fn with_password() -> Option<Self> {
        Self::start(|directory| {
            let path = directory.path().join("htpasswd");
            std::fs::write(&path, HTPASSWD).unwrap();
            format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path.display()
            )
        })
        .await
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn blob_file(&self, digest: &Digest) -> PathBuf {
        let (hex, store) = (digest.hex(), self.directory.path().join("store"));
        store
            .join("docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn client(auth: &str, rules: Vec<Rule>) -> Registry {
    let config = RegistryConfig {
        insecure: ["127.0.0.1".to_owned()].into(),
        auth: AuthFile::from_json(auth.as_bytes()).unwrap(),
        rules: Rules::new(rules).unwrap(),
        retry: quick(),
    };
    Registry::open(Arc::new(TcpDial), &Reach::new(Roots::web()), config).unwrap()
}

/// Pushes an image of one layer, which is `layer`.
async fn push(client: &Registry, image: &Reference, layer: &[u8]) -> Digest {
    let layer_digest = client
        .push_blob(image, Bytes::copy_from_slice(layer))
        .await
        .unwrap();
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(layer)]},
    }))
    .unwrap();
    let size = config.len();
    let config = client.push_blob(image, config.into()).await.unwrap();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest,
            "size": layer.len()}],
    }))
    .unwrap();
    client
        .push_manifest(image, MANIFEST, manifest.into())
        .await
        .unwrap()
}

fn auth(host: &str, entry: &str) -> String {
    format!(r#"{{"auths":{{"{host}":{entry}}}}}"#)
}

#[tokio::test]
async fn a_password_opens_it_and_a_wrong_one_does_not() {
    let Some(registry) = Distribution::with_password().await else {
        return;
    };
    let host = registry.host();
    let image: Reference = format!("{host}/team/app:v1").parse().unwrap();
    let owner = client(
        &auth(&host, r#"{"username":"user","password":"secret"}"#),
        Vec::new(),
    );
    let layer = content(300_000);
    let digest = push(&owner, &image, &layer).await;
    // Base64 of user:secret, for a namespace.
    let entry = r#"{"auth":"dXNlcjpzZWNyZXQ="}"#;
    let reader = client(&auth(&format!("{host}/team"), entry), Vec::new());
    for name in [
        "app:v1".to_owned(),
        format!("app@{digest}"),
        format!("app:v1@{digest}"),
    ] {
        let image = format!("{host}/team/{name}").parse().unwrap();
        assert_eq!(
            reader.manifest(&image).await.unwrap().digest,
            digest,
            "{name}"
        );
    }
    assert!(read(&reader, &image.to_string(), &layer).await.unwrap() == layer);
    for (auth, word) in [
        ("{}".to_owned(), "no credentials for"),
        (
            auth(&host, r#"{"username":"user","password":"wrong"}"#),
            "authentication required",
        ),
        (auth(&format!("{host}/other"), entry), "no credentials for"),
    ] {
        let error = client(&auth, Vec::new())
            .manifest(&image)
            .await
            .unwrap_err();
        assert!(
            matches!(error, RegistryError::Unauthorized { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(word), "{error}");
    }
    let absent = format!("{host}/team/absent:v1").parse().unwrap();
    let error = reader.manifest(&absent).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_mirror_that_fills_itself_serves_and_its_damage_is_not_believed() {
    let Some(origin) = Distribution::start(|_| String::new()).await else {
        return;
    };
    let remote = format!("proxy: {{remoteurl: \"http://{}\"}}\n", origin.host());
    let Some(mirror) = Distribution::start(|_| remote).await else {
        return;
    };
    let layer = content(300_000);
    let image: Reference = format!("{}/team/app:v1", origin.host()).parse().unwrap();
    let digest = push(&client("{}", Vec::new()), &image, &layer).await;
    let rules = || {
        vec![Rule {
            prefix: origin.host(),
            mirrors: vec![Mirror {
                location: mirror.host(),
                security: Security::PlainHttp,
                pull: PullFromMirror::All,
            }],
            ..Rule::default()
        }]
    };
    let reader = client("{}", rules());
    assert_eq!(reader.manifest(&image).await.unwrap().digest, digest);
    assert!(read(&reader, &image.to_string(), &layer).await.unwrap() == layer);
    // The mirror keeps what went through it, a moment later.
    let kept = mirror.blob_file(&Digest::of(&layer));
    for _ in 0..400 {
        if kept.is_file() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut damaged = layer.clone();
    damaged[1000] ^= 1;
    std::fs::write(&kept, &damaged).unwrap();
    let reader = client("{}", rules());
    let mut blob = reader.blob(&image, &Digest::of(&layer), layer.len() as u64);
    let mut found = Vec::new();
    while let Some(piece) = blob.next().await.unwrap() {
        found.extend_from_slice(&piece);
    }
    assert!(found == damaged);
    blob.refuse(Digest::of(&found)).unwrap();
    found.clear();
    while let Some(piece) = blob.next().await.unwrap() {
        found.extend_from_slice(&piece);
    }
    assert!(found == layer);
}

pub(crate) struct NoKeys;

#[async_trait]
impl KeySource for NoKeys {
    async fn key(&self, kid: &str) -> Result<Key, KeyError> {
        Err(KeyError::NotFound {
            kid: kid.to_owned(),
        })
    }
}

#[tokio::test]
async fn the_policy_judges_the_name_that_was_written_whatever_mirror_serves_it() {
    let Some(mirror) = Distribution::start(|_| String::new()).await else {
        return;
    };
    let there: Reference = format!("{}/cache/app:v1", mirror.host()).parse().unwrap();
    let tar = tar::Builder::new(Vec::new()).into_inner().unwrap();
    push(&client("{}", Vec::new()), &there, &tar).await;
    let rules = vec![Rule {
        prefix: "owner.test/team".to_owned(),
        location: Some(format!("{}/cache", mirror.host())),
        ..Rule::default()
    }];
    let registry = client("{}", rules);
    let image: Reference = "owner.test/team/app:v1".parse().unwrap();
    let accepts = |scope: &str| {
        let text = format!(
            r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"{scope}":[{{"type":"insecureAcceptAnything"}}]}}}}}}"#
        );
        let config = PullConfig::new(Policy::from_json(text.as_bytes()).unwrap());
        Puller::new(config, registry.clone(), Arc::new(NoKeys))
    };
    let resolved = accepts("owner.test/team").resolve(&image).await;
    assert!(resolved.is_ok(), "{:?}", resolved.err());
    let scope = format!("{}/cache", mirror.host());
    assert!(accepts(&scope).resolve(&image).await.is_err());
}
